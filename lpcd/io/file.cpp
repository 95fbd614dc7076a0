#include "lpcd/io/file.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <limits>
#include <utility>

#include "lpcd/base/checked.h"
#include "lpcd/base/raise.h"
#include "lpcd/io/system_error.h"

namespace lpcd::io {
namespace {

/// Opens a regular file; O_NONBLOCK so that a pipe of that name cannot hold us up before we refuse
/// it.
int open_regular(const std::string& path, uint64_t& file_bytes) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) raise_read_error(path, "open", errno);
  struct stat status{};
  const int error = ::fstat(fd, &status) == 0 ? 0 : errno;
  if (error != 0 || !S_ISREG(status.st_mode)) {
    ::close(fd);
    if (error != 0) raise_read_error(path, "open", error);
    raise(ErrorCode::kReadFailed, "{}: {}; give the path of a file", path,
          S_ISDIR(status.st_mode) ? "is a directory" : "is not a regular file");
  }
  file_bytes = static_cast<uint64_t>(status.st_size);
  return fd;
}

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();

}  // namespace

MappedFile::MappedFile(std::string path) : path_(std::move(path)) {
  uint64_t file_bytes = 0;
  const Descriptor file(open_regular(path_, file_bytes));
  if (file_bytes == 0) {
    raise(ErrorCode::kBadFile, "{}: the file is empty; fetch it again", path_);
  }
  const auto size = narrow<size_t>(file_bytes, path_);
  void* address = ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file.get(), 0);
  if (address == MAP_FAILED) raise_read_error(path_, "map into memory", errno);
  data_ = static_cast<const std::byte*>(address);
  size_ = size;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
}

void MappedFile::drop(uint64_t offset, uint64_t size) const {
  if (offset >= size_) return;
  const uint64_t page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const uint64_t end = offset + std::min<uint64_t>(size, size_ - offset);
  const uint64_t first = (offset + page - 1) / page * page;
  // Nothing shares the last page of the file with the range that reaches the end.
  const uint64_t last = end == size_ ? end : end / page * page;
  if (first >= last) return;
  // Advice only: where the kernel refuses it, the pages just stay.
  (void)::madvise(const_cast<std::byte*>(data_) + first, last - first, MADV_DONTNEED);
}

std::string read_text_file(const std::string& path, uint64_t max_bytes) {
  // One byte more than allowed tells a file that is too large, whatever size it claims to have.
  std::string text = read_file_start(path, max_bytes == kNoLimit ? kNoLimit : max_bytes + 1);
  if (text.size() > max_bytes) {
    raise(ErrorCode::kBadFile, "{}: larger than the {} bytes that are allowed here", path,
          max_bytes);
  }
  return text;
}

std::string read_file_start(const std::string& path, uint64_t max_bytes) {
  uint64_t file_bytes = 0;
  const Descriptor file(open_regular(path, file_bytes));
  constexpr uint64_t kChunk = 1 << 16;  // for files that grow, or do not tell their size (/proc)
  std::string text;
  uint64_t size = 0;
  while (size < max_bytes) {
    if (size == text.size()) {
      text.resize(std::min(max_bytes, std::max(file_bytes, size + kChunk)));
    }
    const ssize_t n = ::read(file.get(), text.data() + size, text.size() - size);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) raise_read_error(path, "read", errno);
    if (n == 0) break;
    size += static_cast<uint64_t>(n);
  }
  text.resize(size);
  return text;
}

bool exists(const std::string& path) {
  struct stat status{};
  if (::stat(path.c_str(), &status) == 0) return true;
  if (errno != ENOENT && errno != ENOTDIR) raise_read_error(path, "open", errno);
  return false;
}

uint64_t free_disk_bytes(const std::string& path) {
  struct statvfs status{};
  int result = 0;
  do {
    result = ::statvfs(path.c_str(), &status);
  } while (result != 0 && errno == EINTR);
  if (result != 0) raise_read_error(path, "ask for free disk space", errno);
  return uint64_t{status.f_bavail} * uint64_t{status.f_frsize};
}

DirectoryLock::DirectoryLock(const std::string& directory) : path_(directory + "/.lpcd-lock") {
  // The owner removes the file while it holds the lock. Whoever had opened it before then locks a
  // file that has no name any more; the comparison of inodes shows it, and we open anew.
  while (true) {
    const int fd = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (fd < 0) raise_system_error(ErrorCode::kWriteFailed, path_, "create", errno);
    int result = 0;
    do {
      result = ::flock(fd, LOCK_EX | LOCK_NB);
    } while (result != 0 && errno == EINTR);
    if (result != 0) {
      const int error = errno;
      if (error == ENOSYS || error == ENOLCK || error == EOPNOTSUPP) {
        held_ = false;
        fd_ = fd;
        return;
      }
      ::close(fd);
      if (error == EWOULDBLOCK) {
        raise(ErrorCode::kLocked,
              "{}: another process works in this directory; wait for it or choose another one",
              directory);
      }
      raise_system_error(ErrorCode::kWriteFailed, path_, "lock", error);
    }
    struct stat ours{};
    struct stat named{};
    if (::fstat(fd, &ours) == 0 && ::lstat(path_.c_str(), &named) == 0 &&
        ours.st_ino == named.st_ino && ours.st_dev == named.st_dev) {
      fd_ = fd;
      return;
    }
    ::close(fd);
  }
}

DirectoryLock::~DirectoryLock() {
  ::unlink(path_.c_str());
  ::close(fd_);
}

}  // namespace lpcd::io
