#include "lpcd/base/json.h"

#include <cmath>
#include <utility>
#include <vector>

#include "lpcd/base/raise.h"

namespace lpcd {
namespace {

/// Text from a file on its way into a message: one line of ASCII, of bounded length.
std::string for_message(std::string text) {
  constexpr size_t kMaxBytes = 200;
  if (text.size() > kMaxBytes) text = text.substr(0, kMaxBytes) + "...";
  for (char& c : text) {
    if (c < 0x20 || c > 0x7E) c = '?';
  }
  return text;
}

// Makes the tree from the events of the parser, with the checks that parse_json promises. (The
// library's own builder with a callback looks through all members of an object whenever one of them
// ends: minutes for a header of some MB.)
class TreeBuilder final : public nlohmann::json_sax<Json> {
 public:
  TreeBuilder(std::string_view what, int max_depth) : what_(what), max_depth_(max_depth) {}

  bool null() override { return put(nullptr); }
  bool boolean(bool value) override { return put(value); }
  bool number_integer(number_integer_t value) override { return put(value); }
  bool number_unsigned(number_unsigned_t value) override { return put(value); }
  bool number_float(number_float_t value, const string_t& /*text*/) override { return put(value); }
  bool string(string_t& value) override { return put(std::move(value)); }
  bool binary(binary_t& value) override { return put(std::move(value)); }  // JSON has none

  bool start_object(std::size_t /*size*/) override { return open(Json::object()); }
  bool start_array(std::size_t /*size*/) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    auto& members = open_.back()->get_ref<Json::object_t&>();
    const auto [it, added] = members.try_emplace(name);
    if (!added) {
      raise(ErrorCode::kBadFile, "{}: key {} appears twice in one object; remove one of them",
            what_, for_message(dump_json(name)));
    }
    member_ = &it->second;
    return true;
  }

  bool parse_error(std::size_t /*position*/, const std::string& /*last_token*/,
                   const Json::exception& error) override {
    error_ = error.what();
    return false;
  }

  [[nodiscard]] const std::string& error() const { return error_; }
  [[nodiscard]] Json take() { return std::move(root_); }

 private:
  bool put(Json value) {
    place(std::move(value));
    return true;
  }

  bool open(Json container) {
    open_.push_back(place(std::move(container)));
    if (std::cmp_greater(open_.size(), max_depth_)) {
      raise(ErrorCode::kBadFile, "{}: JSON nested deeper than {} levels; refusing to read it",
            what_, max_depth_);
    }
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  // Stays where it is as long as it is open: an array grows only while none of its elements is.
  Json* place(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return &root_;
    }
    if (open_.back()->is_array()) {
      open_.back()->push_back(std::move(value));
      return &open_.back()->back();
    }
    *member_ = std::move(value);
    return member_;
  }

  std::string_view what_;
  int max_depth_;
  Json root_;
  std::vector<Json*> open_;  // from the root inwards
  Json* member_ = nullptr;   // of the innermost object: whose value is next
  std::string error_;
};

}  // namespace

Json parse_json(std::string_view text, std::string_view what, int max_depth) {
  // The library takes a NUL byte for the end of the text and would not look at what follows.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos) {
    raise(ErrorCode::kBadFile,
          "{}: not valid JSON (NUL byte at offset {}); the file is damaged or incomplete", what,
          nul);
  }
  TreeBuilder builder(what, max_depth);
  if (!Json::sax_parse(text.begin(), text.end(), &builder)) {
    std::string detail = builder.error();  // "[json.exception.parse_error.101] parse error at ..."
    if (const size_t end = detail.find("] "); end != std::string::npos) detail.erase(0, end + 2);
    raise(ErrorCode::kBadFile, "{}: not valid JSON ({}); the file is damaged or incomplete", what,
          for_message(std::move(detail)));
  }
  return builder.take();
}

std::string dump_json(const Json& value, int indent) {
  return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

JsonFields::JsonFields(const Json& object, std::string where)
    : object_(object), where_(std::move(where)) {
  if (!object.is_object()) {
    raise(ErrorCode::kBadFile, "{}: must be a JSON object, found {}", where_, object.type_name());
  }
}

const Json* JsonFields::find(std::string_view key) const {
  const auto it = object_.find(key);
  return it == object_.end() || it->is_null() ? nullptr : &*it;
}

bool JsonFields::has(std::string_view key) const { return find(key) != nullptr; }

const Json& JsonFields::require(std::string_view key) const {
  const Json* value = find(key);
  if (value == nullptr) raise(ErrorCode::kBadFile, "{}: missing \"{}\"", where_, key);
  return *value;
}

void JsonFields::wrong(std::string_view key, std::string_view expected) const {
  std::string found = for_message(dump_json(*find(key)));
  if (found.size() > 60) found = found.substr(0, 57) + "...";
  raise(ErrorCode::kBadFile, "{}: {} must be {}, found {}", where_, key, expected, found);
}

int64_t JsonFields::int_at(std::string_view key, int64_t min, int64_t max) const {
  const Json& value = require(key);
  const std::string range = max == std::numeric_limits<int64_t>::max()
                                ? fmt::format("an integer >= {}", min)
                                : fmt::format("an integer from {} to {}", min, max);
  if (!value.is_number_integer()) wrong(key, range);
  if (value.is_number_unsigned() &&
      std::cmp_greater(value.get<uint64_t>(), std::numeric_limits<int64_t>::max())) {
    wrong(key, range);
  }
  const auto number = value.get<int64_t>();
  if (number < min || number > max) wrong(key, range);
  return number;
}

int64_t JsonFields::int_or(std::string_view key, int64_t fallback, int64_t min, int64_t max) const {
  return has(key) ? int_at(key, min, max) : fallback;
}

double JsonFields::number_at(std::string_view key) const {
  const Json& value = require(key);
  if (!value.is_number() || !std::isfinite(value.get<double>())) wrong(key, "a finite number");
  return value.get<double>();
}

double JsonFields::number_or(std::string_view key, double fallback) const {
  return has(key) ? number_at(key) : fallback;
}

bool JsonFields::bool_or(std::string_view key, bool fallback) const {
  if (!has(key)) return fallback;
  if (!find(key)->is_boolean()) wrong(key, "true or false");
  return find(key)->get<bool>();
}

std::string JsonFields::string_at(std::string_view key) const {
  const Json& value = require(key);
  if (!value.is_string()) wrong(key, "a string");
  return value.get<std::string>();
}

std::string JsonFields::string_or(std::string_view key, std::string_view fallback) const {
  return has(key) ? string_at(key) : std::string(fallback);
}

const Json& JsonFields::object_at(std::string_view key) const {
  const Json& value = require(key);
  if (!value.is_object()) wrong(key, "an object");
  return value;
}

const Json& JsonFields::array_at(std::string_view key) const {
  const Json& value = require(key);
  if (!value.is_array()) wrong(key, "an array");
  return value;
}

}  // namespace lpcd
