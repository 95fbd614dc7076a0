#include "lpcd/bundle/decoded_source.h"

#include <fmt/format.h>

#include <unordered_set>
#include <utility>

namespace lpcd::bundle {

DecodedSource::DecodedSource(std::shared_ptr<const io::TensorSource> stored,
                             std::vector<Layer> layers, const std::string& where)
    : stored_(std::move(stored)) {
  std::vector<TensorInfo> shown;
  std::unordered_set<std::string> hidden;
  for (Layer& layer : layers) {
    const std::string name = layer.base + ".weight";
    shown.push_back({name, DType::kF32, {layer.rows, layer.cols}});
    hidden.insert(layer.parts.begin(), layer.parts.end());
    layers_.emplace(name, std::move(layer));
  }
  for (const TensorInfo& info : stored_->tensors()) {
    if (!hidden.contains(info.name)) shown.push_back(info);
  }
  set_tensors(std::move(shown), where);
}

std::span<const std::byte> DecodedSource::raw(std::string_view name) const {
  const auto it = layers_.find(std::string(name));
  return stored_->raw(it == layers_.end() ? name : it->second.parts[0]);
}

io::StoredForm DecodedSource::stored_form(std::string_view name) const {
  const auto it = layers_.find(std::string(name));
  if (it == layers_.end()) return stored_->stored_form(name);
  io::StoredForm form{.type = fmt::format("int{}", it->second.bits)};
  for (const std::string& part : it->second.parts) form.bytes += stored_->raw(part).size();
  return form;
}

std::string DecodedSource::location(std::string_view name) const {
  const auto it = layers_.find(std::string(name));
  return stored_->location(it == layers_.end() ? name : it->second.parts[0]);
}

void DecodedSource::release(std::string_view name) const {
  const auto it = layers_.find(std::string(name));
  if (it == layers_.end()) return stored_->release(name);
  for (const std::string& part : it->second.parts) stored_->release(part);
}

void DecodedSource::read_f32(std::string_view name, std::span<float> out) const {
  const auto it = layers_.find(std::string(name));
  if (it == layers_.end()) return stored_->read_f32(name, out);
  const Layer& layer = it->second;
  LPCD_CHECK(std::cmp_equal(out.size(), layer.rows * layer.cols));
  layer.decode(FloatView(out.data(), layer.rows, layer.cols));
}

bool DecodedSource::has_rows(std::string_view name) const {
  return !layers_.contains(std::string(name)) && stored_->has_rows(name);
}

const TensorInfo& layer_part(const io::TensorSource& stored, const std::string& base,
                             const std::string& suffix, size_t rank) {
  const TensorInfo* info = stored.find(base + suffix);
  if (info == nullptr) {
    raise(ErrorCode::kMissingTensor, "{}{} is missing; the checkpoint is incomplete", base, suffix);
  }
  if (info->shape.size() != rank) {
    raise(ErrorCode::kShapeMismatch, "{}: {} has shape {}, expected {} dimensions",
          stored.location(info->name), info->name, info->shape_text(), rank);
  }
  return *info;
}

void raise_damaged(const io::TensorSource& stored, const std::string& tensor,
                   const std::string& base, const std::string& why) {
  raise(ErrorCode::kShapeMismatch, "{}: {}: {}; the checkpoint is damaged", stored.location(tensor),
        base, why);
}

}  // namespace lpcd::bundle
