#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

namespace lpcd {

/// The only header that names the JSON library. Objects keep their keys sorted, so that what we
/// write is reproducible.
using Json = nlohmann::json;

/// Parses untrusted text.
///
/// Errors    kBadFile, with `what` (a file name) in front: not JSON, not UTF-8, nested deeper than
///           `max_depth`, or a key given twice in one object. Other readers take the first or the
///           last of two equal keys, so a file that has them means different things to them.
[[nodiscard]] Json parse_json(std::string_view text, std::string_view what, int max_depth = 64);

/// Text of a value: compact when `indent` < 0. Strings that are not UTF-8 are repaired.
[[nodiscard]] std::string dump_json(const Json& value, int indent = -1);

/// Checked access to the fields of one JSON object. All errors are kBadFile or `code` and name the
/// place and the key: "config.json: hidden_size must be an integer >= 1, found \"abc\"".
///
/// Lifetime  Refers to the object; `where` is copied.
class JsonFields {
 public:
  JsonFields(const Json& object, std::string where);

  [[nodiscard]] bool has(std::string_view key) const;          ///< present and not null
  [[nodiscard]] const Json* find(std::string_view key) const;  ///< null if absent or JSON null

  [[nodiscard]] int64_t int_at(std::string_view key, int64_t min,
                               int64_t max = std::numeric_limits<int64_t>::max()) const;
  [[nodiscard]] int64_t int_or(std::string_view key, int64_t fallback, int64_t min,
                               int64_t max = std::numeric_limits<int64_t>::max()) const;
  [[nodiscard]] double number_at(std::string_view key) const;  ///< finite
  [[nodiscard]] double number_or(std::string_view key, double fallback) const;
  [[nodiscard]] bool bool_or(std::string_view key, bool fallback) const;
  [[nodiscard]] std::string string_at(std::string_view key) const;
  [[nodiscard]] std::string string_or(std::string_view key, std::string_view fallback) const;
  [[nodiscard]] const Json& object_at(std::string_view key) const;
  [[nodiscard]] const Json& array_at(std::string_view key) const;

  [[nodiscard]] const std::string& where() const { return where_; }

 private:
  const Json& require(std::string_view key) const;
  [[noreturn]] void wrong(std::string_view key, std::string_view expected) const;

  const Json& object_;
  std::string where_;
};

}  // namespace lpcd
