#include "lpcd/base/context.h"

#include "lpcd/base/error.h"

namespace lpcd {

void RunContext::throw_if_cancelled() const {
  if (cancelled()) throw Error(ErrorCode::kCancelled, "stopped on request");
}

}  // namespace lpcd
