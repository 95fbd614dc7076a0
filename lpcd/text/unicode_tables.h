#pragma once

#include <span>

namespace lpcd::text {

struct CharRange {
  char32_t first;
  char32_t last;
};

struct CategoryRange {
  char32_t first;
  char32_t last;
  const char* category;
};

/// Characters that Unicode 15, 15.1 and 16 added, with their category, in order. Distributions ship
/// libraries with older tables.
[[nodiscard]] std::span<const CategoryRange> added_after_unicode_14();

/// Characters with a combining class or a decomposition that came after Unicode 9, in order (and
/// the starters that would compose with them).
[[nodiscard]] std::span<const CharRange> normalized_after_unicode_9();

/// Punctuation that came after Unicode 8, in order.
[[nodiscard]] std::span<const CharRange> punctuation_after_unicode_8();

}  // namespace lpcd::text
