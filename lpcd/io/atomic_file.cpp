// The writing half of file.h.

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>
#include <system_error>
#include <utility>

#include "lpcd/base/checked.h"
#include "lpcd/base/raise.h"
#include "lpcd/io/file.h"
#include "lpcd/io/system_error.h"

namespace lpcd::io {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kTemporaryMark = ".lpcd-tmp-";

std::string parent_directory(const std::string& path) {
  const std::string parent = fs::path(path).parent_path().string();
  return parent.empty() ? "." : parent;
}

/// Makes the entries of a directory durable. File systems that cannot do so (EINVAL) are left be.
void sync_directory(const std::string& path) {
  const Descriptor directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() < 0) {
    raise_system_error(ErrorCode::kWriteFailed, path, "open the directory", errno);
  }
  if (::fsync(directory.get()) != 0 && errno != EINVAL && errno != ENOTSUP) {
    raise_system_error(ErrorCode::kWriteFailed, path, "sync the directory", errno);
  }
}

/// DIR/.NAME.lpcd-tmp-PID-N, hidden and removable by pattern; N until a name is free.
std::string temporary_name(const std::string& path, int attempt) {
  const fs::path target(path);
  return (target.parent_path() / fmt::format(".{}{}{}-{}", target.filename().string(),
                                             kTemporaryMark, ::getpid(), attempt))
      .string();
}

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  if (fs::path(path_).filename().empty()) {
    raise(ErrorCode::kWriteFailed, "\"{}\": is not the name of a file", path_);
  }
  constexpr int kAttempts = 10000;  // files of one name that are open at once, or left behind
  int error = EEXIST;
  for (int attempt = 0; fd_ < 0 && error == EEXIST && attempt < kAttempts; ++attempt) {
    temporary_ = temporary_name(path_, attempt);
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    error = errno;
  }
  if (fd_ < 0) raise_system_error(ErrorCode::kWriteFailed, path_, "create", error);
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      fd_(std::exchange(other.fd_, -1)),
      size_(std::exchange(other.size_, 0)),
      synced_(std::exchange(other.synced_, false)) {}

AtomicFile::~AtomicFile() { abandon(); }

void AtomicFile::abandon() noexcept {
  if (fd_ < 0 && !synced_) return;
  ::unlink(temporary_.c_str());
  if (fd_ >= 0) ::close(fd_);
  fd_ = -1;
  synced_ = false;
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  LPCD_CHECK(fd_ >= 0);
  constexpr size_t kMaxCall = size_t{1} << 30;  // systems cap one call at about 2 GiB
  while (!bytes.empty()) {
    const ssize_t n = ::write(fd_, bytes.data(), std::min(bytes.size(), kMaxCall));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      const int error = n < 0 ? errno : EIO;
      abandon();
      raise_system_error(ErrorCode::kWriteFailed, path_, "write", error);
    }
    bytes = bytes.subspan(static_cast<size_t>(n));
    size_ += static_cast<uint64_t>(n);
  }
}

void AtomicFile::write(std::string_view text) { write(std::as_bytes(std::span(text))); }

void AtomicFile::sync() {
  if (synced_) return;
  LPCD_CHECK(fd_ >= 0);
  int result = 0;
  do {
    result = ::fsync(fd_);
  } while (result != 0 && errno == EINTR);
  if (result != 0) {
    // After a failed fsync the kernel may have dropped the dirty pages: trying again proves
    // nothing.
    const int error = errno;
    abandon();
    raise_system_error(ErrorCode::kWriteFailed, path_, "write", error);
  }
  synced_ = true;
  // Thousands of shards may wait for their commit, and a process may have 1024 files open.
  ::close(std::exchange(fd_, -1));
}

void AtomicFile::commit() {
  sync();
  if (std::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error = errno;
    abandon();
    raise_system_error(ErrorCode::kWriteFailed, path_, "put the finished file in place", error);
  }
  synced_ = false;  // nothing to abandon
  sync_directory(parent_directory(path_));
}

void write_file(const std::string& path, std::string_view text) {
  AtomicFile file(path);
  file.write(text);
  file.commit();
}

void make_directories(const std::string& path) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) return;
  const std::string parent = parent_directory(path);
  if (parent != path && parent != ".") make_directories(parent);
  if (::mkdir(path.c_str(), 0777) == 0) {
    sync_directory(parent);
    return;
  }
  const int error = errno;
  // Somebody else was faster, or the path ends in a slash.
  if (error == EEXIST && fs::is_directory(path, ignored)) return;
  raise_system_error(ErrorCode::kWriteFailed, path, "create the directory", error);
}

bool is_temporary(std::string_view file_name) {
  return file_name.starts_with('.') && file_name.find(kTemporaryMark) != std::string_view::npos;
}

void remove_temporaries(const std::string& directory) {
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error)) {
    if (!is_temporary(it->path().filename().string())) continue;
    std::error_code failed;
    fs::remove(it->path(), failed);
    if (failed) {
      raise_system_error(ErrorCode::kWriteFailed, it->path().string(), "remove", failed.value());
    }
  }
  if (error) {
    raise_system_error(ErrorCode::kWriteFailed, directory, "list the directory", error.value());
  }
}

}  // namespace lpcd::io
