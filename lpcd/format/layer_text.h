#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "lpcd/format/grid.h"

// Texts that the formats with integer grids share.

namespace lpcd::format {

/// The layer of a tensor: its name without ".weight".
[[nodiscard]] std::string base_of(const std::string& name);

/// A name as a regular expression: "\." for ".".
[[nodiscard]] std::string as_regex(const std::string& name);

/// "3", "g64", "asym" and flags that only one format knows.
struct GridText {
  GridSpec grid;
  bool v2 = false;
};
/// Nothing if a part is none of these, or the bits are out of range.
[[nodiscard]] std::optional<GridText> parse_grid_text(std::span<const std::string_view> parts);

/// "3,g64,asym"
[[nodiscard]] std::string grid_text(const GridSpec& grid);

}  // namespace lpcd::format
