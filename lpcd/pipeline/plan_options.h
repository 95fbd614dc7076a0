#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lpcd/pipeline/options.h"
#include "lpcd/submodules/coupled.h"
#include "lpcd/submodules/submodule.h"

namespace lpcd::pipeline {

/// Submodules that --lpcd names.
struct Chosen {
  std::vector<const submodules::CoupledInfo*> coupled;
  std::vector<const submodules::Submodule*> closed;

  [[nodiscard]] bool empty() const { return coupled.empty() && closed.empty(); }
};

/// Errors    kBadOption for unknown names, and for submodules that a preset does not have.
[[nodiscard]] Chosen chosen_submodules(const QuantizeOptions& options);

/// Of a correction, from 0 to 1; "auto", chosen on held-out sequences, is nothing. `flag` is for
/// the message.
[[nodiscard]] std::optional<double> parse_strength(const std::string& text, std::string_view flag);

/// Ascending; at least one.
[[nodiscard]] std::vector<double> parse_dampings(const std::vector<std::string>& texts);

/// "PATTERN=BITS", a pattern of fnmatch over tensor names.
[[nodiscard]] std::pair<std::string, int> parse_bits_for(const std::string& text);

/// What options say against each other, whatever the model.
///
/// Errors    kBadOption.
void check_options(const QuantizeOptions& options);

}  // namespace lpcd::pipeline
