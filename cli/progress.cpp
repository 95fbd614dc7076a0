#include "progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <fstream>

#include "command_line.h"
#include "lpcd/base/options.h"

namespace lpcd::cli {
namespace {

constexpr auto kTerminalPause = std::chrono::milliseconds(200);
constexpr auto kLogPause = std::chrono::seconds(10);

uint64_t resident_bytes() {
  std::ifstream statm("/proc/self/statm");
  uint64_t total = 0;
  uint64_t resident = 0;
  statm >> total >> resident;
  return resident * static_cast<uint64_t>(sysconf(_SC_PAGE_SIZE));
}

}  // namespace

ProgressLine::ProgressLine(bool quiet) : quiet_(quiet), terminal_(isatty(STDERR_FILENO) != 0) {}

ProgressLine::~ProgressLine() { finish(); }

void ProgressLine::update(const Progress& p) {
  if (quiet_) return;
  const auto now = Clock::now();
  if (stage_ != p.stage) {
    stage_ = p.stage;
    stage_start_ = now;
    stage_first_done_ = p.done;  // a resumed run starts in the middle
    last_ = now - kLogPause;
  }
  const bool complete = p.done >= p.total;
  if (!complete &&
      now - last_ < (terminal_ ? Clock::duration(kTerminalPause) : Clock::duration(kLogPause)))
    return;
  last_ = now;
  const double elapsed = std::chrono::duration<double>(now - stage_start_).count();
  const double worked = p.done - stage_first_done_;
  const std::string left = worked > 0 && elapsed > 1
                               ? format_duration(elapsed * (p.total - p.done) / worked)
                               : std::string("?");
  const double share = p.total > 0 ? 100 * std::min(1.0, p.done / p.total) : 0;
  std::string line = fmt::format("{:<10}{:<34}{:4.0f} %   elapsed {}   left {}   {}", p.stage,
                                 p.item, share, format_duration(elapsed), complete ? "0 s" : left,
                                 format_bytes(resident_bytes()));
  if (terminal_) {
    print_error(fmt::format("\r\033[K{}", line));
    shown_ = true;
  } else {
    print_error(line + "\n");
  }
}

void ProgressLine::print(LogLevel level, std::string_view text) {
  if (quiet_ && level == LogLevel::kInfo) return;
  finish();
  print_error(fmt::format("{}{}\n", level == LogLevel::kWarning ? "warning: " : "", text));
}

void ProgressLine::finish() {
  if (shown_) print_error("\n");
  shown_ = false;
}

}  // namespace lpcd::cli
