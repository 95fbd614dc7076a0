#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lpcd/base/json.h"
#include "lpcd/format/grid.h"
#include "lpcd/tensor/named_tensor.h"

namespace lpcd::format {

/// A quantized layer as a format's configuration needs to know it.
struct LayerGrid {
  std::string name;  ///< tensor name with ".weight"
  GridSpec grid;
};

/// What kind of file holds the tensors.
enum class Container {
  kSafetensors,  ///< a Hugging Face directory
  kGguf,         ///< one file, tokenizer and configuration included
};

/// How a finished model is stored: which tensors stand for a quantized layer, and what the
/// configuration says about them. Printable and parsed by the registry.
class OutputFormat {
 public:
  virtual ~OutputFormat() = default;

  /// Canonical text: "gptq:3,g64", "dense:fp16", "gguf:q4_k_m".
  [[nodiscard]] virtual std::string text() const = 0;
  /// The grid that the format stores, or nothing if it takes any.
  [[nodiscard]] virtual std::optional<GridSpec> grid() const = 0;
  /// The mix of ggml types that it stores (see Recipe), or "" if it has none.
  [[nodiscard]] virtual std::string recipe() const { return ""; }
  [[nodiscard]] virtual Container container() const { return Container::kSafetensors; }
  /// `general.file_type` of a GGUF file, or -1: that of its most frequent type.
  [[nodiscard]] virtual int64_t file_type() const { return -1; }
  /// kBadOption with cause and remedy if a layer of this shape and grid cannot be stored.
  virtual void check(const std::string& name, int64_t rows, int64_t cols,
                     const GridSpec& grid) const = 0;
  /// Tensors of a layer called `name` ("...q_proj.weight"), in the order of encode().
  [[nodiscard]] virtual std::vector<TensorInfo> describe(const std::string& name, int64_t rows,
                                                         int64_t cols,
                                                         const GridSpec& grid) const = 0;
  [[nodiscard]] virtual std::vector<NamedTensor> encode(const std::string& name,
                                                        const QuantizedMatrix& q) const = 0;
  /// Type of tensors that are not quantized; nothing: as they were stored.
  [[nodiscard]] virtual std::optional<DType> dense_type() const = 0;
  /// `quantization_config` of config.json; null if the model is an ordinary one.
  [[nodiscard]] virtual Json quantization_config(std::span<const LayerGrid> layers,
                                                 const Json& meta) const = 0;
};

/// Errors    kBadOption naming the nearest known format.
[[nodiscard]] std::unique_ptr<OutputFormat> parse_output_format(std::string_view text);

/// One row of the registry: a family of formats.
struct FormatFamily {
  std::string_view name;     ///< before the colon
  std::string_view example;  ///< "gptq:4,g128"
  std::string_view pattern;  ///< "gptq:2|3|4|8,gGROUP[,asym][,v2]"
  /// From the comma-separated parts behind the colon; null if they are not this family's.
  std::unique_ptr<OutputFormat> (*parse)(std::span<const std::string_view> parts);
};
[[nodiscard]] std::span<const FormatFamily> format_families();

std::unique_ptr<OutputFormat> parse_dense(std::span<const std::string_view> parts);
std::unique_ptr<OutputFormat> parse_gptq(std::span<const std::string_view> parts);
std::unique_ptr<OutputFormat> parse_gguf(std::span<const std::string_view> parts);
std::unique_ptr<OutputFormat> parse_compressed_tensors(std::span<const std::string_view> parts);

/// The smallest ggml type whose blocks hold the codes and scales of a grid as they are, on rows of
/// `cols`; nothing if there is none.
[[nodiscard]] std::optional<DType> exact_ggml_type(const GridSpec& grid, int64_t cols);

/// kBadOption if the grid is one of ggml blocks, which `format` does not store.
void require_integer_grid(const std::string& name, const GridSpec& grid, std::string_view format);

/// f32 values as F32, F16 or BF16 bytes. kNonFinite naming the tensor if one overflows F16.
[[nodiscard]] std::vector<std::byte> encode_dense(const std::string& name,
                                                  std::span<const float> values, DType type);

/// Reads a layer back from the tensors of the gptq format.
struct GptqTensors {
  std::span<const std::byte> qweight, qzeros, scales, g_idx;
  DType scale_type = DType::kF16;
};
struct GptqLayout {
  int bits = 4;
  int64_t rows = 0;      ///< N
  int64_t cols = 0;      ///< K
  int64_t groups = 0;    ///< G
  bool v1_zeros = true;  ///< zero points are stored minus one
};
/// Shapes    out [N, K]. Numerics: scale * (code - zero) in f32; group of input k from g_idx.
void decode_gptq(const GptqTensors& tensors, const GptqLayout& layout, FloatView out);

/// Reads a layer back from the tensors of compressed-tensors' pack-quantized format.
struct PackedTensors {
  std::span<const std::byte> packed, scale;
  std::span<const std::byte> zero_point;  ///< empty: a symmetric grid
  DType scale_type = DType::kF16;
};
struct PackedLayout {
  int bits = 4;
  int64_t rows = 0;    ///< N
  int64_t cols = 0;    ///< K
  int64_t groups = 0;  ///< G, divides K
};
/// Shapes    out [N, K]. Numerics: scale * (code - zero) in f32.
void decode_packed(const PackedTensors& tensors, const PackedLayout& layout, FloatView out);

/// Element i of F16, BF16 or F32 data.
[[nodiscard]] float float_at(std::span<const std::byte> data, DType type, size_t i);

}  // namespace lpcd::format
