#include <cstring>

#include "lpcd/bundle/decoded_source.h"
#include "lpcd/bundle/quantized_source.h"
#include "lpcd/format/output_format.h"

namespace lpcd::bundle {
namespace {

constexpr std::string_view kQweight = ".qweight";

void check_groups(const io::TensorSource& stored, const std::string& base, int64_t groups) {
  const auto bytes = stored.raw(base + ".g_idx");
  for (size_t i = 0; i + 4 <= bytes.size(); i += 4) {
    int32_t group = 0;
    std::memcpy(&group, bytes.data() + i, 4);
    if (group < 0 || group >= groups) {
      raise(ErrorCode::kBadFile, "{}: {}.g_idx names group {} of {}",
            stored.location(base + ".g_idx"), base, group, groups);
    }
  }
}

DecodedSource::Layer make_layer(const std::shared_ptr<const io::TensorSource>& stored,
                                const TensorInfo& qweight, bool v1_zeros) {
  const std::string base = qweight.name.substr(0, qweight.name.size() - kQweight.size());
  const auto wrong = [&](const std::string& why) {
    raise_damaged(*stored, qweight.name, base, why);
  };
  if (qweight.shape.size() != 2) wrong("qweight has shape " + qweight.shape_text());
  const TensorInfo& qzeros = layer_part(*stored, base, ".qzeros", 2);
  const TensorInfo& scales = layer_part(*stored, base, ".scales", 2);
  const TensorInfo& g_idx = layer_part(*stored, base, ".g_idx", 1);
  if (qweight.dtype != DType::kI32 || qzeros.dtype != DType::kI32 || g_idx.dtype != DType::kI32 ||
      !is_scale_type(scales.dtype)) {
    wrong("unexpected tensor types");
  }
  format::GptqLayout l;
  l.rows = qweight.shape[1];
  l.cols = g_idx.shape[0];
  l.groups = scales.shape[0];
  l.v1_zeros = v1_zeros;
  // Widths may differ from layer to layer; the shapes tell.
  l.bits = l.cols > 0 ? static_cast<int>(qweight.shape[0] * 32 / l.cols) : 0;
  if (l.bits < 2 || l.bits > 8 || l.cols * l.bits != qweight.shape[0] * 32) {
    wrong("qweight " + qweight.shape_text() + " does not fit g_idx " + g_idx.shape_text());
  }
  if (scales.shape[1] != l.rows) wrong("scales have shape " + scales.shape_text());
  if (qzeros.shape[0] != l.groups || qzeros.shape[1] * 32 != l.rows * l.bits) {
    wrong("qzeros have shape " + qzeros.shape_text());
  }
  check_groups(*stored, base, l.groups);
  DecodedSource::Layer layer{.base = base,
                             .parts = {qweight.name, qzeros.name, scales.name, g_idx.name},
                             .bits = l.bits,
                             .rows = l.rows,
                             .cols = l.cols,
                             .decode = {}};
  layer.decode = [stored, parts = layer.parts, type = scales.dtype, l](FloatView out) {
    format::decode_gptq({stored->raw(parts[0]), stored->raw(parts[1]), stored->raw(parts[2]),
                         stored->raw(parts[3]), type},
                        l, out);
  };
  return layer;
}

}  // namespace

std::unique_ptr<io::TensorSource> open_gptq_source(std::shared_ptr<const io::TensorSource> stored,
                                                   const Json& quantization_config,
                                                   const std::string& where) {
  const JsonFields fields(quantization_config, where + ": quantization_config");
  const std::string format =
      fields.string_or("checkpoint_format", fields.string_or("format", "gptq"));
  if (format != "gptq" && format != "gptq_v2") {
    raise(ErrorCode::kUnsupportedModel,
          "{}: checkpoint_format \"{}\" cannot be read; supported are: gptq, gptq_v2",
          fields.where(), format);
  }
  std::vector<DecodedSource::Layer> layers;
  for (const TensorInfo& info : stored->tensors()) {
    if (info.name.ends_with(kQweight)) layers.push_back(make_layer(stored, info, format == "gptq"));
  }
  return std::make_unique<DecodedSource>(std::move(stored), std::move(layers), where);
}

}  // namespace lpcd::bundle
