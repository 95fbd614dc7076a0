#include "lpcd/io/gguf_header.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>
#include <string>
#include <utility>

#include "lpcd/base/checked.h"
#include "lpcd/base/raise.h"
#include "lpcd/io/names.h"

namespace lpcd::io {
namespace {

constexpr std::string_view kAlignmentKey = "general.alignment";
constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMinKeyRecord = 8 + 4 + 1;         // empty name, type, one byte of value
constexpr uint64_t kMinTensorRecord = 8 + 4 + 4 + 8;  // empty name, n_dims 0, type, offset

struct TensorType {
  uint32_t id;
  std::string_view name;
  std::optional<DType> dtype;  // nothing: a type of ggml that lpcd does not read
};

constexpr std::array<TensorType, 37> kTensorTypes = {{
    {0, "F32", DType::kF32},
    {1, "F16", DType::kF16},
    {2, "Q4_0", DType::kQ4_0},
    {3, "Q4_1", DType::kQ4_1},
    {4, "Q4_2", {}},
    {5, "Q4_3", {}},
    {6, "Q5_0", DType::kQ5_0},
    {7, "Q5_1", DType::kQ5_1},
    {8, "Q8_0", DType::kQ8_0},
    {9, "Q8_1", {}},
    {10, "Q2_K", DType::kQ2_K},
    {11, "Q3_K", DType::kQ3_K},
    {12, "Q4_K", DType::kQ4_K},
    {13, "Q5_K", DType::kQ5_K},
    {14, "Q6_K", DType::kQ6_K},
    {15, "Q8_K", {}},
    {16, "IQ2_XXS", {}},
    {17, "IQ2_XS", {}},
    {18, "IQ3_XXS", {}},
    {19, "IQ1_S", {}},
    {20, "IQ4_NL", {}},
    {21, "IQ3_S", {}},
    {22, "IQ2_S", {}},
    {23, "IQ4_XS", {}},
    {24, "I8", DType::kI8},
    {25, "I16", DType::kI16},
    {26, "I32", DType::kI32},
    {27, "I64", DType::kI64},
    {28, "F64", DType::kF64},
    {29, "IQ1_M", {}},
    {30, "BF16", DType::kBF16},
    {34, "TQ1_0", {}},
    {35, "TQ2_0", {}},
    {39, "MXFP4", {}},
    {40, "NVFP4", {}},
    {41, "Q1_0", {}},
    {42, "Q2_0", DType::kQ2_0},
}};

/// Reads forward through the file; `what` names the field when the file ends before it does.
class Cursor {
 public:
  Cursor(std::span<const std::byte> file, std::string_view where) : file_(file), where_(where) {}

  [[nodiscard]] std::string_view where() const { return where_; }
  [[nodiscard]] uint64_t position() const { return position_; }
  [[nodiscard]] uint64_t remaining() const { return file_.size() - position_; }

  std::span<const std::byte> take(uint64_t bytes, std::string_view what) {
    if (bytes > remaining()) {
      raise(ErrorCode::kBadFile,
            "{}: {} goes beyond the end of the file ({} bytes); the file is incomplete or damaged",
            where_, what, file_.size());
    }
    const auto taken = file_.subspan(position_, bytes);
    position_ += bytes;
    return taken;
  }

  template <typename T>
  T read(std::string_view what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  std::string read_string(std::string_view what, uint64_t max_bytes) {
    const auto length = read<uint64_t>(what);
    if (length > max_bytes) {
      raise(ErrorCode::kBadFile, "{}: {}: length {} is above the limit of {} bytes", where_, what,
            length, max_bytes);
    }
    const auto bytes = take(length, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }

 private:
  std::span<const std::byte> file_;
  std::string_view where_;
  uint64_t position_ = 0;
};

[[noreturn]] void bad(const Cursor& in, std::string_view what, std::string_view cause) {
  raise(ErrorCode::kBadFile, "{}: {} {}; the file is damaged", in.where(), what, cause);
}

bool read_bool(Cursor& in, std::string_view what) {
  const auto value = in.read<uint8_t>(what);
  if (value > 1) bad(in, what, fmt::format("is a bool with the value {}", value));
  return value != 0;
}

uint64_t read_array_count(Cursor& in, std::string_view what, uint64_t min_element_bytes) {
  const auto count = in.read<uint64_t>(what);
  if (count > kMaxGgufArray) {
    bad(in, what, fmt::format("has {} elements, at most {} are allowed", count, kMaxGgufArray));
  }
  if (count > in.remaining() / min_element_bytes) {
    bad(in, what, fmt::format("has {} elements, more than the file has room for", count));
  }
  return count;
}

template <typename Stored, typename Wide>
std::vector<Wide> read_numbers(Cursor& in, std::string_view what) {
  const uint64_t count = read_array_count(in, what, sizeof(Stored));
  const std::byte* p = in.take(count * sizeof(Stored), what).data();
  std::vector<Wide> values(count);
  for (uint64_t i = 0; i < count; ++i) {
    Stored stored;
    std::memcpy(&stored, p + i * sizeof(Stored), sizeof(Stored));
    values[i] = static_cast<Wide>(stored);  // NOLINT(bugprone-signed-char-misuse): int8 is meant
  }
  return values;
}

GgufValue read_array(Cursor& in, std::string_view what) {
  const auto type = in.read<uint32_t>(what);
  switch (static_cast<GgufValueType>(type)) {
    case GgufValueType::kU8:
      return read_numbers<uint8_t, uint64_t>(in, what);
    case GgufValueType::kI8:
      return read_numbers<int8_t, int64_t>(in, what);
    case GgufValueType::kU16:
      return read_numbers<uint16_t, uint64_t>(in, what);
    case GgufValueType::kI16:
      return read_numbers<int16_t, int64_t>(in, what);
    case GgufValueType::kU32:
      return read_numbers<uint32_t, uint64_t>(in, what);
    case GgufValueType::kI32:
      return read_numbers<int32_t, int64_t>(in, what);
    case GgufValueType::kU64:
      return read_numbers<uint64_t, uint64_t>(in, what);
    case GgufValueType::kI64:
      return read_numbers<int64_t, int64_t>(in, what);
    case GgufValueType::kF32:
      return read_numbers<float, double>(in, what);
    case GgufValueType::kF64:
      return read_numbers<double, double>(in, what);
    case GgufValueType::kBool: {
      std::vector<bool> values(read_array_count(in, what, 1));
      for (size_t i = 0; i < values.size(); ++i) values[i] = read_bool(in, what);
      return values;
    }
    case GgufValueType::kString: {
      std::vector<std::string> values(read_array_count(in, what, sizeof(uint64_t)));
      for (std::string& value : values) value = in.read_string(what, kMaxGgufStringBytes);
      return values;
    }
    case GgufValueType::kArray:
      bad(in, what, "is an array of arrays, which no reader takes");
  }
  bad(in, what, fmt::format("is an array of the unknown type {}", type));
}

GgufValue read_value(Cursor& in, uint32_t type, std::string_view what) {
  switch (static_cast<GgufValueType>(type)) {
    case GgufValueType::kU8:
      return uint64_t{in.read<uint8_t>(what)};
    case GgufValueType::kI8:
      return int64_t{in.read<int8_t>(what)};
    case GgufValueType::kU16:
      return uint64_t{in.read<uint16_t>(what)};
    case GgufValueType::kI16:
      return int64_t{in.read<int16_t>(what)};
    case GgufValueType::kU32:
      return uint64_t{in.read<uint32_t>(what)};
    case GgufValueType::kI32:
      return int64_t{in.read<int32_t>(what)};
    case GgufValueType::kU64:
      return in.read<uint64_t>(what);
    case GgufValueType::kI64:
      return in.read<int64_t>(what);
    case GgufValueType::kF32:
      return double{in.read<float>(what)};
    case GgufValueType::kF64:
      return in.read<double>(what);
    case GgufValueType::kBool:
      return read_bool(in, what);
    case GgufValueType::kString:
      return in.read_string(what, kMaxGgufStringBytes);
    case GgufValueType::kArray:
      return read_array(in, what);
  }
  bad(in, what, fmt::format("has the unknown value type {}", type));
}

void check_magic_and_version(Cursor& in) {
  const auto magic = in.take(4, "magic");
  const std::string_view text(reinterpret_cast<const char*>(magic.data()), magic.size());
  if (text != "GGUF") {
    raise(ErrorCode::kBadFile, "{}: begins with {}, not with \"GGUF\"; it is no GGUF file",
          in.where(), in_quotes(text));
  }
  const auto version = in.read<uint32_t>("version");
  if (version == 2 || version == 3) return;
  if (version == 0) bad(in, "version", "is 0");
  if (version == 1) {
    raise(ErrorCode::kUnsupportedModel,
          "{}: version 1 of GGUF is not supported; convert the model again with a current tool",
          in.where());
  }
  if ((version & 0xFFFFU) == 0) {
    raise(ErrorCode::kUnsupportedModel,
          "{}: is a big-endian GGUF file, which is not supported; use a little-endian one",
          in.where());
  }
  raise(ErrorCode::kUnsupportedModel,
        "{}: version {} of GGUF is newer than 3, the last that is supported", in.where(), version);
}

void check_count(const Cursor& in, std::string_view what, uint64_t count, uint64_t limit,
                 uint64_t min_record_bytes) {
  if (count > limit) bad(in, what, fmt::format("is {}, at most {} are allowed", count, limit));
  if (count > in.remaining() / min_record_bytes) {
    bad(in, what, fmt::format("is {}, more than the file has room for", count));
  }
}

void read_metadata(Cursor& in, uint64_t count, GgufHeader& header) {
  for (uint64_t i = 0; i < count; ++i) {
    const std::string place = fmt::format("name of key {} of {}", i + 1, count);
    std::string key = in.read_string(place, kMaxGgufKeyBytes);
    if (key.empty()) bad(in, place, "is empty");
    check_name(key, place, kMaxGgufKeyBytes, in.where());
    const std::string what = fmt::format("key {}", in_quotes(key));
    const uint64_t begin = in.position();
    const auto type = in.read<uint32_t>(what);
    if (key == kAlignmentKey && static_cast<GgufValueType>(type) != GgufValueType::kU32) {
      bad(in, what, fmt::format("must be a u32, found value type {}", type));
    }
    GgufValue value = read_value(in, type, what);
    header.values.try_emplace(key, begin, in.position() - begin);
    if (!header.metadata.try_emplace(std::move(key), std::move(value)).second) {
      bad(in, what, "appears twice");
    }
  }
}

uint64_t alignment_of(const Cursor& in, const GgufFile::Metadata& metadata) {
  const auto it = metadata.find(kAlignmentKey);
  if (it == metadata.end()) return kDefaultAlignment;
  const auto alignment = std::get<uint64_t>(it->second);
  if (!std::has_single_bit(alignment)) {
    bad(in, kAlignmentKey, fmt::format("is {}, not a power of two", alignment));
  }
  return alignment;
}

void refuse_split_files(const Cursor& in, const GgufFile::Metadata& metadata) {
  const auto it = metadata.find("split.count");
  if (it == metadata.end()) return;
  const auto* count = std::get_if<uint64_t>(&it->second);
  if (count == nullptr || *count <= 1) return;
  raise(ErrorCode::kUnsupportedModel,
        "{}: is one of {} parts of a split model; merge them first (llama-gguf-split --merge)",
        in.where(), *count);
}

DType read_tensor_type(Cursor& in, std::string_view what) {
  const auto id = in.read<uint32_t>(what);
  const auto* const type = std::ranges::find(kTensorTypes, id, &TensorType::id);
  if (type == kTensorTypes.end()) {
    raise(ErrorCode::kUnsupportedModel,
          "{}: {} has the unknown type {}; the file is damaged or newer than this program",
          in.where(), what, id);
  }
  if (!type->dtype) {
    raise(ErrorCode::kUnsupportedModel,
          "{}: {} has type {}, which is not supported; use a file in F16, BF16, F32, Q8_0 or "
          "Q2_K to Q6_K",
          in.where(), what, type->name);
  }
  return *type->dtype;
}

/// A tensor with its offset into the data section as `begin`.
GgufTensor read_tensor(Cursor& in, const std::string& place) {
  GgufTensor tensor;
  tensor.info.name = in.read_string(place, kMaxGgufName);
  if (tensor.info.name.empty()) bad(in, place, "has no name");
  check_name(tensor.info.name, place, kMaxGgufName, in.where());
  const std::string what = fmt::format("tensor \"{}\"", tensor.info.name);
  const auto n_dims = in.read<uint32_t>(what);
  if (n_dims > kMaxGgufDims) {
    bad(in, what, fmt::format("has {} dimensions, at most {} are allowed", n_dims, kMaxGgufDims));
  }
  for (uint32_t i = 0; i < n_dims; ++i) {
    const auto extent = in.read<int64_t>(what);
    if (extent <= 0) bad(in, what, fmt::format("has dimension {} of size {}", i, extent));
    tensor.info.shape.insert(tensor.info.shape.begin(), extent);  // innermost first in the file
  }
  tensor.info.dtype = read_tensor_type(in, what);
  tensor.begin = in.read<uint64_t>(what);
  return tensor;
}

/// Turns offsets into positions in the file and checks that the data are there, each byte once.
void place_tensors(const Cursor& in, uint64_t alignment, uint64_t file_bytes,
                   std::vector<GgufTensor>& tensors) {
  if (tensors.empty()) return;
  const uint64_t padded = checked_add(in.position(), alignment - 1, in.where());
  const uint64_t data_begin = padded / alignment * alignment;
  std::vector<std::pair<uint64_t, const GgufTensor*>> ends;  // of all tensors, for the overlaps
  for (GgufTensor& tensor : tensors) {
    const std::string what = fmt::format("tensor \"{}\"", tensor.info.name);
    const auto bytes =
        static_cast<uint64_t>(with_context(in.where(), [&] { return tensor.info.bytes(); }));
    if (tensor.begin % alignment != 0) {
      bad(in, what,
          fmt::format("has offset {}, not a multiple of the alignment {}", tensor.begin,
                      alignment));
    }
    const std::string overflow = fmt::format("{}: {}: offset", in.where(), what);
    tensor.begin = checked_add(data_begin, tensor.begin, overflow);
    if (const uint64_t end = checked_add(tensor.begin, bytes, overflow); end > file_bytes) {
      raise(ErrorCode::kBadFile,
            "{}: {} ends at byte {}, but the file has only {}; the download is incomplete, fetch "
            "it again",
            in.where(), what, end, file_bytes);
    }
    ends.emplace_back(tensor.begin + bytes, &tensor);
  }
  std::ranges::sort(ends);
  for (size_t i = 1; i < ends.size(); ++i) {
    if (ends[i].second->begin < ends[i - 1].first) {
      bad(in, fmt::format("tensor \"{}\"", ends[i].second->info.name),
          fmt::format("overlaps tensor \"{}\"", ends[i - 1].second->info.name));
    }
  }
}

}  // namespace

uint32_t gguf_type_id(DType dtype) {
  const auto* const type =
      std::ranges::find(kTensorTypes, std::optional<DType>(dtype), &TensorType::dtype);
  LPCD_CHECK(type != kTensorTypes.end());
  return type->id;
}

GgufHeader parse_gguf(std::span<const std::byte> file, std::string_view where) {
  Cursor in(file, where);
  check_magic_and_version(in);
  const auto tensor_count = in.read<uint64_t>("tensor count");
  const auto key_count = in.read<uint64_t>("key count");
  check_count(in, "tensor count", tensor_count, kMaxGgufTensors, kMinTensorRecord);
  check_count(in, "key count", key_count, kMaxGgufKeys, kMinKeyRecord);
  GgufHeader header;
  read_metadata(in, key_count, header);
  refuse_split_files(in, header.metadata);
  const uint64_t alignment = alignment_of(in, header.metadata);
  header.tensors.reserve(tensor_count);
  for (uint64_t i = 0; i < tensor_count; ++i) {
    header.tensors.push_back(read_tensor(in, fmt::format("tensor {} of {}", i + 1, tensor_count)));
  }
  place_tensors(in, alignment, file.size(), header.tensors);
  return header;
}

}  // namespace lpcd::io
