#include "lpcd/text/decoder.h"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <optional>

#include "lpcd/base/raise.h"
#include "lpcd/text/byte_level.h"
#include "lpcd/text/unicode.h"

namespace lpcd::text {
namespace {

constexpr size_t kMaxDecoderSteps = 256;  // real files have up to 4
constexpr int64_t kMaxStrip = 1'000'000;  // of characters; real files have 1

// Byte of a token like "<0xE2>". A sign in front of one digit is fine, as in Rust.
std::optional<char> fallback_byte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token.back() != '>') return std::nullopt;
  const char* begin = token.data() + 3;
  if (*begin == '+') ++begin;
  if (*begin == '-') return std::nullopt;
  unsigned value = 0;
  const auto [end, error] = std::from_chars(begin, token.data() + 5, value, 16);
  if (error != std::errc() || end != token.data() + 5) return std::nullopt;
  return static_cast<char>(value);
}

}  // namespace

Decoder::Decoder(const Json& json, const std::string& where) {
  if (json.is_null()) return;
  joins_with_spaces_ = false;
  add(json, where, 0);
}

void Decoder::add(const Json& json, const std::string& where, int depth) {
  const std::string type = component_type(json, where);
  const JsonFields fields(json, where);
  if (depth > kMaxNesting) raise(ErrorCode::kBadFile, "{}: sequences nested too deep", where);
  if (type == "Sequence") {
    const Json& parts = fields.array_at("decoders");
    for (size_t i = 0; i < parts.size(); ++i) {
      add(parts[i], fmt::format("{}.decoders[{}]", where, i), depth + 1);
    }
  } else if (type == "ByteLevel") {
    steps_.emplace_back(ByteLevel{});
  } else if (type == "ByteFallback") {
    steps_.emplace_back(ByteFallback{});
  } else if (type == "Fuse") {
    steps_.emplace_back(Fuse{});
  } else if (type == "Replace") {
    steps_.emplace_back(Replace{Pattern(fields.object_at("pattern"), where + ".pattern"),
                                fields.string_at("content")});
  } else if (type == "Strip") {
    steps_.emplace_back(Strip{.content = char_at(fields, "content"),
                              .start = fields.int_at("start", 0, kMaxStrip),
                              .stop = fields.int_at("stop", 0, kMaxStrip)});
  } else if (type == "Metaspace") {
    const bool never = fields.string_or("prepend_scheme", "always") == "never" ||
                       !fields.bool_or("add_prefix_space", true);
    steps_.emplace_back(
        Metaspace{.replacement = char_at(fields, "replacement"), .drop_first = !never});
  } else {
    unsupported_component(where, type,
                          "Sequence, ByteLevel, ByteFallback, Fuse, Replace, Strip and Metaspace");
  }
  check_step_count(steps_.size(), kMaxDecoderSteps, where);
}

std::string Decoder::run(std::vector<std::string> tokens, GrowthLimit& limit) const {
  for (const Step& step : steps_) {
    tokens = std::visit([&](const auto& s) { return run(s, std::move(tokens), limit); }, step);
  }
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0 && joins_with_spaces_) text += ' ';
    text += tokens[i];
  }
  return text;
}

Decoder::Tokens Decoder::run(const ByteLevel& /*step*/, Tokens tokens, GrowthLimit& /*limit*/) {
  std::string bytes;
  for (const std::string& token : tokens) {
    const size_t before = bytes.size();
    for (size_t at = 0; at < token.size();) {
      const int byte = byte_of_char(next_char(token, at));
      if (byte < 0) {  // a token that is text, not bytes
        bytes.resize(before);
        bytes += token;
        break;
      }
      bytes.push_back(static_cast<char>(byte));
    }
  }
  return {repair_utf8(bytes)};
}

Decoder::Tokens Decoder::run(const ByteFallback& /*step*/, Tokens tokens, GrowthLimit& /*limit*/) {
  Tokens out;
  std::string bytes;
  const auto flush = [&] {
    if (bytes.empty()) return;
    if (is_utf8(bytes)) {
      out.push_back(std::move(bytes));
    } else {
      out.insert(out.end(), bytes.size(), "\xEF\xBF\xBD");  // one for each byte
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    if (const std::optional<char> byte = fallback_byte(token)) {
      bytes.push_back(*byte);
    } else {
      flush();
      out.push_back(std::move(token));
    }
  }
  flush();
  return out;
}

Decoder::Tokens Decoder::run(const Fuse& /*step*/, Tokens tokens, GrowthLimit& /*limit*/) {
  std::string all;
  for (const std::string& token : tokens) all += token;
  return {std::move(all)};
}

Decoder::Tokens Decoder::run(const Replace& step, Tokens tokens, GrowthLimit& limit) {
  for (std::string& token : tokens) token = step.pattern.replace(token, step.content, limit);
  return tokens;
}

Decoder::Tokens Decoder::run(const Strip& step, Tokens tokens, GrowthLimit& /*limit*/) {
  for (std::string& token : tokens) {
    size_t begin = 0;
    size_t end = token.size();
    for (int64_t i = 0; i < step.start && begin < end; ++i) {
      size_t at = begin;
      if (next_char(token, at) != step.content) break;
      begin = at;
    }
    for (int64_t i = 0; i < step.stop && begin < end; ++i) {
      size_t at = end;
      if (previous_char(token, at) != step.content) break;
      end = at;
    }
    token = token.substr(begin, end - begin);
  }
  return tokens;
}

Decoder::Tokens Decoder::run(const Metaspace& step, Tokens tokens, GrowthLimit& /*limit*/) {
  for (size_t i = 0; i < tokens.size(); ++i) {
    std::string text;
    for (size_t at = 0; at < tokens[i].size();) {
      const char32_t c = next_char(tokens[i], at);
      if (c != step.replacement) {
        append_char(text, c);
      } else if (i > 0 || !step.drop_first) {
        text.push_back(' ');
      }
    }
    tokens[i] = std::move(text);
  }
  return tokens;
}

}  // namespace lpcd::text
