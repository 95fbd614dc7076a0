#include "lpcd/tensor/mat.h"

#include <cstdlib>
#include <new>

namespace lpcd {
namespace {
constexpr size_t kAlignment = 64;
}

void Mat::Free::operator()(float* p) const { ::operator delete[](p, std::align_val_t{kAlignment}); }

Mat Mat::uninitialized(int64_t rows, int64_t cols) {
  LPCD_CHECK(rows >= 0 && cols >= 0);
  Mat m;
  const auto bytes = static_cast<size_t>(rows) * static_cast<size_t>(cols) * sizeof(float);
  if (bytes > 0) {
    m.data_.reset(static_cast<float*>(::operator new[](bytes, std::align_val_t{kAlignment})));
  }
  m.rows_ = rows;
  m.cols_ = cols;
  return m;
}

Mat::Mat(int64_t rows, int64_t cols) : Mat(uninitialized(rows, cols)) { set_zero(); }

Mat Mat::clone() const {
  Mat m = uninitialized(rows_, cols_);
  if (!empty()) std::memcpy(m.data(), data(), static_cast<size_t>(size()) * sizeof(float));
  return m;
}

void Mat::set_zero() {
  if (!empty()) std::memset(data(), 0, static_cast<size_t>(size()) * sizeof(float));
}

void copy(ConstView src, FloatView dst) {
  LPCD_CHECK(src.rows() == dst.rows() && src.cols() == dst.cols());
  for (int64_t r = 0; r < src.rows(); ++r) {
    std::memcpy(dst.row(r), src.row(r), static_cast<size_t>(src.cols()) * sizeof(float));
  }
}

}  // namespace lpcd
