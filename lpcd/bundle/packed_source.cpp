#include <algorithm>
#include <cstring>
#include <set>

#include "lpcd/bundle/decoded_source.h"
#include "lpcd/bundle/quantized_source.h"
#include "lpcd/format/bit_stream.h"
#include "lpcd/format/output_format.h"

namespace lpcd::bundle {
namespace {

constexpr std::string_view kPackedWeight = ".weight_packed";

// Widths that the configuration names; refuses what decode_packed does not know.
std::set<int> read_widths(const JsonFields& config) {
  const std::string format = config.string_or("format", "");
  if (format != "pack-quantized") {
    raise(ErrorCode::kUnsupportedModel,
          "{}: compressed-tensors format \"{}\" cannot be read; supported is: pack-quantized",
          config.where(), format);
  }
  for (const char* key : {"transform_config", "sparsity_config"}) {
    const Json* extra = config.find(key);
    if (extra == nullptr || extra->empty()) continue;
    if (extra->is_object() && extra->value("format", "") == "dense") continue;
    raise(ErrorCode::kUnsupportedModel,
          "{}: {} is not supported: what it does to activations or weights would be left out",
          config.where(), key);
  }
  std::set<int> widths;
  const Json& groups = config.object_at("config_groups");
  for (const auto& [name, group] : groups.items()) {
    const JsonFields fields(group, config.where() + ": " + name);
    const JsonFields weights(fields.object_at("weights"), fields.where() + ": weights");
    const std::string type = weights.string_or("type", "int");
    const std::string strategy = weights.string_or("strategy", "group");
    if (type != "int" || (strategy != "group" && strategy != "channel") ||
        fields.find("input_activations") != nullptr) {
      raise(ErrorCode::kUnsupportedModel,
            "{}: type \"{}\" by \"{}\" cannot be read; supported are weights of type int by group "
            "or channel",
            weights.where(), type, strategy);
    }
    widths.insert(static_cast<int>(weights.int_at("num_bits", 2, 8)));
  }
  return widths;
}

DecodedSource::Layer make_layer(const std::shared_ptr<const io::TensorSource>& stored,
                                const TensorInfo& packed, const std::set<int>& widths) {
  const std::string base = packed.name.substr(0, packed.name.size() - kPackedWeight.size());
  const auto wrong = [&](const std::string& why) {
    raise_damaged(*stored, packed.name, base, why);
  };
  if (packed.shape.size() != 2) wrong("weight_packed has shape " + packed.shape_text());
  const TensorInfo& scale = layer_part(*stored, base, ".weight_scale", 2);
  const TensorInfo& shape = layer_part(*stored, base, ".weight_shape", 1);
  const TensorInfo* zero = stored->find(base + ".weight_zero_point");
  if (stored->find(base + ".weight_g_idx") != nullptr) {
    raise(ErrorCode::kUnsupportedModel,
          "{}: {}.weight_g_idx: reordered groups (actorder) cannot be read",
          stored->location(packed.name), base);
  }
  if (packed.dtype != DType::kI32 || !is_scale_type(scale.dtype) || shape.dtype != DType::kI64 ||
      shape.shape[0] != 2 || (zero != nullptr && zero->dtype != DType::kI32)) {
    wrong("unexpected tensor types");
  }
  std::array<int64_t, 2> extents{};
  std::memcpy(extents.data(), stored->raw(shape.name).data(), sizeof(extents));
  format::PackedLayout l;
  l.rows = extents[0];
  l.cols = extents[1];
  l.groups = scale.shape[1];
  constexpr int64_t kMaxExtent = 1 << 24;  // beyond any model; keeps products from overflow
  if (l.rows != packed.shape[0] || l.cols < 1 || l.cols > kMaxExtent) {
    wrong("weight_shape does not fit weight_packed " + packed.shape_text());
  }
  // Widths may differ from layer to layer; the shapes tell.
  const int64_t words = packed.shape[1];
  const auto width = std::ranges::find_if(
      widths, [&](int bits) { return format::stream_words(l.cols, bits) == words; });
  if (width == widths.end()) {
    const bool padded = std::ranges::any_of(
        widths, [&](int bits) { return ceil_div(l.cols, int64_t{32 / bits}) == words; });
    if (!padded) wrong("weight_packed " + packed.shape_text() + " fits no width of the model");
    raise(ErrorCode::kUnsupportedModel,
          "{}: {} is packed as compressed-tensors did before 0.18; write it again with a newer one",
          stored->location(packed.name), base);
  }
  l.bits = *width;
  if (scale.shape[0] != l.rows || l.groups < 1 || l.cols % l.groups != 0) {
    wrong("weight_scale has shape " + scale.shape_text());
  }
  if (zero != nullptr &&
      zero->shape != std::vector<int64_t>{format::stream_words(l.rows, l.bits), l.groups}) {
    wrong("weight_zero_point has shape " + zero->shape_text());
  }
  DecodedSource::Layer layer{.base = base,
                             .parts = {packed.name, scale.name, shape.name},
                             .bits = l.bits,
                             .rows = l.rows,
                             .cols = l.cols,
                             .decode = {}};
  if (zero != nullptr) layer.parts.push_back(zero->name);
  layer.decode = [stored, parts = layer.parts, type = scale.dtype, l](FloatView out) {
    const std::span<const std::byte> none;
    format::decode_packed({stored->raw(parts[0]), stored->raw(parts[1]),
                           parts.size() > 3 ? stored->raw(parts[3]) : none, type},
                          l, out);
  };
  return layer;
}

}  // namespace

std::unique_ptr<io::TensorSource> open_packed_source(std::shared_ptr<const io::TensorSource> stored,
                                                     const Json& quantization_config,
                                                     const std::string& where) {
  const std::set<int> widths =
      read_widths(JsonFields(quantization_config, where + ": quantization_config"));
  std::vector<DecodedSource::Layer> layers;
  for (const TensorInfo& info : stored->tensors()) {
    if (info.name.ends_with(kPackedWeight)) layers.push_back(make_layer(stored, info, widths));
  }
  return std::make_unique<DecodedSource>(std::move(stored), std::move(layers), where);
}

}  // namespace lpcd::bundle
