#include "lpcd/base/options.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "lpcd/base/raise.h"

namespace lpcd {
namespace {

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t substituted = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row[b.size()];
}

std::string number_text(double value) {
  return value == std::floor(value) && std::abs(value) < 1e15 ? fmt::format("{:.0f}", value)
                                                              : fmt::format("{}", value);
}

}  // namespace

std::string range_text(const OptionInfo& info) {
  const bool low = info.min > -1e299;
  const bool high = info.max < 1e299;
  if (low && high) return fmt::format("{} to {}", number_text(info.min), number_text(info.max));
  if (low) return ">= " + number_text(info.min);
  if (high) return "<= " + number_text(info.max);
  return "";
}

void check_range(const OptionInfo& info, double value) {
  if (value >= info.min && value <= info.max) return;
  raise(ErrorCode::kBadOption, "--{}: {} is not a number {}", info.name, number_text(value),
        range_text(info));
}

std::string_view nearest(std::string_view text, std::span<const std::string_view> candidates) {
  std::string_view best;
  size_t best_distance = ~size_t{0};
  for (const std::string_view candidate : candidates) {
    size_t distance = edit_distance(text, candidate);
    // "--group" is meant for "--group-size" although many letters are missing.
    if (!text.empty() && candidate.starts_with(text)) distance = std::min<size_t>(distance, 1);
    if (distance < best_distance) {
      best = candidate;
      best_distance = distance;
    }
  }
  return best;
}

std::string shell_word(std::string_view text) {
  constexpr std::string_view kPlain =
      "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:,=@%+-";
  if (!text.empty() && text.find_first_not_of(kPlain) == std::string_view::npos) {
    return std::string(text);
  }
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
}

uint64_t parse_bytes(std::string_view text, std::string_view flag) {
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string_view unit(end, static_cast<size_t>(text.data() + text.size() - end));
  const std::string_view suffixes = "KMGT";
  double factor = 1;
  if (!unit.empty()) {
    const size_t power =
        suffixes.find(static_cast<char>(std::toupper(static_cast<unsigned char>(unit[0]))));
    if (power != std::string_view::npos) {
      factor = std::pow(1024.0, static_cast<double>(power + 1));
      unit.remove_prefix(1);
    }
  }
  const bool known = unit.empty() || unit == "B" || unit == "b" || unit == "iB";
  if (error != std::errc() || !known || !(number >= 0) || number * factor >= 0x1.0p63) {
    raise(ErrorCode::kBadOption, "--{}: \"{}\" is not a size; write for example 4G or 1536M", flag,
          text);
  }
  return static_cast<uint64_t>(number * factor);
}

std::string format_bytes(uint64_t bytes) {
  constexpr std::array<std::string_view, 5> kUnits = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < kUnits.size()) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.2f} {}", value, kUnits[unit]);
}

std::string format_duration(double seconds) {
  if (!(seconds >= 0)) return "?";
  if (seconds < 10) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<int64_t>(std::llround(seconds));
  if (whole < 60) return fmt::format("{} s", whole);
  if (whole < 3600) return fmt::format("{} min {:02} s", whole / 60, whole % 60);
  return fmt::format("{} h {:02} min", whole / 3600, whole / 60 % 60);
}

}  // namespace lpcd
