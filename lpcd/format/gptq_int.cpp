#include <fmt/format.h>

#include <cstring>

#include "lpcd/base/raise.h"
#include "lpcd/format/bit_stream.h"
#include "lpcd/format/layer_text.h"
#include "lpcd/format/output_format.h"
#include "lpcd/tensor/half.h"

// The GPTQ checkpoint layout (AutoGPTQ v1, and v2). Per layer of N outputs and K inputs, b bits, G
// groups, all row-major:
//   qweight I32 [K b / 32, N]   codes, packed along K
//   qzeros  I32 [G, N b / 32]   zero points, packed along N; v1 stores zero - 1
//   scales  F16 [G, N]
//   g_idx   I32 [K]             group of each input
// Packed means: one little-endian stream of b-bit fields along the packed axis, field i at bits
// [i b, i b + b) of the stream, word bit / 32. A field of 3 bits may straddle two words.

namespace lpcd::format {
namespace {

// A layer as a regular expression. vLLM asks for the names of the layers that it fuses, so the
// first of each fused set also answers to that: q_proj to qkv_proj, gate_proj to gate_up_proj.
std::string with_fused_name(const std::string& name) {
  for (const auto& [own, fused] :
       {std::pair<std::string_view, std::string_view>{"q_proj", "qkv_proj"},
        {"gate_proj", "gate_up_proj"}}) {
    if (!name.ends_with(own)) continue;
    const std::string parent = name.substr(0, name.size() - own.size());
    return fmt::format("{}({}|{})", as_regex(parent), own, fused);
  }
  return as_regex(name);
}

class Gptq final : public OutputFormat {
 public:
  Gptq(const GridSpec& grid, bool v2) : grid_(grid), v2_(v2) {}

  std::string text() const override { return "gptq:" + grid_text(grid_) + (v2_ ? ",v2" : ""); }
  std::optional<GridSpec> grid() const override { return grid_; }

  void check(const std::string& name, int64_t rows, int64_t cols,
             const GridSpec& grid) const override {
    require_integer_grid(name, grid, "gptq");
    if (grid.bits != 2 && grid.bits != 3 && grid.bits != 4 && grid.bits != 8) {
      raise(ErrorCode::kBadOption,
            "{}: gptq stores 2, 3, 4 or 8 bits, not {}; use --format ct:BITS,gGROUP, which mixes "
            "widths, or dense:fp16",
            name, grid.bits);
    }
    if (cols * grid.bits % kWordBits != 0 || rows * grid.bits % kWordBits != 0) {
      const bool whole = grid.group_size == -1 || cols % grid.group_size == 0;
      raise(ErrorCode::kBadOption,
            "{}: {} x {} does not pack into 32-bit words at {} bits (both extents must be "
            "multiples of {}); use --format {}",
            name, rows, cols, grid.bits, grid.bits == 3 ? 32 : 32 / grid.bits,
            whole ? "ct:" + grid_text(grid) : "dense:fp16");
    }
  }

  std::vector<TensorInfo> describe(const std::string& name, int64_t rows, int64_t cols,
                                   const GridSpec& grid) const override {
    const std::string base = base_of(name);
    const int64_t groups = grid.groups(cols);
    return {{base + ".qweight", DType::kI32, {cols * grid.bits / kWordBits, rows}},
            {base + ".qzeros", DType::kI32, {groups, rows * grid.bits / kWordBits}},
            {base + ".scales", DType::kF16, {groups, rows}},
            {base + ".g_idx", DType::kI32, {cols}}};
  }

  std::vector<NamedTensor> encode(const std::string& name,
                                  const QuantizedMatrix& q) const override {
    check(name, q.rows, q.cols, q.spec);
    const int bits = q.spec.bits;
    std::vector<uint32_t> qweight(static_cast<size_t>(q.cols * bits / kWordBits * q.rows));
    for (int64_t n = 0; n < q.rows; ++n) {
      const uint8_t* row = q.codes.data() + n * q.cols;
      for (int64_t k = 0; k < q.cols; ++k) put_field(qweight.data() + n, q.rows, bits, k, row[k]);
    }
    const uint32_t mask = (1U << bits) - 1U;
    const int64_t zero_words = q.rows * bits / kWordBits;
    std::vector<uint32_t> qzeros(static_cast<size_t>(q.groups() * zero_words));
    std::vector<uint16_t> scales(static_cast<size_t>(q.groups() * q.rows));
    for (int64_t g = 0; g < q.groups(); ++g) {
      for (int64_t n = 0; n < q.rows; ++n) {
        const uint32_t zero = q.zeros[static_cast<size_t>(g * q.rows + n)];
        put_field(qzeros.data() + g * zero_words, 1, bits, n, (v2_ ? zero : zero - 1U) & mask);
        scales[static_cast<size_t>(g * q.rows + n)] = f32_to_f16(q.scales(g, n));
      }
    }
    std::vector<int32_t> g_idx(static_cast<size_t>(q.cols));
    const int64_t length = q.spec.group_length(q.cols);
    for (int64_t k = 0; k < q.cols; ++k)
      g_idx[static_cast<size_t>(k)] = static_cast<int32_t>(k / length);

    const std::vector<TensorInfo> infos = describe(name, q.rows, q.cols, q.spec);
    std::vector<NamedTensor> tensors;
    tensors.push_back({infos[0], bytes_of(qweight)});
    tensors.push_back({infos[1], bytes_of(qzeros)});
    tensors.push_back({infos[2], bytes_of(scales)});
    tensors.push_back({infos[3], bytes_of(g_idx)});
    return tensors;
  }

  std::optional<DType> dense_type() const override { return std::nullopt; }

  Json quantization_config(std::span<const LayerGrid> layers, const Json& meta) const override {
    const std::string_view version = v2_ ? "gptq_v2" : "gptq";
    Json json = {{"quant_method", "gptq"},
                 {"method", "gptq"},
                 {"bits", grid_.bits},
                 {"group_size", grid_.group_size},
                 {"desc_act", false},
                 {"sym", grid_.symmetric},
                 {"lm_head", false},
                 {"checkpoint_format", version},
                 {"format", version},
                 {"pack_dtype", "int32"},
                 {"meta", meta}};
    for (const LayerGrid& layer : layers) {
      if (layer.grid == grid_) continue;
      json["dynamic"]["+:^" + with_fused_name(base_of(layer.name)) + "$"] = {
          {"bits", layer.grid.bits},
          {"group_size", layer.grid.group_size},
          {"sym", layer.grid.symmetric}};
    }
    return json;
  }

 private:
  GridSpec grid_;
  bool v2_;
};

}  // namespace

std::unique_ptr<OutputFormat> parse_gptq(std::span<const std::string_view> parts) {
  const auto text = parse_grid_text(parts);
  const bool known = text && (text->grid.bits <= 4 || text->grid.bits == 8);
  return known ? std::make_unique<Gptq>(text->grid, text->v2) : nullptr;
}

void decode_gptq(const GptqTensors& t, const GptqLayout& layout, FloatView out) {
  const auto words = [](std::span<const std::byte> bytes) {
    std::vector<uint32_t> copy(bytes.size() / 4);
    std::memcpy(copy.data(), bytes.data(), copy.size() * 4);
    return copy;
  };
  const std::vector<uint32_t> qweight = words(t.qweight);
  const std::vector<uint32_t> qzeros = words(t.qzeros);
  const std::vector<uint32_t> g_idx = words(t.g_idx);
  const int bits = layout.bits;
  const int64_t zero_words = layout.rows * bits / kWordBits;
  const uint32_t mask = (1U << bits) - 1U;
  std::vector<float> zeros(static_cast<size_t>(layout.groups * layout.rows));
  std::vector<float> scales(zeros.size());
  for (int64_t g = 0; g < layout.groups; ++g) {
    for (int64_t n = 0; n < layout.rows; ++n) {
      const auto i = static_cast<size_t>(g * layout.rows + n);
      const uint32_t field = get_field(qzeros.data() + g * zero_words, 1, bits, n);
      // v1 wraps within the field: a stored 2^b - 1 means zero 0.
      zeros[i] = static_cast<float>(layout.v1_zeros ? (field + 1U) & mask : field);
      scales[i] = float_at(t.scales, t.scale_type, i);
    }
  }
  for (int64_t n = 0; n < layout.rows; ++n) {
    float* row = out.row(n);
    for (int64_t k = 0; k < layout.cols; ++k) {
      const int64_t g = g_idx[static_cast<size_t>(k)];
      const auto i = static_cast<size_t>(g * layout.rows + n);
      const uint32_t code = get_field(qweight.data() + n, layout.rows, bits, k);
      row[k] = scales[i] * (static_cast<float>(code) - zeros[i]);
    }
  }
}

}  // namespace lpcd::format
