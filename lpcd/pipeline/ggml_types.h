#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lpcd/arch/model.h"
#include "lpcd/format/recipe.h"

namespace lpcd::pipeline {

/// "PATTERN=TYPE" of --tensor-type: the last pattern that matches counts.
class TensorTypes {
 public:
  /// Errors    kBadOption for a text of another form or an unknown type.
  explicit TensorTypes(const std::vector<std::string>& texts);

  /// By a tensor's names in both kinds of checkpoint.
  [[nodiscard]] std::optional<DType> find(const arch::Model& model, arch::Role role,
                                          int64_t block) const;
  /// kBadOption if a pattern matches no matrix of the model.
  void check_used(const arch::Model& model) const;

 private:
  struct Entry {
    std::string pattern;
    DType type;
  };
  std::vector<Entry> entries_;
};

/// Where a matrix stands in the model, for Recipe.
[[nodiscard]] format::TensorPlace place_of(const arch::ModelConfig& config, arch::Role role,
                                           int64_t block);

/// A mix by the text of --grid. kBadOption, naming the nearest, if there is none of that name.
[[nodiscard]] format::Recipe parse_recipe(const std::string& text);

/// The type of a matrix under a mix and the exceptions from it.
/// Errors    kBadOption if an exception cannot hold the rows, or if a linear layer's rows hold no
///           block type at all.
[[nodiscard]] DType ggml_type_of(const arch::Model& model, const format::Recipe& recipe,
                                 const TensorTypes& types, arch::Role role, int64_t block);

}  // namespace lpcd::pipeline
