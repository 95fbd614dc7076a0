#pragma once

#include <string>
#include <string_view>

namespace lpcd::text {

/// The PCRE2 pattern that means what an Oniguruma pattern means in the `tokenizers` package.
///
/// The two libraries differ in \s, \w, \h, in `{n,m}+` (a repetition there, possessive here), in
/// `(?i)` in the middle of a group, and in the age of their Unicode tables.
/// Covers literals, escapes, classes (unions, no intersections), general categories and \p{Han},
/// groups, lookaround, atomic groups, (?i), greedy, lazy and possessive quantifiers, anchors, \b.
/// Errors    kBadFile for a malformed pattern, kUnsupportedModel for anything else Oniguruma knows;
///           `where` goes in front.
[[nodiscard]] std::string pcre2_pattern(std::string_view oniguruma, std::string_view where);

}  // namespace lpcd::text
