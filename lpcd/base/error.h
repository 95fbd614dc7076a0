#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace lpcd {

/// What went wrong, in ranges that decide the exit code of the command.
enum class ErrorCode {
  // usage: the caller asked for something that cannot be
  kBadOption = 1,       ///< unknown option, value out of range, contradicting options
  kResumeMismatch = 2,  ///< --resume with options or inputs other than the run was started with
  kUnsupported = 3,     ///< a valid request that this version does not implement
  // input data: a file is there, but what it holds is wrong
  kBadFile = 100,           ///< malformed container (safetensors, GGUF, JSON)
  kBadModel = 101,          ///< a well-formed file that is not a model we can run
  kMissingTensor = 102,     ///< tensors that the architecture needs are absent
  kShapeMismatch = 103,     ///< a tensor has another shape than the configuration implies
  kNonFinite = 104,         ///< NaN or Inf in weights or activations
  kBadText = 105,           ///< calibration or evaluation text unusable (empty, too short)
  kUnsupportedModel = 106,  ///< an architecture or tensor type outside the supported list
  // io: the operating system said no
  kFileNotFound = 200,  ///< the path does not exist
  kReadFailed = 201,    ///< open, read or mmap failed
  kWriteFailed = 202,   ///< create, write, sync or rename failed (disk full, read-only)
  kOutputExists = 203,  ///< the output directory holds something that is not ours
  kLocked = 204,        ///< another process works on the same output
  // resources
  kOutOfMemory = 300,   ///< an allocation failed
  kMemoryBudget = 301,  ///< --max-memory is below what the run needs
  kOutOfDisk = 302,     ///< not enough free space for the planned output
  // numerics
  kNotPositiveDefinite = 400,  ///< a factorisation failed at every damping tried
  // internal
  kInternal = 900,   ///< a bug in lpcd
  kCancelled = 901,  ///< stopped by the user at a safe point
};

/// The one exception type of the library.
///
/// `what()` is one line: the context from outermost to innermost, then cause and remedy.
/// Context is added while unwinding, e.g. "block 12: self_attn.q_proj: H is not finite; ...".
class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, std::string message);

  [[nodiscard]] ErrorCode code() const noexcept { return code_; }
  [[nodiscard]] const std::string& message() const noexcept { return message_; }

  /// A copy of this error with `where` put in front of the message.
  [[nodiscard]] Error within(std::string_view where) const;

 private:
  ErrorCode code_;
  std::string message_;
};

/// Short stable name of a code ("bad_option"), for JSON output and Python.
std::string_view error_code_name(ErrorCode code);

/// Exit code of the command: 2 usage, 3 input, 4 io, 5 resource, 6 numerics, 70 internal, 130
/// cancelled.
int exit_code(ErrorCode code);

}  // namespace lpcd
