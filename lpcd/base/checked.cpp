#include "lpcd/base/checked.h"

#include "lpcd/base/raise.h"

namespace lpcd::internal {

void check_failed(const char* expression, const char* file, int line) {
  raise(ErrorCode::kInternal, "internal check failed: {} ({}:{}); please report this as a bug",
        expression, file, line);
}

void overflow(std::string_view what) {
  raise(ErrorCode::kBadFile,
        "{}: size out of range; the file is damaged or not what it claims to be", what);
}

}  // namespace lpcd::internal
