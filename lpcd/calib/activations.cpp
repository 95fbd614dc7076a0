#include "lpcd/calib/activations.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "lpcd/base/raise.h"

namespace lpcd::calib {
namespace {

// pread or pwrite of a whole range, through short transfers and signals.
template <typename Transfer>
void transfer_all(char* bytes, size_t size, off_t offset, ErrorCode code,
                  const Transfer& transfer) {
  while (size > 0) {
    const ssize_t done = transfer(bytes, size, offset);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) {
      raise(code, "activation store: {}; free disk space or raise --max-memory",
            done == 0 ? "unexpected end of file" : std::strerror(errno));
    }
    bytes += done;
    size -= static_cast<size_t>(done);
    offset += done;
  }
}

}  // namespace

ActivationStore::ActivationStore(int64_t rows, int64_t cols, const std::string& directory)
    : rows_(rows), cols_(cols) {
  if (directory.empty()) {
    memory_ = Mat::uninitialized(rows, cols);
    return;
  }
  std::string path = directory + "/activations-XXXXXX";
  fd_ = mkostemp(path.data(), O_CLOEXEC);
  if (fd_ < 0) {
    raise(ErrorCode::kWriteFailed, "{}: cannot create a temporary file: {}", directory,
          std::strerror(errno));
  }
  ::unlink(path.c_str());
  // Reserve the space now: a full disk should end the run at its start.
  const int error = posix_fallocate(fd_, 0, rows * cols * static_cast<int64_t>(sizeof(float)));
  if (error != 0) {
    close();
    raise(ErrorCode::kWriteFailed, "{}: cannot reserve {} bytes for activations: {}", directory,
          rows * cols * static_cast<int64_t>(sizeof(float)), std::strerror(error));
  }
}

ActivationStore::ActivationStore(ActivationStore&& other) noexcept
    : rows_(std::exchange(other.rows_, 0)),
      cols_(std::exchange(other.cols_, 0)),
      memory_(std::move(other.memory_)),
      fd_(std::exchange(other.fd_, -1)) {}

ActivationStore& ActivationStore::operator=(ActivationStore&& other) noexcept {
  close();
  rows_ = std::exchange(other.rows_, 0);
  cols_ = std::exchange(other.cols_, 0);
  memory_ = std::move(other.memory_);
  fd_ = std::exchange(other.fd_, -1);
  return *this;
}

ActivationStore::~ActivationStore() { close(); }

void ActivationStore::close() noexcept {
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
}

FloatView ActivationStore::target(int64_t first, int64_t count, Mat& buffer) const {
  LPCD_CHECK(first >= 0 && first + count <= rows_);
  if (fd_ < 0) return memory_.view().rows_range(first, count);
  if (buffer.rows() < count || buffer.cols() != cols_) buffer = Mat::uninitialized(count, cols_);
  return buffer.view().rows_range(0, count);
}

FloatView ActivationStore::read(int64_t first, int64_t count, Mat& buffer) const {
  const FloatView view = target(first, count, buffer);
  if (fd_ >= 0) {
    transfer_all(reinterpret_cast<char*>(view.data()),
                 static_cast<size_t>(count * cols_) * sizeof(float),
                 first * cols_ * static_cast<int64_t>(sizeof(float)), ErrorCode::kReadFailed,
                 [&](char* p, size_t n, off_t at) { return ::pread(fd_, p, n, at); });
  }
  return view;
}

void ActivationStore::write(int64_t first, ConstView rows) {
  LPCD_CHECK(first >= 0 && first + rows.rows() <= rows_ && rows.cols() == cols_);
  if (fd_ < 0) {
    if (rows.data() != memory_.row(first)) {
      copy(rows, memory_.view().rows_range(first, rows.rows()));
    }
    return;
  }
  LPCD_CHECK(rows.stride() == cols_);
  transfer_all(
      reinterpret_cast<char*>(const_cast<float*>(rows.data())),  // NOLINT: pwrite reads only
      static_cast<size_t>(rows.rows() * cols_) * sizeof(float),
      first * cols_ * static_cast<int64_t>(sizeof(float)), ErrorCode::kWriteFailed,
      [&](char* p, size_t n, off_t at) { return ::pwrite(fd_, p, n, at); });
}

}  // namespace lpcd::calib
