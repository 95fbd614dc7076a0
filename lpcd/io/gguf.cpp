#include "lpcd/io/gguf.h"

#include <cmath>
#include <filesystem>
#include <limits>
#include <system_error>
#include <utility>

#include "lpcd/base/raise.h"
#include "lpcd/io/gguf_header.h"

namespace lpcd::io {
namespace {

[[noreturn]] void wrong_type(const GgufFile& file, std::string_view key,
                             std::string_view expected) {
  raise(ErrorCode::kBadModel, "{}: key \"{}\" must be {}", file.path(), key, expected);
}

const GgufValue& require(const GgufFile& file, std::string_view key) {
  const GgufValue* value = file.find_key(key);
  if (value == nullptr) {
    raise(ErrorCode::kBadModel, "{}: missing key \"{}\"; the file holds no complete model",
          file.path(), key);
  }
  return *value;
}

}  // namespace

GgufFile::GgufFile(const std::string& path) : file_(path) {
  GgufHeader header = parse_gguf(file_.bytes(), path);
  metadata_ = std::move(header.metadata);
  values_ = std::move(header.values);
  std::vector<TensorInfo> infos;
  infos.reserve(header.tensors.size());
  for (GgufTensor& tensor : header.tensors) {
    offsets_.try_emplace(tensor.info.name, tensor.begin);
    infos.push_back(std::move(tensor.info));
  }
  set_tensors(std::move(infos), path);
}

const GgufValue* GgufFile::find_key(std::string_view key) const {
  const auto it = metadata_.find(key);
  return it == metadata_.end() ? nullptr : &it->second;
}

std::span<const std::byte> GgufFile::raw_value(std::string_view key) const {
  const auto it = values_.find(key);
  if (it == values_.end()) return {};
  return file_.bytes().subspan(it->second.first, it->second.second);
}

int64_t GgufFile::int_at(std::string_view key) const {
  const GgufValue& value = require(*this, key);
  if (const auto* number = std::get_if<int64_t>(&value)) return *number;
  if (const auto* number = std::get_if<uint64_t>(&value)) {
    if (std::cmp_less_equal(*number, std::numeric_limits<int64_t>::max())) {
      return static_cast<int64_t>(*number);
    }
  }
  wrong_type(*this, key, "an integer below 2^63");
}

int64_t GgufFile::int_or(std::string_view key, int64_t fallback) const {
  return find_key(key) == nullptr ? fallback : int_at(key);
}

double GgufFile::number_at(std::string_view key) const {
  const GgufValue& value = require(*this, key);
  if (const auto* number = std::get_if<double>(&value)) {
    if (std::isfinite(*number)) return *number;
  }
  if (const auto* number = std::get_if<int64_t>(&value)) return static_cast<double>(*number);
  if (const auto* number = std::get_if<uint64_t>(&value)) return static_cast<double>(*number);
  wrong_type(*this, key, "a finite number");
}

double GgufFile::number_or(std::string_view key, double fallback) const {
  return find_key(key) == nullptr ? fallback : number_at(key);
}

bool GgufFile::bool_or(std::string_view key, bool fallback) const {
  const GgufValue* value = find_key(key);
  if (value == nullptr) return fallback;
  if (const auto* flag = std::get_if<bool>(value)) return *flag;
  wrong_type(*this, key, "true or false");
}

std::string GgufFile::string_at(std::string_view key) const {
  if (const auto* text = std::get_if<std::string>(&require(*this, key))) return *text;
  wrong_type(*this, key, "a string");
}

std::string GgufFile::string_or(std::string_view key, std::string_view fallback) const {
  return find_key(key) == nullptr ? std::string(fallback) : string_at(key);
}

std::span<const std::byte> GgufFile::raw(std::string_view name) const {
  const auto bytes = static_cast<size_t>(at(name).bytes());
  return file_.bytes().subspan(offsets_.find(name)->second, bytes);
}

void GgufFile::release(std::string_view name) const {
  const auto bytes = static_cast<uint64_t>(at(name).bytes());
  file_.drop(offsets_.find(name)->second, bytes);
}

std::string GgufFile::location(std::string_view name) const {
  (void)at(name);
  const size_t slash = path().find_last_of('/');
  return slash == std::string::npos ? path() : path().substr(slash + 1);
}

bool is_gguf_file(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) return false;
  return read_file_start(path, 4) == "GGUF";
}

}  // namespace lpcd::io
