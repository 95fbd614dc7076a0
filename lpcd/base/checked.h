#pragma once

#include <cstdint>
#include <limits>
#include <string_view>
#include <type_traits>

#include "lpcd/base/error.h"

namespace lpcd {

namespace internal {
[[noreturn]] void check_failed(const char* expression, const char* file, int line);
[[noreturn]] void overflow(std::string_view what);
}  // namespace internal

/// Our own invariants: always on, cheap, throws kInternal. Never triggered by user input.
#define LPCD_CHECK(expression) \
  ((expression) ? (void)0 : ::lpcd::internal::check_failed(#expression, __FILE__, __LINE__))

/// a * b, or kBadFile naming `what` on overflow. For sizes computed from a file.
template <typename T>
[[nodiscard]] T checked_mul(T a, T b, std::string_view what) {
  static_assert(std::is_integral_v<T>);
  T result;
  if (__builtin_mul_overflow(a, b, &result)) internal::overflow(what);
  return result;
}

/// a + b, or kBadFile naming `what` on overflow. For sizes computed from a file.
template <typename T>
[[nodiscard]] T checked_add(T a, T b, std::string_view what) {
  static_assert(std::is_integral_v<T>);
  T result;
  if (__builtin_add_overflow(a, b, &result)) internal::overflow(what);
  return result;
}

/// Value-preserving integer conversion, or kBadFile naming `what`.
template <typename To, typename From>
[[nodiscard]] To narrow(From value, std::string_view what) {
  static_assert(std::is_integral_v<To> && std::is_integral_v<From>);
  const To result = static_cast<To>(value);
  if (static_cast<From>(result) != value || (result < To{}) != (value < From{})) {
    internal::overflow(what);
  }
  return result;
}

/// ceil(a / b) for a >= 0, b > 0.
[[nodiscard]] constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace lpcd
