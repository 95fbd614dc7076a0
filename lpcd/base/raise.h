#pragma once

#include <fmt/format.h>

#include <utility>

#include "lpcd/base/error.h"

namespace lpcd {

/// Throws Error with a formatted message: the cause, then "; " and the remedy.
template <typename... Args>
[[noreturn]] void raise(ErrorCode code, fmt::format_string<Args...> format, Args&&... args) {
  throw Error(code, fmt::format(format, std::forward<Args>(args)...));
}

/// Runs `body` and puts `where` in front of the message of any Error that leaves it.
template <typename Body>
auto with_context(std::string_view where, Body&& body) -> decltype(body()) {
  try {
    return body();
  } catch (const Error& error) {
    throw error.within(where);
  }
}

}  // namespace lpcd
