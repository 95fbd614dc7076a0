#include "lpcd/format/layer_text.h"

#include <fmt/format.h>

#include <charconv>

#include "lpcd/base/raise.h"
#include "lpcd/format/output_format.h"

namespace lpcd::format {
namespace {

bool parse_number(std::string_view text, int64_t& value) {
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

}  // namespace

std::string base_of(const std::string& name) {
  constexpr std::string_view kSuffix = ".weight";
  return name.ends_with(kSuffix) ? name.substr(0, name.size() - kSuffix.size()) : name;
}

std::string as_regex(const std::string& name) {
  std::string out;
  for (const char c : name) {
    if (c == '.') out += '\\';
    out += c;
  }
  return out;
}

void require_integer_grid(const std::string& name, const GridSpec& grid, std::string_view format) {
  if (!grid.block) return;
  raise(ErrorCode::kBadOption,
        "{}: {} stores integer codes, not {}; give it a run of its own, or use dense:fp16", name,
        format, grid.text());
}

std::optional<GridText> parse_grid_text(std::span<const std::string_view> parts) {
  GridText text;
  int64_t bits = 0;
  if (parts.empty() || !parse_number(parts[0], bits) || bits < 2 || bits > 8) return std::nullopt;
  text.grid.bits = static_cast<int>(bits);
  for (const std::string_view part : parts.subspan(1)) {
    if (part == "asym") {
      text.grid.symmetric = false;
    } else if (part == "v2") {
      text.v2 = true;
    } else if (!part.starts_with('g') || !parse_number(part.substr(1), text.grid.group_size) ||
               text.grid.group_size < -1 || text.grid.group_size == 0) {
      return std::nullopt;
    }
  }
  return text;
}

std::string grid_text(const GridSpec& grid) {
  return fmt::format("{},g{}{}", grid.bits, grid.group_size, grid.symmetric ? "" : ",asym");
}

}  // namespace lpcd::format
