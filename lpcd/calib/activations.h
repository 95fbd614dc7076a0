#pragma once

#include <cstdint>
#include <string>

#include "lpcd/tensor/mat.h"

namespace lpcd::calib {

/// A tall [T, C] matrix of activations that is worked on in runs of rows: in memory, or in a
/// temporary file when memory is short.
///
/// Memory    4 * T * C bytes of RAM or disk; a file is unlinked as soon as it is open, so nothing
///           is left behind however the process ends.
/// Errors    kWriteFailed, kReadFailed, kOutOfMemory.
class ActivationStore {
 public:
  ActivationStore() = default;
  /// In memory if `directory` is empty, else in an unnamed file there. Contents undefined.
  ActivationStore(int64_t rows, int64_t cols, const std::string& directory);
  ActivationStore(ActivationStore&& other) noexcept;
  ActivationStore& operator=(ActivationStore&& other) noexcept;
  ~ActivationStore();

  [[nodiscard]] int64_t rows() const { return rows_; }
  [[nodiscard]] int64_t cols() const { return cols_; }
  [[nodiscard]] bool empty() const { return rows_ == 0; }

  /// Rows [first, first + count), to be read or changed. In memory this is the store itself; from a
  /// file it is a copy in `buffer`, which write() puts back.
  [[nodiscard]] FloatView read(int64_t first, int64_t count, Mat& buffer) const;
  /// A place to write rows [first, first + count): as read(), without reading.
  [[nodiscard]] FloatView target(int64_t first, int64_t count, Mat& buffer) const;
  /// Puts rows back that read() or target() gave. Free in memory.
  void write(int64_t first, ConstView rows);

 private:
  void close() noexcept;

  int64_t rows_ = 0;
  int64_t cols_ = 0;
  mutable Mat memory_;
  int fd_ = -1;
};

}  // namespace lpcd::calib
