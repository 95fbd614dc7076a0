#pragma once

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "lpcd/lpcd.h"

namespace lpcd::cli {

/// One line of a help text.
struct HelpEntry {
  std::string section;
  std::string left;   ///< "--bits N"
  std::string right;  ///< what it does, with the default
};

/// To stderr. Never fails: a terminal that was closed takes no error message either.
void print_error(std::string_view text);

/// Columns of the terminal, 80 if there is none; between 60 and 120.
[[nodiscard]] size_t help_width();

/// "usage", the wrapped entries under their section headings.
[[nodiscard]] std::string format_help(const std::string& usage, const std::string& description,
                                      const std::vector<HelpEntry>& entries);

/// Throws kBadOption for the arguments that CLI11 could not place, naming the nearest flag.
[[noreturn]] void reject_extras(const CLI::App& app);

[[noreturn]] void reject_value(std::string_view flag, const std::string& text,
                               const std::string& allowed);
[[noreturn]] void reject_choice(std::string_view flag, const std::string& text,
                                std::span<const std::string_view> allowed);

/// Registers every field of an options struct with CLI11, and writes down its help.
///
/// A bool that is off by default is a flag (--resume), one that is on takes on|off. Values are
/// parsed here, so that messages say what is allowed and which value is nearest.
class OptionBinder {
 public:
  OptionBinder(CLI::App& app, std::vector<HelpEntry>& help,
               std::vector<std::string>* given = nullptr)
      : app_(app), help_(help), given_(given) {}

  template <typename Field>
  void operator()(Field& field, const OptionInfo& info) {
    const std::string flag = "--" + std::string(info.name);
    add_help(info, flag, default_text(field));
    const std::string name(info.name);
    auto* given = given_;
    const auto mark = [given, name] {
      if (given != nullptr) given->push_back(name);
    };
    if constexpr (std::is_same_v<Field, bool>) {
      if (!field) {
        app_.add_flag_callback(flag, [&field, mark] {
          field = true;
          mark();
        });
        return;
      }
    }
    if constexpr (std::is_same_v<Field, std::vector<std::string>>) {
      app_.add_option_function<std::vector<std::string>>(
              flag,
              [&field, mark](const std::vector<std::string>& v) {
                field = v;
                mark();
              })
          ->delimiter(',')
          ->expected(1)
          ->allow_extra_args(false)
          ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
    } else {
      app_.add_option_function<std::string>(flag,
                                            [&field, info, mark](const std::string& text) {
                                              assign(field, info, text);
                                              mark();
                                            })
          ->take_last();
    }
  }

 private:
  void add_help(const OptionInfo& info, const std::string& flag, const std::string& value) {
    std::string right(info.help);
    const std::string range = range_text(info);
    if (!range.empty()) right += " Allowed: " + range + ".";
    if (!value.empty()) right += " [" + value + "]";
    std::string left = flag;
    if (value != "off") left += " " + std::string(info.value);
    help_.push_back({std::string(info.section), left, right});
  }

  template <typename Field>
  static std::string default_text(const Field& field) {
    if constexpr (std::is_same_v<Field, bool>) {
      return field ? "on" : "off";
    } else if constexpr (std::is_enum_v<Field>) {
      return std::string(EnumNames<Field>::values[static_cast<size_t>(field)]);
    } else if constexpr (std::is_same_v<Field, std::string>) {
      return field;
    } else if constexpr (std::is_same_v<Field, std::vector<std::string>>) {
      std::string text;
      for (const std::string& item : field) text += (text.empty() ? "" : ",") + item;
      return text;
    } else {
      std::string text = std::to_string(field);
      if constexpr (std::is_floating_point_v<Field>) {
        text.erase(text.find_last_not_of('0') + 1);
        if (text.ends_with('.')) text.pop_back();
      }
      return text;
    }
  }

  template <typename Field>
  static void assign(Field& field, const OptionInfo& info, const std::string& text) {
    if constexpr (std::is_same_v<Field, std::string>) {
      field = text;
    } else if constexpr (std::is_same_v<Field, bool>) {
      if (text != "on" && text != "off") {
        static constexpr std::array<std::string_view, 2> kChoices = {"on", "off"};
        reject_choice(info.name, text, kChoices);
      }
      field = text == "on";
    } else if constexpr (std::is_enum_v<Field>) {
      const auto& names = EnumNames<Field>::values;
      const auto it = std::find(names.begin(), names.end(), text);
      if (it == names.end()) reject_choice(info.name, text, names);
      field = static_cast<Field>(it - names.begin());
    } else {
      Field value{};
      const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
      const bool whole = error == std::errc() && end == text.data() + text.size();
      const auto number = static_cast<double>(value);
      if (!whole || !std::isfinite(number) || number < info.min || number > info.max) {
        reject_value(
            info.name, text,
            (std::is_floating_point_v<Field> ? "a number " : "a whole number ") + range_text(info));
      }
      field = value;
    }
  }

  CLI::App& app_;
  std::vector<HelpEntry>& help_;
  std::vector<std::string>* given_;
};

}  // namespace lpcd::cli
