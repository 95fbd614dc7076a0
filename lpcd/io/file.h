#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace lpcd::io {

/// A whole file mapped read-only.
///
/// Memory    Pages are the kernel's and come and go; drop() hands a range back early, so that the
///           resident size of a long run does not grow with the checkpoint.
/// Lifetime  Spans are valid while the object lives. Move-only.
/// Errors    kFileNotFound, kReadFailed (a directory, no permission), kBadFile if empty.
class MappedFile {
 public:
  explicit MappedFile(std::string path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  ~MappedFile();

  [[nodiscard]] std::span<const std::byte> bytes() const { return {data_, size_}; }
  [[nodiscard]] const std::string& path() const { return path_; }

  /// Tells the kernel that the pages wholly inside [offset, offset + size) are not needed for now.
  void drop(uint64_t offset, uint64_t size) const;

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

/// A file that is written beside its final name and appears there whole or not at all.
///
/// write() goes to a temporary file in the same directory; commit() syncs it, renames it and syncs
/// the directory. An object destroyed before commit() removes its temporary file; a process that is
/// killed leaves it behind for remove_temporaries().
/// Errors    kWriteFailed with the system's reason ("No space left on device") and the path. After
///           one, the temporary file is gone and the object can only be destroyed.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&&) = delete;
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  ~AtomicFile();

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  /// Makes what was written durable without renaming, and ends the writing. commit() calls it if
  /// needed.
  void sync();
  void commit();

  [[nodiscard]] uint64_t size() const { return size_; }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  void abandon() noexcept;

  std::string path_;
  std::string temporary_;
  int fd_ = -1;
  uint64_t size_ = 0;
  bool synced_ = false;
};

/// Whole text file. kBadFile beyond `max_bytes`, otherwise the errors of MappedFile; an empty file
/// is fine. Like MappedFile it reads regular files only: opening a pipe could wait for ever.
[[nodiscard]] std::string read_text_file(const std::string& path, uint64_t max_bytes);

/// The first `max_bytes` bytes of a file, fewer if it is shorter. Errors as of MappedFile, but an
/// empty file is fine.
[[nodiscard]] std::string read_file_start(const std::string& path, uint64_t max_bytes);

/// AtomicFile in one call.
void write_file(const std::string& path, std::string_view text);

/// mkdir -p; the new entries are durable on return. kWriteFailed with the system's reason.
void make_directories(const std::string& path);

/// True for the names of the temporary files of AtomicFiles.
[[nodiscard]] bool is_temporary(std::string_view file_name);

/// Removes what killed processes left of their AtomicFiles in `directory`. To be called under the
/// DirectoryLock, since a living process's temporary files look the same.
void remove_temporaries(const std::string& directory);

/// True if there is anything at `path` (links are followed). kReadFailed where that cannot be told:
/// no permission, a loop of links, a name that is too long.
[[nodiscard]] bool exists(const std::string& path);

/// Bytes available to this user on the file system of `path` (which must exist).
[[nodiscard]] uint64_t free_disk_bytes(const std::string& path);

/// Exclusive lock on a directory for the life of the object (flock on `DIR/.lpcd-lock`, which the
/// kernel gives up when the process dies, kill -9 included). The file goes with the object.
/// Some file systems have no locks (Lustre without -o flock, NFS without lockd); there the
/// directory is not held.
///
/// Errors    kLocked when another process holds it, kWriteFailed when the file cannot be made.
class DirectoryLock {
 public:
  explicit DirectoryLock(const std::string& directory);
  DirectoryLock(const DirectoryLock&) = delete;
  DirectoryLock& operator=(const DirectoryLock&) = delete;
  ~DirectoryLock();

  /// False where the file system has no locks.
  [[nodiscard]] bool held() const { return held_; }

 private:
  std::string path_;
  int fd_ = -1;
  bool held_ = true;
};

}  // namespace lpcd::io
