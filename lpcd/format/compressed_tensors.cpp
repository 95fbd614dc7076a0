#include <fmt/format.h>

#include <cstring>

#include "lpcd/base/raise.h"
#include "lpcd/format/bit_stream.h"
#include "lpcd/format/layer_text.h"
#include "lpcd/format/output_format.h"
#include "lpcd/tensor/half.h"

// The pack-quantized format of compressed-tensors, as its releases from 0.18 on read it. Per layer
// of N outputs and K inputs, b bits, G = K / g groups, all row-major:
//   weight_packed      I32 [N, ceil(K b / 32)]   codes, packed along K
//   weight_scale       F16 [N, G]
//   weight_zero_point  I32 [ceil(N b / 32), G]   packed along N; asymmetric grids only
//   weight_shape       I64 [2]                   N, K
// The format counts codes and zero points from -2^(b-1) and stores them with 2^(b-1) added, so that
// the bits are those of our codes, which count from 0.

namespace lpcd::format {
namespace {

// The release whose configuration this is. Releases before 0.18 pad 3, 5, 6 and 7 bits to words.
constexpr const char* kVersion = "0.20.0";

class CompressedTensors final : public OutputFormat {
 public:
  explicit CompressedTensors(const GridSpec& grid) : grid_(grid) {}

  std::string text() const override { return "ct:" + grid_text(grid_); }
  std::optional<GridSpec> grid() const override { return grid_; }

  void check(const std::string& name, int64_t /*rows*/, int64_t cols,
             const GridSpec& grid) const override {
    require_integer_grid(name, grid, "compressed-tensors");
    if (grid.group_size != -1 && cols % grid.group_size != 0) {
      raise(ErrorCode::kBadOption,
            "{}: compressed-tensors needs whole groups, and {} inputs are not a multiple of {}; "
            "choose a group size that divides them, or g-1",
            name, cols, grid.group_size);
    }
  }

  std::vector<TensorInfo> describe(const std::string& name, int64_t rows, int64_t cols,
                                   const GridSpec& grid) const override {
    const std::string base = base_of(name);
    const int64_t groups = grid.groups(cols);
    std::vector<TensorInfo> infos = {
        {base + ".weight_packed", DType::kI32, {rows, stream_words(cols, grid.bits)}},
        {base + ".weight_scale", DType::kF16, {rows, groups}},
        {base + ".weight_shape", DType::kI64, {2}}};
    if (!grid.symmetric) {
      infos.push_back(
          {base + ".weight_zero_point", DType::kI32, {stream_words(rows, grid.bits), groups}});
    }
    return infos;
  }

  std::vector<NamedTensor> encode(const std::string& name,
                                  const QuantizedMatrix& q) const override {
    check(name, q.rows, q.cols, q.spec);
    const int bits = q.spec.bits;
    const int64_t groups = q.groups();
    const int64_t words = stream_words(q.cols, bits);
    std::vector<uint32_t> packed(static_cast<size_t>(q.rows * words));
    std::vector<uint16_t> scale(static_cast<size_t>(q.rows * groups));
    std::vector<uint32_t> zero(static_cast<size_t>(stream_words(q.rows, bits) * groups));
    for (int64_t n = 0; n < q.rows; ++n) {
      const uint8_t* row = q.codes.data() + n * q.cols;
      for (int64_t k = 0; k < q.cols; ++k) put_field(packed.data() + n * words, 1, bits, k, row[k]);
      for (int64_t g = 0; g < groups; ++g) {
        scale[static_cast<size_t>(n * groups + g)] = f32_to_f16(q.scales(g, n));
        put_field(zero.data() + g, groups, bits, n, q.zeros[static_cast<size_t>(g * q.rows + n)]);
      }
    }
    const std::vector<TensorInfo> infos = describe(name, q.rows, q.cols, q.spec);
    std::vector<NamedTensor> tensors;
    tensors.push_back({infos[0], bytes_of(packed)});
    tensors.push_back({infos[1], bytes_of(scale)});
    tensors.push_back({infos[2], bytes_of(std::vector<int64_t>{q.rows, q.cols})});
    if (!q.spec.symmetric) tensors.push_back({infos[3], bytes_of(zero)});
    return tensors;
  }

  std::optional<DType> dense_type() const override { return std::nullopt; }

  Json quantization_config(std::span<const LayerGrid> layers, const Json& /*meta*/) const override {
    // One group per grid. "Linear" stands for every layer that no other group names.
    std::vector<std::pair<GridSpec, Json>> groups = {{grid_, Json::array({"Linear"})}};
    for (const LayerGrid& layer : layers) {
      if (layer.grid == grid_) continue;
      auto group = groups.begin() + 1;
      while (group != groups.end() && !(group->first == layer.grid)) ++group;
      if (group == groups.end()) group = groups.insert(group, {layer.grid, Json::array()});
      group->second.push_back(base_of(layer.name));
    }
    Json config_groups = Json::object();
    for (size_t i = 0; i < groups.size(); ++i) {
      const auto& [grid, targets] = groups[i];
      const bool channel = grid.group_size == -1;
      Json weights = {{"num_bits", grid.bits},
                      {"type", "int"},
                      {"symmetric", grid.symmetric},
                      {"strategy", channel ? "channel" : "group"},
                      {"dynamic", false}};
      if (!channel) weights["group_size"] = grid.group_size;
      config_groups[fmt::format("group_{}", i)] = {{"targets", targets},
                                                   {"weights", weights},
                                                   {"input_activations", nullptr},
                                                   {"output_activations", nullptr},
                                                   {"format", "pack-quantized"}};
    }
    return {{"config_groups", config_groups},
            {"quant_method", "compressed-tensors"},
            {"format", "pack-quantized"},
            {"quantization_status", "compressed"},
            {"kv_cache_scheme", nullptr},
            {"global_compression_ratio", nullptr},
            {"ignore", {"lm_head"}},
            {"sparsity_config", Json::object()},
            {"transform_config", Json::object()},
            {"version", kVersion}};
  }

 private:
  GridSpec grid_;
};

std::vector<uint32_t> words_of(std::span<const std::byte> bytes) {
  std::vector<uint32_t> words(bytes.size() / 4);
  if (!words.empty()) std::memcpy(words.data(), bytes.data(), words.size() * 4);
  return words;
}

}  // namespace

std::unique_ptr<OutputFormat> parse_compressed_tensors(std::span<const std::string_view> parts) {
  const auto text = parse_grid_text(parts);
  return text && !text->v2 ? std::make_unique<CompressedTensors>(text->grid) : nullptr;
}

void decode_packed(const PackedTensors& t, const PackedLayout& layout, FloatView out) {
  const std::vector<uint32_t> packed = words_of(t.packed);
  const std::vector<uint32_t> zeros = words_of(t.zero_point);
  const int bits = layout.bits;
  const int64_t words = stream_words(layout.cols, bits);
  const int64_t length = layout.cols / layout.groups;
  for (int64_t n = 0; n < layout.rows; ++n) {
    float* row = out.row(n);
    for (int64_t g = 0; g < layout.groups; ++g) {
      const float scale =
          float_at(t.scale, t.scale_type, static_cast<size_t>(n * layout.groups + g));
      const auto zero = static_cast<float>(
          zeros.empty() ? 1U << (bits - 1) : get_field(zeros.data() + g, layout.groups, bits, n));
      for (int64_t k = g * length; k < (g + 1) * length; ++k) {
        const uint32_t code = get_field(packed.data() + n * words, 1, bits, k);
        row[k] = scale * (static_cast<float>(code) - zero);
      }
    }
  }
}

}  // namespace lpcd::format
