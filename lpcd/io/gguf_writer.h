#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lpcd/io/safetensors.h"

namespace lpcd::io {

/// The metadata of a GGUF file to be written. Keys are stored sorted.
class GgufMetadata {
 public:
  void set_u32(std::string_view key, int64_t value);  ///< kInternal outside 0 .. 2^32 - 1
  void set_f32(std::string_view key, double value);
  void set_bool(std::string_view key, bool value);
  void set_string(std::string_view key, std::string_view value);
  void set_strings(std::string_view key, std::span<const std::string> values);
  void set_i32s(std::string_view key, std::span<const int64_t> values);
  void set_f32s(std::string_view key, std::span<const double> values);
  /// A value as it stands in another file: type and bytes (GgufFile::raw_value).
  void set_raw(std::string_view key, std::span<const std::byte> value);
  void erase(std::string_view key);
  [[nodiscard]] bool has(std::string_view key) const;

  /// Key by key: type and value as they are written.
  [[nodiscard]] const std::map<std::string, std::string, std::less<>>& values() const {
    return values_;
  }

 private:
  std::string& value(std::string_view key, uint32_t type);
  std::map<std::string, std::string, std::less<>> values_;
};

/// Bytes of the header and of the whole file that write_gguf would write.
struct GgufSizes {
  uint64_t header = 0;  ///< with the padding before the first tensor
  uint64_t file = 0;
};
[[nodiscard]] GgufSizes gguf_sizes(const GgufMetadata& metadata,
                                   std::span<const TensorProducer> tensors);

/// Writes a GGUF file, version 3, alignment 32, tensors in the order given. The last tensor is
/// padded like the others, as the reference writer does.
///
/// Shapes    those of TensorInfo, outermost first; types F32, F16, BF16, F64, I8 to I64 and the
///           block types.
/// Memory    one tensor at a time.
/// Errors    kWriteFailed; kInternal if a producer returns the wrong number of bytes, for a name
///           given twice or of 64 bytes and more, for more than four dimensions, and for a type
///           that GGUF does not have.
void write_gguf(const std::string& path, const GgufMetadata& metadata,
                std::vector<TensorProducer> tensors, PendingFiles& pending);

}  // namespace lpcd::io
