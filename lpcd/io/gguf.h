#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "lpcd/io/file.h"
#include "lpcd/io/tensor_source.h"

namespace lpcd::io {

/// Value of one GGUF metadata key. Integers of all widths widen to 64 bits, floats to double;
/// arrays hold one element type.
using GgufValue = std::variant<bool, int64_t, uint64_t, double, std::string, std::vector<bool>,
                               std::vector<int64_t>, std::vector<uint64_t>, std::vector<double>,
                               std::vector<std::string>>;

/// A GGUF file, version 2 or 3, little endian: metadata and tensors.
///
/// Tensor shapes are given outermost first, as everywhere in lpcd: GGUF's ne = [K, N] is [N, K].
/// Types: F32, F16, BF16, F64, I8..I64, Q2_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K..Q6_K; a tensor of
/// another type is refused by name.
/// Memory    metadata is read as a whole, tensors are mapped.
/// Errors    kBadFile naming the field for every malformed header (counts, string and array
///           lengths, alignment, dimensions, offsets, sizes, duplicate keys and names, data beyond
///           the end, overlapping data); kUnsupportedModel for a tensor type outside the list,
///           another version, big endian, and one part of a split file.
class GgufFile : public TensorSource {
 public:
  explicit GgufFile(const std::string& path);

  using Metadata = std::map<std::string, GgufValue, std::less<>>;
  [[nodiscard]] const Metadata& metadata() const { return metadata_; }
  /// Null if there is no such key.
  [[nodiscard]] const GgufValue* find_key(std::string_view key) const;

  /// Type and bytes of a value as they stand in the file, for GgufMetadata::set_raw. Empty if there
  /// is no such key.
  [[nodiscard]] std::span<const std::byte> raw_value(std::string_view key) const;

  // Typed access. *_at: kBadModel if the key is absent or of another type; *_or: the fallback if
  // absent, kBadModel if of another type. Integer access accepts either signedness, number access
  // integers as well; numbers are finite.
  [[nodiscard]] int64_t int_at(std::string_view key) const;
  [[nodiscard]] int64_t int_or(std::string_view key, int64_t fallback) const;
  [[nodiscard]] double number_at(std::string_view key) const;
  [[nodiscard]] double number_or(std::string_view key, double fallback) const;
  [[nodiscard]] bool bool_or(std::string_view key, bool fallback) const;
  [[nodiscard]] std::string string_at(std::string_view key) const;
  [[nodiscard]] std::string string_or(std::string_view key, std::string_view fallback) const;

  [[nodiscard]] std::span<const std::byte> raw(std::string_view name) const override;
  void release(std::string_view name) const override;
  [[nodiscard]] std::string location(std::string_view name) const override;
  [[nodiscard]] const std::string& path() const { return file_.path(); }

 private:
  MappedFile file_;
  Metadata metadata_;
  std::map<std::string, std::pair<uint64_t, uint64_t>, std::less<>> values_;  // begin and length
  std::map<std::string, uint64_t, std::less<>> offsets_;  // from the start of the file
};

/// True if `path` is a file that starts with the GGUF magic; false for a directory.
/// Errors    kFileNotFound, kReadFailed.
[[nodiscard]] bool is_gguf_file(const std::string& path);

}  // namespace lpcd::io
