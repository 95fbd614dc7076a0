#include "command_line.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>

namespace lpcd::cli {
namespace {

// Words of `text` in lines of `width`, every line after the first indented by `indent`.
std::string wrap(const std::string& text, size_t width, size_t indent) {
  std::string out;
  std::string line;
  size_t at = 0;
  while (at < text.size()) {
    size_t end = text.find(' ', at);
    if (end == std::string::npos) end = text.size();
    const std::string word = text.substr(at, end - at);
    at = end + 1;
    if (!line.empty() && line.size() + 1 + word.size() > width) {
      out += line + "\n" + std::string(indent, ' ');
      line.clear();
    }
    line += (line.empty() ? "" : " ") + word;
  }
  return out + line;
}

}  // namespace

void print_error(std::string_view text) {
  if (std::fwrite(text.data(), 1, text.size(), stderr) == text.size()) std::fflush(stderr);
}

size_t help_width() {
  winsize size{};
  if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_col == 0) return 80;
  return std::clamp<size_t>(size.ws_col, 60, 120);
}

std::string format_help(const std::string& usage, const std::string& description,
                        const std::vector<HelpEntry>& entries) {
  constexpr size_t kLeft = 28;
  const size_t width = help_width();
  std::string text =
      "usage: " + wrap(usage, width - 7, 7) + "\n\n" + wrap(description, width, 0) + "\n";
  std::string section;
  for (const HelpEntry& entry : entries) {
    if (entry.section != section) {
      section = entry.section;
      text += "\n" + section + "\n";
    }
    std::string left = "  " + entry.left;
    if (left.size() + 2 > kLeft) {
      text += left + "\n" + std::string(kLeft, ' ');
    } else {
      text += left + std::string(kLeft - left.size(), ' ');
    }
    text += wrap(entry.right, width - kLeft, kLeft) + "\n";
  }
  return text;
}

void reject_value(std::string_view flag, const std::string& text, const std::string& allowed) {
  throw Error(ErrorCode::kBadOption, fmt::format("--{}: \"{}\" is not {}", flag, text, allowed));
}

void reject_choice(std::string_view flag, const std::string& text,
                   std::span<const std::string_view> allowed) {
  throw Error(ErrorCode::kBadOption,
              fmt::format("--{}: unknown value \"{}\", did you mean \"{}\"? Allowed: {}", flag,
                          text, nearest(text, allowed), fmt::join(allowed, ", ")));
}

void reject_extras(const CLI::App& app) {
  const std::vector<std::string> extras = app.remaining(true);
  const std::string& first = extras.at(0);
  if (!first.starts_with("-")) {
    throw Error(ErrorCode::kBadOption, fmt::format("unexpected argument \"{}\"; see lpcd {} --help",
                                                   first, app.get_name()));
  }
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  const std::vector<std::string_view> views(names.begin(), names.end());
  const std::string flag = first.substr(0, first.find('='));
  throw Error(ErrorCode::kBadOption,
              fmt::format("unknown option {}, did you mean {}? See lpcd {} --help", flag,
                          nearest(flag, views), app.get_name()));
}

}  // namespace lpcd::cli
