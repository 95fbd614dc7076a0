#pragma once

#include <string_view>

#include "lpcd/base/error.h"

namespace lpcd::io {

/// Throws `code` with the system's reason for `error` (an errno value) and, where one is known, the
/// remedy: "out/a.json: cannot write: No space left on device; free some space ...".
[[noreturn]] void raise_system_error(ErrorCode code, std::string_view path, std::string_view action,
                                     int error);

/// The same for reading: kFileNotFound if the path does not exist, else kReadFailed.
[[noreturn]] void raise_read_error(std::string_view path, std::string_view action, int error);

/// A file descriptor that is closed when the object goes.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor();
  [[nodiscard]] int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace lpcd::io
