#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <map>

#include "lpcd/base/raise.h"
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

constexpr int64_t kWord = 32;

// Writes `value` as field `i` of the stream whose words are `stride` apart.
void put_field(uint32_t* words, int64_t stride, int bits, int64_t i, uint32_t value) {
  const int64_t bit = i * bits;
  const int64_t word = bit / kWord;
  const auto shift = static_cast<int>(bit % kWord);
  words[word * stride] |= value << shift;
  if (shift + bits > kWord) words[(word + 1) * stride] |= value >> (kWord - shift);
}

uint32_t get_field(const uint32_t* words, int64_t stride, int bits, int64_t i) {
  const int64_t bit = i * bits;
  const int64_t word = bit / kWord;
  const auto shift = static_cast<int>(bit % kWord);
  uint32_t value = words[word * stride] >> shift;
  if (shift + bits > kWord) value |= words[(word + 1) * stride] << (kWord - shift);
  return value & ((1U << bits) - 1U);
}

template <typename T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

std::string base_of(const std::string& name) {
  constexpr std::string_view kSuffix = ".weight";
  return name.ends_with(kSuffix) ? name.substr(0, name.size() - kSuffix.size()) : name;
}

// "\." for ".": layer names as regular expressions.
std::string escaped(const std::string& name) {
  std::string out;
  for (const char c : name) {
    if (c == '.') out += '\\';
    out += c;
  }
  return out;
}

class Gptq final : public OutputFormat {
 public:
  Gptq(const GridSpec& grid, bool v2) : grid_(grid), v2_(v2) {}

  std::string text() const override {
    return fmt::format("gptq:{},g{}{}{}", grid_.bits, grid_.group_size,
                       grid_.symmetric ? "" : ",asym", v2_ ? ",v2" : "");
  }
  std::optional<GridSpec> grid() const override { return grid_; }

  void check(const std::string& name, int64_t rows, int64_t cols,
             const GridSpec& grid) const override {
    if (grid.bits != 2 && grid.bits != 3 && grid.bits != 4 && grid.bits != 8) {
      raise(ErrorCode::kBadOption, "{}: gptq stores 2, 3, 4 or 8 bits, not {}; use dense:fp16",
            name, grid.bits);
    }
    if (cols * grid.bits % kWord != 0 || rows * grid.bits % kWord != 0) {
      raise(ErrorCode::kBadOption,
            "{}: {} x {} does not pack into 32-bit words at {} bits (both extents must be "
            "multiples of "
            "{}); use --format dense:fp16",
            name, rows, cols, grid.bits, grid.bits == 3 ? 32 : 32 / grid.bits);
    }
  }

  std::vector<TensorInfo> describe(const std::string& name, int64_t rows, int64_t cols,
                                   const GridSpec& grid) const override {
    const std::string base = base_of(name);
    const int64_t groups = grid.groups(cols);
    return {{base + ".qweight", DType::kI32, {cols * grid.bits / kWord, rows}},
            {base + ".qzeros", DType::kI32, {groups, rows * grid.bits / kWord}},
            {base + ".scales", DType::kF16, {groups, rows}},
            {base + ".g_idx", DType::kI32, {cols}}};
  }

  std::vector<NamedTensor> encode(const std::string& name,
                                  const QuantizedMatrix& q) const override {
    check(name, q.rows, q.cols, q.spec);
    const int bits = q.spec.bits;
    std::vector<uint32_t> qweight(static_cast<size_t>(q.cols * bits / kWord * q.rows));
    for (int64_t n = 0; n < q.rows; ++n) {
      const uint8_t* row = q.codes.data() + n * q.cols;
      for (int64_t k = 0; k < q.cols; ++k) put_field(qweight.data() + n, q.rows, bits, k, row[k]);
    }
    const uint32_t mask = (1U << bits) - 1U;
    const int64_t zero_words = q.rows * bits / kWord;
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
      json["dynamic"]["+:^" + escaped(base_of(layer.name)) + "$"] = {
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

float scale_at(const GptqTensors& t, size_t i) {
  if (t.scale_type == DType::kF32) {
    float value = 0;
    std::memcpy(&value, t.scales.data() + 4 * i, 4);
    return value;
  }
  uint16_t half = 0;
  std::memcpy(&half, t.scales.data() + 2 * i, 2);
  return t.scale_type == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

}  // namespace

std::unique_ptr<OutputFormat> parse_gptq(std::span<const std::string_view> parts) {
  GridSpec grid;
  bool v2 = false;
  if (parts.empty()) return nullptr;
  const auto number = [](std::string_view text, int64_t& value) {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
  };
  int64_t bits = 0;
  if (!number(parts[0], bits) || (bits != 2 && bits != 3 && bits != 4 && bits != 8)) return nullptr;
  grid.bits = static_cast<int>(bits);
  for (const std::string_view part : parts.subspan(1)) {
    if (part == "asym") {
      grid.symmetric = false;
    } else if (part == "v2") {
      v2 = true;
    } else if (!part.starts_with('g') || !number(part.substr(1), grid.group_size) ||
               grid.group_size < -1 || grid.group_size == 0) {
      return nullptr;
    }
  }
  return std::make_unique<Gptq>(grid, v2);
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
  const int64_t zero_words = layout.rows * bits / kWord;
  const uint32_t mask = (1U << bits) - 1U;
  std::vector<float> zeros(static_cast<size_t>(layout.groups * layout.rows));
  std::vector<float> scales(zeros.size());
  for (int64_t g = 0; g < layout.groups; ++g) {
    for (int64_t n = 0; n < layout.rows; ++n) {
      const auto i = static_cast<size_t>(g * layout.rows + n);
      const uint32_t field = get_field(qzeros.data() + g * zero_words, 1, bits, n);
      // v1 wraps within the field: a stored 2^b - 1 means zero 0.
      zeros[i] = static_cast<float>(layout.v1_zeros ? (field + 1U) & mask : field);
      scales[i] = scale_at(t, i);
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
