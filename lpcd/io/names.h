#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lpcd::io {

/// True for well-formed UTF-8 without control characters: what may stand in a message, a log line
/// or a JSON report as it is.
[[nodiscard]] bool is_printable_utf8(std::string_view text);

/// Refuses names of tensors and keys that are not printable UTF-8 or longer than `max_bytes`.
/// Errors    kBadFile: "WHERE: KIND ... "
void check_name(std::string_view name, std::string_view kind, size_t max_bytes,
                std::string_view where);

/// `text` in quotes, with everything unprintable escaped and cut after a line's worth of bytes.
[[nodiscard]] std::string in_quotes(std::string_view text);

/// "a, b, c and 17 more": all of them when they are few.
[[nodiscard]] std::string listed(const std::vector<std::string>& items);

}  // namespace lpcd::io
