#include "lpcd/io/safetensors_header.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <utility>

#include "lpcd/base/checked.h"
#include "lpcd/base/json.h"
#include "lpcd/base/raise.h"
#include "lpcd/io/names.h"

namespace lpcd::io {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr std::string_view kMetadataKey = "__metadata__";

/// A tensor with its offsets as the header gives them.
struct Entry {
  TensorInfo info;
  uint64_t begin = 0;
  uint64_t end = 0;
};

/// The N bytes of JSON, checked as far as that goes without parsing.
std::string_view header_text(std::span<const std::byte> file, std::string_view where) {
  if (file.size() < kLengthBytes) {
    raise(ErrorCode::kBadFile, "{}: {} bytes are too few for a safetensors file; fetch it again",
          where, file.size());
  }
  uint64_t length = 0;
  std::memcpy(&length, file.data(), kLengthBytes);
  if (length > kMaxSafetensorsHeaderBytes) {
    raise(ErrorCode::kBadFile,
          "{}: header length {} is above the limit of {} bytes; the file is damaged or no "
          "safetensors file",
          where, length, kMaxSafetensorsHeaderBytes);
  }
  if (length > file.size() - kLengthBytes) {
    raise(ErrorCode::kBadFile,
          "{}: header length {} goes beyond the end of the file ({} bytes); the download is "
          "incomplete, fetch it again",
          where, length, file.size());
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kLengthBytes, length);
  if (!text.starts_with('{')) {
    raise(ErrorCode::kBadFile,
          "{}: the header does not begin with \"{{\"; the file is damaged or no safetensors file",
          where);
  }
  return text;
}

/// A size in the header. Only plain non-negative integers: 1.0, 1e3 and -0 are refused, too.
uint64_t size_value(const Json& value, std::string_view what, std::string_view where) {
  if (!value.is_number_unsigned()) {
    raise(ErrorCode::kBadFile, "{}: {} must hold integers >= 0, found {}", where, what,
          in_quotes(dump_json(value)));
  }
  return value.get<uint64_t>();
}

DType parse_dtype(const std::string& name, std::string_view where) {
  if (const std::optional<DType> dtype = dtype_from_name(name)) return *dtype;
  // The other types of safetensors 0.8.
  constexpr std::array<std::string_view, 9> kUnread = {"C64",     "F4",          "F6_E2M3",
                                                       "F6_E3M2", "F8_E4M3",     "F8_E5M2",
                                                       "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"};
  if (std::ranges::find(kUnread, name) != kUnread.end()) {
    raise(ErrorCode::kUnsupportedModel,
          "{}: dtype {} is not supported; use a checkpoint in BF16, F16 or F32", where, name);
  }
  raise(ErrorCode::kBadFile, "{}: unknown dtype {}; the file is damaged", where, in_quotes(name));
}

Entry parse_entry(const std::string& name, const Json& value, std::string_view file) {
  check_name(name, "tensor name", kMaxSafetensorsName, file);
  const std::string where = fmt::format("{}: tensor \"{}\"", file, name);
  const JsonFields fields(value, where);
  Entry entry;
  entry.info.name = name;
  entry.info.dtype = parse_dtype(fields.string_at("dtype"), where);
  const Json& shape = fields.array_at("shape");
  if (shape.size() > kMaxSafetensorsRank) {
    raise(ErrorCode::kBadFile, "{}: shape has {} dimensions, at most {} are allowed", where,
          shape.size(), kMaxSafetensorsRank);
  }
  for (const Json& extent : shape) {
    entry.info.shape.push_back(narrow<int64_t>(size_value(extent, "shape", where), where));
  }
  const Json& offsets = fields.array_at("data_offsets");
  if (offsets.size() != 2) {
    raise(ErrorCode::kBadFile, "{}: data_offsets must be [begin, end], found {} values", where,
          offsets.size());
  }
  entry.begin = size_value(offsets[0], "data_offsets", where);
  entry.end = size_value(offsets[1], "data_offsets", where);
  if (entry.end < entry.begin) {
    raise(ErrorCode::kBadFile, "{}: data_offsets [{}, {}] are reversed; the file is damaged", where,
          entry.begin, entry.end);
  }
  const auto bytes = static_cast<uint64_t>(with_context(file, [&] { return entry.info.bytes(); }));
  if (entry.end - entry.begin != bytes) {
    raise(ErrorCode::kBadFile,
          "{}: data_offsets [{}, {}] hold {} bytes, but shape {} of {} takes {}", where,
          entry.begin, entry.end, entry.end - entry.begin, entry.info.shape_text(),
          dtype_info(entry.info.dtype).name, bytes);
  }
  return entry;
}

void check_metadata(const Json& value, std::string_view file) {
  if (value.is_null()) return;  // the reference reader takes this for "none"
  if (!value.is_object()) {
    raise(ErrorCode::kBadFile, "{}: __metadata__ must be an object, found {}", file,
          in_quotes(dump_json(value)));
  }
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) {
      raise(ErrorCode::kBadFile, "{}: __metadata__: {} must be a string, found {}", file,
            in_quotes(key), in_quotes(dump_json(text)));
    }
  }
}

/// The data section must be the tensors and nothing else: two readers then cannot see two files.
void check_coverage(std::vector<Entry>& entries, uint64_t data_bytes, std::string_view where) {
  std::ranges::sort(entries, [](const Entry& a, const Entry& b) {
    return std::tie(a.begin, a.end, a.info.name) < std::tie(b.begin, b.end, b.info.name);
  });
  uint64_t covered = 0;
  for (const Entry& entry : entries) {
    if (entry.begin != covered) {
      raise(ErrorCode::kBadFile,
            "{}: tensor \"{}\": data_offsets begin at {} {} {}; the file is damaged", where,
            entry.info.name, entry.begin,
            entry.begin < covered ? "and overlap a tensor that ends at"
                                  : "and leave a hole after byte",
            covered);
    }
    covered = entry.end;
    if (covered > data_bytes) {
      raise(ErrorCode::kBadFile,
            "{}: tensor \"{}\" ends at byte {} of the data, but the file has only {}; the download "
            "is incomplete, fetch it again",
            where, entry.info.name, covered, data_bytes);
    }
  }
  if (covered != data_bytes) {
    raise(ErrorCode::kBadFile, "{}: {} bytes follow the last tensor; the file is damaged", where,
          data_bytes - covered);
  }
}

}  // namespace

std::vector<SafetensorsEntry> parse_safetensors(std::span<const std::byte> file,
                                                std::string_view where) {
  const std::string_view text = header_text(file, where);
  const Json header = parse_json(text, fmt::format("{}: header", where));
  if (header.size() > kMaxSafetensorsTensors) {
    raise(ErrorCode::kBadFile, "{}: {} tensors, at most {} are allowed", where, header.size(),
          kMaxSafetensorsTensors);
  }
  std::vector<Entry> entries;
  entries.reserve(header.size());
  for (const auto& [key, value] : header.items()) {
    if (key == kMetadataKey) {
      check_metadata(value, where);
    } else {
      entries.push_back(parse_entry(key, value, where));
    }
  }
  const uint64_t data_begin = kLengthBytes + text.size();
  check_coverage(entries, file.size() - data_begin, where);

  std::vector<SafetensorsEntry> result;
  result.reserve(entries.size());
  for (Entry& entry : entries) {
    result.push_back({std::move(entry.info), data_begin + entry.begin});
  }
  return result;
}

}  // namespace lpcd::io
