#include "lpcd/base/error.h"

#include <utility>

namespace lpcd {

Error::Error(ErrorCode code, std::string message)
    : std::runtime_error(message), code_(code), message_(std::move(message)) {}

Error Error::within(std::string_view where) const {
  return Error(code_, std::string(where) + ": " + message_);
}

std::string_view error_code_name(ErrorCode code) {
  switch (code) {
    case ErrorCode::kBadOption:
      return "bad_option";
    case ErrorCode::kResumeMismatch:
      return "resume_mismatch";
    case ErrorCode::kUnsupported:
      return "unsupported";
    case ErrorCode::kBadFile:
      return "bad_file";
    case ErrorCode::kBadModel:
      return "bad_model";
    case ErrorCode::kMissingTensor:
      return "missing_tensor";
    case ErrorCode::kShapeMismatch:
      return "shape_mismatch";
    case ErrorCode::kNonFinite:
      return "non_finite";
    case ErrorCode::kBadText:
      return "bad_text";
    case ErrorCode::kUnsupportedModel:
      return "unsupported_model";
    case ErrorCode::kFileNotFound:
      return "file_not_found";
    case ErrorCode::kReadFailed:
      return "read_failed";
    case ErrorCode::kWriteFailed:
      return "write_failed";
    case ErrorCode::kOutputExists:
      return "output_exists";
    case ErrorCode::kLocked:
      return "locked";
    case ErrorCode::kOutOfMemory:
      return "out_of_memory";
    case ErrorCode::kMemoryBudget:
      return "memory_budget";
    case ErrorCode::kOutOfDisk:
      return "out_of_disk";
    case ErrorCode::kNotPositiveDefinite:
      return "not_positive_definite";
    case ErrorCode::kInternal:
      return "internal";
    case ErrorCode::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

int exit_code(ErrorCode code) {
  const int value = static_cast<int>(code);
  if (code == ErrorCode::kCancelled) return 130;
  if (value < 100) return 2;
  if (value < 200) return 3;
  if (value < 300) return 4;
  if (value < 400) return 5;
  if (value < 500) return 6;
  return 70;
}

}  // namespace lpcd
