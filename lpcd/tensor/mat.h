#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <utility>

#include "lpcd/base/checked.h"

namespace lpcd {

/// A row-major matrix owned by somebody else: element (r, c) is data[r * stride + c].
template <typename T>
class MatView {
 public:
  MatView() = default;
  MatView(T* data, int64_t rows, int64_t cols, int64_t stride)
      : data_(data), rows_(rows), cols_(cols), stride_(stride) {}
  MatView(T* data, int64_t rows, int64_t cols) : MatView(data, rows, cols, cols) {}

  /// A view of non-const elements converts to a view of const ones.
  template <typename U>
    requires(std::is_same_v<T, const U>)
  MatView(const MatView<U>& other)  // NOLINT(google-explicit-constructor)
      : MatView(other.data(), other.rows(), other.cols(), other.stride()) {}

  [[nodiscard]] T* data() const { return data_; }
  [[nodiscard]] int64_t rows() const { return rows_; }
  [[nodiscard]] int64_t cols() const { return cols_; }
  [[nodiscard]] int64_t stride() const { return stride_; }
  [[nodiscard]] bool empty() const { return rows_ == 0 || cols_ == 0; }

  [[nodiscard]] T* row(int64_t r) const { return data_ + r * stride_; }
  T& operator()(int64_t r, int64_t c) const { return data_[r * stride_ + c]; }

  [[nodiscard]] MatView rows_range(int64_t begin, int64_t count) const {
    return MatView(data_ + begin * stride_, count, cols_, stride_);
  }
  [[nodiscard]] MatView cols_range(int64_t begin, int64_t count) const {
    return MatView(data_ + begin, rows_, count, stride_);
  }

 private:
  T* data_ = nullptr;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
  int64_t stride_ = 0;
};

using FloatView = MatView<float>;
using ConstView = MatView<const float>;

/// A row-major float matrix that owns its memory.
///
/// Memory    4 * rows * cols bytes, 64-byte aligned (a cache line, and the widest vector).
///           Movable; a copy is explicit through clone().
class Mat {
 public:
  Mat() = default;
  /// Zero-filled.
  Mat(int64_t rows, int64_t cols);
  /// Contents undefined: for buffers that are written before they are read.
  static Mat uninitialized(int64_t rows, int64_t cols);

  [[nodiscard]] Mat clone() const;

  [[nodiscard]] float* data() { return data_.get(); }
  [[nodiscard]] const float* data() const { return data_.get(); }
  [[nodiscard]] int64_t rows() const { return rows_; }
  [[nodiscard]] int64_t cols() const { return cols_; }
  [[nodiscard]] int64_t size() const { return rows_ * cols_; }
  [[nodiscard]] bool empty() const { return size() == 0; }

  [[nodiscard]] float* row(int64_t r) { return data_.get() + r * cols_; }
  [[nodiscard]] const float* row(int64_t r) const { return data_.get() + r * cols_; }
  float& operator()(int64_t r, int64_t c) { return data_[static_cast<size_t>(r * cols_ + c)]; }
  float operator()(int64_t r, int64_t c) const { return data_[static_cast<size_t>(r * cols_ + c)]; }

  [[nodiscard]] FloatView view() { return {data_.get(), rows_, cols_}; }
  [[nodiscard]] ConstView view() const { return {data_.get(), rows_, cols_}; }
  operator FloatView() { return view(); }        // NOLINT(google-explicit-constructor)
  operator ConstView() const { return view(); }  // NOLINT(google-explicit-constructor)

  void set_zero();

 private:
  struct Free {
    void operator()(float* p) const;
  };
  std::unique_ptr<float[], Free> data_;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
};

/// Copies `src` into `dst`, row by row; shapes must agree.
void copy(ConstView src, FloatView dst);

}  // namespace lpcd
