#include "lpcd/io/system_error.h"

#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "lpcd/base/raise.h"

namespace lpcd::io {
namespace {

std::string_view remedy(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "; free some space or choose another place";
    case EACCES:
    case EPERM:
    case EROFS:
      return "; check the permissions or choose another place";
    case EMFILE:
    case ENFILE:
      return "; raise the limit of open files (ulimit -n)";
    default:
      return "";
  }
}

}  // namespace

void raise_system_error(ErrorCode code, std::string_view path, std::string_view action, int error) {
  raise(code, "{}: cannot {}: {}{}", path, action, std::system_category().message(error),
        remedy(error));
}

void raise_read_error(std::string_view path, std::string_view action, int error) {
  const bool absent = error == ENOENT || error == ENOTDIR;
  raise_system_error(absent ? ErrorCode::kFileNotFound : ErrorCode::kReadFailed, path, action,
                     error);
}

Descriptor::~Descriptor() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace lpcd::io
