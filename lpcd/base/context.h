#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

namespace lpcd {

enum class LogLevel { kInfo, kWarning };

/// Where a long job stands. `done` and `total` are in the job's own cost unit (FLOPs), so that
/// elapsed * (total - done) / done estimates the time left.
struct Progress {
  std::string_view stage;  ///< "calibrate", "quantize", "evaluate", ...
  std::string_view item;   ///< what is being worked on, e.g. "block 3/30 self_attn.q_proj"
  double done = 0;
  double total = 0;
};

/// What a job needs from its surroundings; passed to every long call, never global.
///
/// Threads   `threads` is the number of worker threads; results do not depend on it.
///           `log` and `progress` are called from the calling thread only.
/// Lifetime  `cancel` must outlive the call; null means the job cannot be cancelled.
struct RunContext {
  int threads = 1;
  bool split_products = true;  ///< products may run on bf16 tile units (linalg/split_gemm.h)
  std::function<void(LogLevel, std::string_view)> log;
  std::function<void(const Progress&)> progress;
  const std::atomic<bool>* cancel = nullptr;

  void info(std::string_view text) const {
    if (log) log(LogLevel::kInfo, text);
  }
  void warn(std::string_view text) const {
    if (log) log(LogLevel::kWarning, text);
  }
  void report(const Progress& p) const {
    if (progress) progress(p);
  }
  [[nodiscard]] bool cancelled() const {
    return cancel != nullptr && cancel->load(std::memory_order_relaxed);
  }
  /// Throws kCancelled at a point where it is safe to stop.
  void throw_if_cancelled() const;
};

}  // namespace lpcd
