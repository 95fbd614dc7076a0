#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

namespace lpcd {

/// What changing an option changes.
enum class Effect {
  kNumeric,   ///< the bytes of the result: part of the fingerprint, may not differ on --resume
  kResource,  ///< how the result is reached (threads, memory, paths): free to differ
};

/// One option as the command line, the record, the help and the fingerprint see it. Options structs
/// list their fields once, in `template <class V> void visit(V& v)`, as v(field, OptionInfo{...}).
struct OptionInfo {
  std::string_view name = {};     ///< long flag without dashes, "qep-strength"
  std::string_view value = {};    ///< what to give it, "FRACTION"
  std::string_view section = {};  ///< heading in the help
  std::string_view help = {};     ///< one sentence
  Effect effect = Effect::kNumeric;
  double min = -1e300;  ///< smallest and largest number allowed
  double max = 1e300;
};

/// Printable names of an enum's values, in their order; specialised next to each enum.
template <class E>
struct EnumNames;  // static constexpr std::array<std::string_view, N> values

/// "2 to 8", ">= 1", or "" for an unlimited number.
[[nodiscard]] std::string range_text(const OptionInfo& info);

/// Errors    kBadOption naming the option unless min <= value <= max. NaN is outside every range.
void check_range(const OptionInfo& info, double value);

/// The same for every number of an options struct: what the command line refuses by itself, of a
/// struct that a program filled in.
template <class Options>
void check_ranges(const Options& options) {
  Options::visit(options, [](const auto& field, const OptionInfo& info) {
    using Field = std::remove_cvref_t<decltype(field)>;
    if constexpr (std::is_arithmetic_v<Field> && !std::is_same_v<Field, bool>) {
      check_range(info, static_cast<double>(field));
    }
  });
}

/// The value that `text` is closest to (edit distance), for "did you mean".
[[nodiscard]] std::string_view nearest(std::string_view text,
                                       std::span<const std::string_view> candidates);

/// "1.5G" -> bytes. Suffixes K, M, G, T (powers of 1024, an optional B or iB after them).
/// Errors    kBadOption naming `flag`.
[[nodiscard]] uint64_t parse_bytes(std::string_view text, std::string_view flag);

/// As a word of a POSIX shell: as it is, or in single quotes.
[[nodiscard]] std::string shell_word(std::string_view text);

/// 1610612736 -> "1.50 GiB".
[[nodiscard]] std::string format_bytes(uint64_t bytes);

/// 3725 s -> "1 h 02 min", 65 s -> "1 min 05 s".
[[nodiscard]] std::string format_duration(double seconds);

}  // namespace lpcd
