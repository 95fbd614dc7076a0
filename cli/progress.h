#pragma once

#include <chrono>
#include <string>

#include "lpcd/base/context.h"

namespace lpcd::cli {

/// Shows progress on stderr: one line that rewrites itself on a terminal, else a line now and then.
///
///   quantize  block 3/30 moments   42 %   elapsed 1 min 02 s   left 1 min 25 s   412 MiB
class ProgressLine {
 public:
  explicit ProgressLine(bool quiet);
  ~ProgressLine();
  ProgressLine(const ProgressLine&) = delete;
  ProgressLine& operator=(const ProgressLine&) = delete;

  void update(const Progress& progress);
  /// Prints a line of its own above the progress.
  void print(LogLevel level, std::string_view text);
  /// Ends the line, so that what follows starts on a fresh one.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;

  bool quiet_;
  bool terminal_;
  bool shown_ = false;
  std::string stage_;
  double stage_first_done_ = 0;
  Clock::time_point stage_start_;
  Clock::time_point last_;
};

}  // namespace lpcd::cli
