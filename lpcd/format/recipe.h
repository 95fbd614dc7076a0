#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "lpcd/tensor/dtype.h"

namespace lpcd::format {

/// Where a weight matrix stands in a model, as far as a mix of ggml types cares.
struct TensorPlace {
  enum class Kind { kQuery, kKey, kValue, kAttentionOutput, kGate, kUp, kDown, kEmbedding, kHead };
  Kind kind = Kind::kGate;
  int64_t block = 0;
  int64_t blocks = 1;
  int64_t queries_per_key = 1;  ///< attention heads that share a key/value head
  bool seventy_b = false;  ///< of what llama.cpp calls a 70B model, which has a rule of its own
  int64_t cols = 0;        ///< K
};

/// Which ggml type each matrix gets: the mixes of llama-quantize by their names (Q4_K_M, ...), or
/// one type for all ("q4_k,pure").
class Recipe {
 public:
  /// "q4_k_m", "q3_k" (as llama-quantize: its _m), "q2_k,pure"; nothing if unknown.
  [[nodiscard]] static std::optional<Recipe> parse(std::string_view text);
  /// Names that parse() takes, but for ",pure".
  [[nodiscard]] static std::span<const std::string_view> names();

  /// Canonical text.
  [[nodiscard]] std::string text() const;
  /// The type of a matrix, after the fallback for rows that its blocks do not divide.
  [[nodiscard]] DType type(const TensorPlace& place) const;
  /// `general.file_type`.
  [[nodiscard]] int64_t file_type() const;

  /// The type that llama-quantize takes when blocks of `type` do not divide rows of `cols`: another
  /// block type, or F16. The type itself if they do.
  [[nodiscard]] static DType fallback(DType type, int64_t cols);

 private:
  std::string_view name_;
  bool pure_ = false;
};

}  // namespace lpcd::format
