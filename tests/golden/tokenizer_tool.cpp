// Drives lpcd::text::Tokenizer from the comparison with the `tokenizers` package.
//
//   tokenizer_tool TOKENIZER encode|encode-special|decode INPUT OUTPUT
//   tokenizer_tool TOKENIZER json - OUTPUT
//   tokenizer_tool TOKENIZER time INPUT -
//
// TOKENIZER is a tokenizer.json or a GGUF file.
//
// Batches are little-endian: for texts a u32 number of bytes and the bytes, for ids a u32 number of
// ids and the ids (i32), until the end of the file. An error is one line on stderr and exit code 1.

#include <chrono>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <string>
#include <string_view>
#include <vector>

#include "lpcd/io/gguf.h"
#include "lpcd/text/tokenizer.h"

namespace {

using lpcd::text::SpecialTokens;
using lpcd::text::Tokenizer;

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

uint32_t read_u32(std::string_view bytes, size_t at) {
  uint32_t value = 0;
  std::memcpy(&value, bytes.data() + at, 4);
  return value;
}

void append_u32(std::string& out, size_t value) {
  const auto word = static_cast<uint32_t>(value);
  out.append(reinterpret_cast<const char*>(&word), 4);
}

std::string encode_all(const Tokenizer& tokenizer, std::string_view in, SpecialTokens special) {
  std::string out;
  for (size_t at = 0; at < in.size();) {
    const size_t size = read_u32(in, at);
    const std::vector<int32_t> ids = tokenizer.encode(in.substr(at + 4, size), special);
    append_u32(out, ids.size());
    out.append(reinterpret_cast<const char*>(ids.data()), ids.size() * 4);
    at += 4 + size;
  }
  return out;
}

std::string decode_all(const Tokenizer& tokenizer, std::string_view in) {
  std::string out;
  for (size_t at = 0; at < in.size();) {
    const size_t count = read_u32(in, at);
    std::vector<int32_t> ids(count);
    if (count > 0) std::memcpy(ids.data(), in.data() + at + 4, count * 4);
    const std::string text = tokenizer.decode(ids);
    append_u32(out, text.size());
    out += text;
    at += 4 + count * 4;
  }
  return out;
}

Tokenizer open(const std::string& path) {
  if (lpcd::io::is_gguf_file(path)) return Tokenizer::from_gguf(lpcd::io::GgufFile(path));
  return Tokenizer::from_json(read_file(path), path);
}

int run(const std::vector<std::string>& args) {
  using Clock = std::chrono::steady_clock;
  const auto seconds = [](Clock::duration d) { return std::chrono::duration<double>(d).count(); };
  const Clock::time_point start = Clock::now();
  const Tokenizer tokenizer = open(args[0]);
  const double load_s = seconds(Clock::now() - start);
  const std::string& command = args[1];
  std::string out;
  if (command == "encode") {
    out = encode_all(tokenizer, read_file(args[2]), SpecialTokens::kNone);
  } else if (command == "encode-special") {
    out = encode_all(tokenizer, read_file(args[2]), SpecialTokens::kAdd);
  } else if (command == "decode") {
    out = decode_all(tokenizer, read_file(args[2]));
  } else if (command == "json") {
    out = tokenizer.to_json();
  } else if (command == "time") {
    const std::string text = read_file(args[2]);
    const Clock::time_point begin = Clock::now();
    const size_t count = tokenizer.encode(text, SpecialTokens::kNone).size();
    std::cout << "load " << load_s << " s, encode " << seconds(Clock::now() - begin) << " s, "
              << count << " ids\n";
    return 0;
  } else {
    throw std::runtime_error("unknown command " + command);
  }
  std::ofstream(args[3], std::ios::binary) << out;
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::cerr << "usage: tokenizer_tool TOKENIZER encode|encode-special|decode|json|time IN OUT\n";
    return 2;
  }
  try {
    return run(std::vector<std::string>(argv + 1, argv + argc));
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
