#include "lpcd/bundle/gptq_source.h"

#include <cstring>
#include <unordered_map>

#include "lpcd/base/raise.h"
#include "lpcd/format/output_format.h"

namespace lpcd::bundle {
namespace {

constexpr std::string_view kCodes = ".qweight";

class GptqSource final : public io::TensorSource {
 public:
  GptqSource(std::shared_ptr<const io::TensorSource> stored, bool v1_zeros,
             const std::string& where)
      : stored_(std::move(stored)), v1_zeros_(v1_zeros) {
    std::vector<TensorInfo> shown;
    for (const TensorInfo& info : stored_->tensors()) {
      if (info.name.ends_with(kCodes)) shown.push_back(add_layer(info));
    }
    for (const TensorInfo& info : stored_->tensors()) {
      if (!companion(info.name)) shown.push_back(info);
    }
    set_tensors(std::move(shown), where);
  }

  std::span<const std::byte> raw(std::string_view name) const override {
    const auto layer = layers_.find(std::string(name));
    return stored_->raw(layer == layers_.end() ? std::string(name)
                                               : layer->second.base + ".qweight");
  }
  std::string location(std::string_view name) const override {
    const auto layer = layers_.find(std::string(name));
    return stored_->location(layer == layers_.end() ? std::string(name)
                                                    : layer->second.base + ".qweight");
  }
  void release(std::string_view name) const override {
    const auto layer = layers_.find(std::string(name));
    if (layer == layers_.end()) return stored_->release(name);
    for (const char* part : {".qweight", ".qzeros", ".scales", ".g_idx"}) {
      stored_->release(layer->second.base + part);
    }
  }
  void read_f32(std::string_view name, std::span<float> out) const override {
    const auto it = layers_.find(std::string(name));
    if (it == layers_.end()) return stored_->read_f32(name, out);
    const Layer& layer = it->second;
    LPCD_CHECK(std::cmp_equal(out.size(), layer.layout.rows * layer.layout.cols));
    const auto part = [&](const char* suffix) { return stored_->raw(layer.base + suffix); };
    format::decode_gptq({part(".qweight"), part(".qzeros"), part(".scales"), part(".g_idx"),
                         stored_->at(layer.base + ".scales").dtype},
                        layer.layout, FloatView(out.data(), layer.layout.rows, layer.layout.cols));
  }

 private:
  struct Layer {
    std::string base;
    format::GptqLayout layout;
  };

  // True for the tensors that stand behind a decoded weight.
  bool companion(const std::string& name) const {
    for (const std::string_view suffix : {".qweight", ".qzeros", ".scales", ".g_idx"}) {
      if (!name.ends_with(suffix)) continue;
      const std::string weight = name.substr(0, name.size() - suffix.size()) + ".weight";
      if (layers_.contains(weight)) return true;
    }
    return false;
  }

  const TensorInfo& part(const std::string& base, const char* suffix, size_t rank) const {
    const TensorInfo* info = stored_->find(base + suffix);
    if (info == nullptr) {
      raise(ErrorCode::kMissingTensor, "{}: {}{} is missing; the checkpoint is incomplete",
            stored_->location(base + std::string(kCodes)), base, suffix);
    }
    if (info->shape.size() != rank) {
      raise(ErrorCode::kShapeMismatch, "{}: {}{} has shape {}, expected {} dimensions",
            stored_->location(info->name), base, suffix, info->shape_text(), rank);
    }
    return *info;
  }

  TensorInfo add_layer(const TensorInfo& qweight) {
    const std::string base = qweight.name.substr(0, qweight.name.size() - kCodes.size());
    const auto wrong = [&](const std::string& why) {
      raise(ErrorCode::kShapeMismatch, "{}: {}: {}; the checkpoint is damaged",
            stored_->location(qweight.name), base, why);
    };
    if (qweight.shape.size() != 2) wrong("qweight has shape " + qweight.shape_text());
    const TensorInfo& qzeros = part(base, ".qzeros", 2);
    const TensorInfo& scales = part(base, ".scales", 2);
    const TensorInfo& g_idx = part(base, ".g_idx", 1);
    if (qweight.dtype != DType::kI32 || qzeros.dtype != DType::kI32 || g_idx.dtype != DType::kI32 ||
        (scales.dtype != DType::kF16 && scales.dtype != DType::kBF16 &&
         scales.dtype != DType::kF32)) {
      wrong("unexpected tensor types");
    }
    Layer layer{base, {}};
    format::GptqLayout& l = layer.layout;
    l.rows = qweight.shape[1];
    l.cols = g_idx.shape[0];
    l.groups = scales.shape[0];
    l.v1_zeros = v1_zeros_;
    // Widths may differ from layer to layer; the shapes tell.
    l.bits = l.cols > 0 ? static_cast<int>(qweight.shape[0] * 32 / l.cols) : 0;
    if (l.bits < 2 || l.bits > 8 || l.cols * l.bits != qweight.shape[0] * 32) {
      wrong("qweight " + qweight.shape_text() + " does not fit g_idx " + g_idx.shape_text());
    }
    if (scales.shape[1] != l.rows) wrong("scales have shape " + scales.shape_text());
    if (qzeros.shape[0] != l.groups || qzeros.shape[1] * 32 != l.rows * l.bits) {
      wrong("qzeros have shape " + qzeros.shape_text());
    }
    check_groups(base, l.groups);
    const std::string name = base + ".weight";
    TensorInfo shown{name, DType::kF32, {l.rows, l.cols}};
    layers_.emplace(name, std::move(layer));
    return shown;
  }

  void check_groups(const std::string& base, int64_t groups) const {
    const auto bytes = stored_->raw(base + ".g_idx");
    for (size_t i = 0; i + 4 <= bytes.size(); i += 4) {
      int32_t group = 0;
      std::memcpy(&group, bytes.data() + i, 4);
      if (group < 0 || group >= groups) {
        raise(ErrorCode::kBadFile, "{}: {}.g_idx names group {} of {}",
              stored_->location(base + ".g_idx"), base, group, groups);
      }
    }
  }

  std::shared_ptr<const io::TensorSource> stored_;
  bool v1_zeros_;
  std::unordered_map<std::string, Layer> layers_;
};

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
  return std::make_unique<GptqSource>(std::move(stored), format == "gptq", where);
}

}  // namespace lpcd::bundle
