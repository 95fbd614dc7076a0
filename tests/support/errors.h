#pragma once

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <utility>

#include "lpcd/base/error.h"

namespace lpcd::testing {

/// Runs `fn` and checks that it throws an Error of that code whose message has `part` in it.
template <typename Fn>
void expect_error(Fn&& fn, ErrorCode code, std::string_view part) {
  try {
    std::forward<Fn>(fn)();
  } catch (const Error& error) {
    EXPECT_EQ(error_code_name(error.code()), error_code_name(code)) << error.what();
    EXPECT_NE(error.message().find(part), std::string::npos)
        << "message: " << error.what() << "\nlacks:   " << part;
    return;
  }
  ADD_FAILURE() << "nothing was thrown; expected " << error_code_name(code) << " with: " << part;
}

}  // namespace lpcd::testing
