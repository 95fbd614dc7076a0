#include <cstring>

#include "lpcd/base/raise.h"
#include "lpcd/format/output_format.h"
#include "lpcd/format/recipe.h"
#include "lpcd/tensor/ggml_blocks.h"
#include "lpcd/tensor/half.h"

// GGUF files. Blocks of ggml types are stored as they were chosen; codes of integer grids move into
// blocks that mean the same; and any weights can be stored as plain floats.

namespace lpcd::format {
namespace {

enum class Kind { kRecipe, kExact, kPlain };

// Codes as blocks: each of 32 weights has the scale of its group, and codes count from another
// zero.
std::vector<std::byte> encode_exactly(const QuantizedMatrix& q, DType type) {
  const GgmlGrid& grid = ggml_grid(type);
  const auto bytes = static_cast<size_t>(dtype_info(type).block_bytes);
  const int64_t length = q.spec.group_length(q.cols);
  std::vector<std::byte> out(static_cast<size_t>(q.rows * (q.cols / grid.length)) * bytes);
  std::vector<uint8_t> codes(static_cast<size_t>(grid.length));
  // Codes around zero reach from -2 to 1, those of Q2_0 from -1 to 2.
  const bool mirrored = type == DType::kQ2_0;
  std::byte* block = out.data();
  for (int64_t n = 0; n < q.rows; ++n) {
    for (int64_t k = 0; k < q.cols; k += grid.length, block += bytes) {
      const int64_t group = k / length;
      const int zero = q.zeros[static_cast<size_t>(group * q.rows + n)];
      for (int64_t i = 0; i < grid.length; ++i) {
        const int code = q.codes[static_cast<size_t>(n * q.cols + k + i)] - zero;
        codes[static_cast<size_t>(i)] = static_cast<uint8_t>(grid.zero + (mirrored ? -code : code));
      }
      GgmlBlockFields fields;
      fields.d = f32_to_f16(mirrored ? -q.scales(group, n) : q.scales(group, n));
      encode_ggml_block(type, fields, codes, {block, bytes});
    }
  }
  return out;
}

class Gguf final : public OutputFormat {
 public:
  explicit Gguf(const Recipe& recipe)
      : kind_(Kind::kRecipe), text_(recipe.text()), file_type_(recipe.file_type()) {}
  Gguf() : kind_(Kind::kExact), text_("exact") {}
  Gguf(DType plain, std::string_view name, int64_t file_type)
      : kind_(Kind::kPlain), plain_(plain), text_(name), file_type_(file_type) {}

  std::string text() const override { return "gguf:" + text_; }
  std::optional<GridSpec> grid() const override { return std::nullopt; }
  std::string recipe() const override { return kind_ == Kind::kRecipe ? text_ : ""; }
  Container container() const override { return Container::kGguf; }
  int64_t file_type() const override { return file_type_; }

  void check(const std::string& name, int64_t /*rows*/, int64_t cols,
             const GridSpec& grid) const override {
    if (kind_ == Kind::kPlain || grid.block || exact_ggml_type(grid, cols)) return;
    raise(ErrorCode::kBadOption,
          "{}: no ggml type holds {} on rows of {} without loss (groups must be multiples of 32, "
          "asymmetric grids have at most 7 bits); use gguf:f16, or a type as the grid, for example "
          "--format gguf:q4_k_m",
          name, grid.text(), cols);
  }

  std::vector<TensorInfo> describe(const std::string& name, int64_t rows, int64_t cols,
                                   const GridSpec& grid) const override {
    return {{name, type_of(grid, cols), {rows, cols}}};
  }

  std::vector<NamedTensor> encode(const std::string& name,
                                  const QuantizedMatrix& q) const override {
    check(name, q.rows, q.cols, q.spec);
    std::vector<NamedTensor> tensors(1);
    tensors[0].info = describe(name, q.rows, q.cols, q.spec)[0];
    if (kind_ == Kind::kPlain) {
      const Mat w = q.decode();
      tensors[0].data = encode_dense(name, {w.data(), static_cast<size_t>(w.size())}, plain_);
    } else if (q.spec.block) {
      tensors[0].data = q.blocks;
    } else {
      if (q.f16_decode) {
        raise(ErrorCode::kBadOption,
              "{}: the run rounds weights to f16 (--preset onecomp), which blocks cannot hold; use "
              "gguf:f16",
              name);
      }
      tensors[0].data = encode_exactly(q, tensors[0].info.dtype);
    }
    return tensors;
  }

  std::optional<DType> dense_type() const override {
    return kind_ == Kind::kPlain ? std::optional(plain_) : std::nullopt;
  }
  Json quantization_config(std::span<const LayerGrid> /*layers*/,
                           const Json& /*meta*/) const override {
    return nullptr;
  }

 private:
  [[nodiscard]] DType type_of(const GridSpec& grid, int64_t cols) const {
    if (kind_ == Kind::kPlain) return plain_;
    return grid.block ? *grid.block : exact_ggml_type(grid, cols).value_or(DType::kF16);
  }

  Kind kind_;
  DType plain_ = DType::kF16;
  std::string text_;
  int64_t file_type_ = -1;
};

}  // namespace

std::optional<DType> exact_ggml_type(const GridSpec& grid, int64_t cols) {
  if (grid.block) return grid.block;
  if (cols % 32 != 0 || grid.group_length(cols) % 32 != 0) return std::nullopt;
  if (!grid.symmetric) return grid.bits <= 7 ? std::optional(DType::kQ8_0) : std::nullopt;
  if (grid.bits == 2 && cols % 64 == 0 && grid.group_length(cols) % 64 == 0) return DType::kQ2_0;
  if (grid.bits <= 4) return DType::kQ4_0;
  return grid.bits == 5 ? DType::kQ5_0 : DType::kQ8_0;
}

std::unique_ptr<OutputFormat> parse_gguf(std::span<const std::string_view> parts) {
  if (parts.empty() || parts.size() > 2) return nullptr;
  std::string text(parts[0]);
  if (parts.size() == 2) text.append(",").append(parts[1]);
  if (text == "exact") return std::make_unique<Gguf>();
  if (text == "f32") return std::make_unique<Gguf>(DType::kF32, text, 0);
  if (text == "f16") return std::make_unique<Gguf>(DType::kF16, text, 1);
  if (text == "bf16") return std::make_unique<Gguf>(DType::kBF16, text, 32);
  const auto recipe = Recipe::parse(text);
  return recipe ? std::make_unique<Gguf>(*recipe) : nullptr;
}

}  // namespace lpcd::format
