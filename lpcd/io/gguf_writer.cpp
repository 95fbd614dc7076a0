#include "lpcd/io/gguf_writer.h"

#include <array>
#include <cstring>
#include <limits>
#include <set>

#include "lpcd/base/raise.h"
#include "lpcd/io/gguf_header.h"

namespace lpcd::io {
namespace {

constexpr uint32_t kVersion = 3;
constexpr uint64_t kAlignment = 32;   // what readers take when the file does not say
constexpr size_t kMaxNameBytes = 63;  // GGML_MAX_NAME of llama.cpp is 64, with its final NUL

using Bytes = std::string;

template <typename T>
void put_number(Bytes& out, T value) {
  std::array<char, sizeof(T)> bytes;
  std::memcpy(bytes.data(), &value, sizeof(T));
  out.append(bytes.data(), bytes.size());
}

void put_string(Bytes& out, std::string_view text) {
  put_number<uint64_t>(out, text.size());
  out += text;
}

void put_array_head(Bytes& out, GgufValueType type, size_t count) {
  put_number(out, static_cast<uint32_t>(type));
  put_number<uint64_t>(out, count);
}

uint64_t aligned(uint64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

Bytes make_header(const GgufMetadata& metadata, std::span<const TensorProducer> tensors) {
  Bytes out;
  out += "GGUF";
  put_number(out, kVersion);
  put_number<uint64_t>(out, tensors.size());
  put_number<uint64_t>(out, metadata.values().size());
  for (const auto& [key, value] : metadata.values()) {
    put_string(out, key);
    out += value;
  }
  uint64_t offset = 0;
  std::set<std::string_view> names;
  for (const TensorProducer& tensor : tensors) {
    const TensorInfo& info = tensor.info;
    LPCD_CHECK(names.insert(info.name).second && info.name.size() <= kMaxNameBytes &&
               info.shape.size() <= kMaxGgufDims);
    put_string(out, info.name);
    put_number(out, static_cast<uint32_t>(info.shape.size()));
    for (size_t i = info.shape.size(); i > 0; --i) put_number<int64_t>(out, info.shape[i - 1]);
    put_number(out, gguf_type_id(info.dtype));
    put_number(out, offset);
    offset += aligned(static_cast<uint64_t>(info.bytes()));
  }
  out.resize(aligned(out.size()));
  return out;
}

}  // namespace

Bytes& GgufMetadata::value(std::string_view key, uint32_t type) {
  Bytes& value = values_[std::string(key)];
  value.clear();
  put_number(value, type);
  return value;
}

void GgufMetadata::set_u32(std::string_view key, int64_t number) {
  LPCD_CHECK(number >= 0 && number <= std::numeric_limits<uint32_t>::max());
  put_number(value(key, static_cast<uint32_t>(GgufValueType::kU32)), static_cast<uint32_t>(number));
}

void GgufMetadata::set_f32(std::string_view key, double number) {
  put_number(value(key, static_cast<uint32_t>(GgufValueType::kF32)), static_cast<float>(number));
}

void GgufMetadata::set_bool(std::string_view key, bool flag) {
  put_number(value(key, static_cast<uint32_t>(GgufValueType::kBool)), static_cast<uint8_t>(flag));
}

void GgufMetadata::set_string(std::string_view key, std::string_view text) {
  put_string(value(key, static_cast<uint32_t>(GgufValueType::kString)), text);
}

void GgufMetadata::set_strings(std::string_view key, std::span<const std::string> values) {
  Bytes& out = value(key, static_cast<uint32_t>(GgufValueType::kArray));
  put_array_head(out, GgufValueType::kString, values.size());
  for (const std::string& text : values) put_string(out, text);
}

void GgufMetadata::set_i32s(std::string_view key, std::span<const int64_t> values) {
  Bytes& out = value(key, static_cast<uint32_t>(GgufValueType::kArray));
  put_array_head(out, GgufValueType::kI32, values.size());
  for (const int64_t number : values) put_number(out, static_cast<int32_t>(number));
}

void GgufMetadata::set_f32s(std::string_view key, std::span<const double> values) {
  Bytes& out = value(key, static_cast<uint32_t>(GgufValueType::kArray));
  put_array_head(out, GgufValueType::kF32, values.size());
  for (const double number : values) put_number(out, static_cast<float>(number));
}

void GgufMetadata::set_raw(std::string_view key, std::span<const std::byte> raw) {
  values_[std::string(key)].assign(reinterpret_cast<const char*>(raw.data()), raw.size());
}

void GgufMetadata::erase(std::string_view key) {
  if (const auto it = values_.find(key); it != values_.end()) values_.erase(it);
}

bool GgufMetadata::has(std::string_view key) const { return values_.find(key) != values_.end(); }

GgufSizes gguf_sizes(const GgufMetadata& metadata, std::span<const TensorProducer> tensors) {
  GgufSizes sizes;
  sizes.header = make_header(metadata, tensors).size();
  sizes.file = sizes.header;
  for (const TensorProducer& t : tensors) {
    sizes.file += aligned(static_cast<uint64_t>(t.info.bytes()));
  }
  return sizes;
}

void write_gguf(const std::string& path, const GgufMetadata& metadata,
                std::vector<TensorProducer> tensors, PendingFiles& pending) {
  AtomicFile file(path);
  file.write(make_header(metadata, tensors));
  for (TensorProducer& tensor : tensors) {
    std::vector<std::byte> bytes = tensor.bytes();
    if (std::cmp_not_equal(bytes.size(), tensor.info.bytes())) {
      raise(ErrorCode::kInternal,
            "{}: {}: {} bytes produced for shape {} of {}; please report this as a bug", path,
            tensor.info.name, bytes.size(), tensor.info.shape_text(),
            dtype_info(tensor.info.dtype).name);
    }
    bytes.resize(aligned(bytes.size()));
    file.write(bytes);
    tensor.bytes = nullptr;  // what the producer holds is not needed any more
  }
  file.sync();
  pending.add(std::move(file));
}

}  // namespace lpcd::io
