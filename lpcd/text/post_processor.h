#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lpcd/base/json.h"

namespace lpcd::text {

/// The "post_processor" of a tokenizer.json: the ids in front of a text and behind it.
class PostProcessor {
 public:
  /// Id of a token by name, if there is one.
  using IdOf = std::function<std::optional<int32_t>(std::string_view token)>;

  PostProcessor() = default;
  /// From its JSON, which may be null.
  /// Errors    kBadFile if it names a token that is absent or has another id.
  PostProcessor(const Json& json, const std::string& where, const IdOf& id_of);

  /// Puts other ids in front of a text or behind it.
  void set_front(std::vector<int32_t> ids) { front_ = std::move(ids); }
  void set_back(std::vector<int32_t> ids) { back_ = std::move(ids); }

  [[nodiscard]] const std::vector<int32_t>& front() const { return front_; }
  [[nodiscard]] const std::vector<int32_t>& back() const { return back_; }

 private:
  void add(const Json& json, const std::string& where, const IdOf& id_of, int depth);
  void add_template(const Json& json, const std::string& where, const IdOf& id_of);

  std::vector<int32_t> front_;
  std::vector<int32_t> back_;
};

}  // namespace lpcd::text
