#pragma once

#include <filesystem>

#include "lpcd/base/json.h"
#include "lpcd/base/raise.h"

namespace lpcd::api {

/// Runs the body of a public function, so that nothing but Error leaves the library (std::bad_alloc
/// excepted): of the standard library's file system kReadFailed, of a JSON value that is not what
/// this version writes kBadFile.
template <typename Body>
auto with_typed_errors(Body&& body) -> decltype(body()) {
  try {
    return body();
  } catch (const std::filesystem::filesystem_error& e) {
    raise(ErrorCode::kReadFailed, "{}: {}; check the path and who may read it", e.path1().string(),
          e.code().message());
  } catch (const Json::exception& e) {
    raise(ErrorCode::kBadFile,
          "a JSON file of the run or model is not what it should be ({}); put it back, or start "
          "again "
          "with another --out",
          e.what());
  }
}

}  // namespace lpcd::api
