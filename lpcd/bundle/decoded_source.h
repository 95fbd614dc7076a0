#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "lpcd/base/raise.h"
#include "lpcd/io/tensor_source.h"
#include "lpcd/tensor/mat.h"

namespace lpcd::bundle {

/// Shows a quantized checkpoint as one with ordinary weights: the tensors of a layer become
/// `X.weight`, decoded when it is read.
class DecodedSource final : public io::TensorSource {
 public:
  struct Layer {
    std::string base;                       ///< "model.layers.0.mlp.up_proj"
    std::vector<std::string> parts;         ///< stored tensors, the codes first
    int bits = 0;                           ///< of a code
    int64_t rows = 0;                       ///< N
    int64_t cols = 0;                       ///< K
    std::function<void(FloatView)> decode;  ///< fills [N, K]
  };

  DecodedSource(std::shared_ptr<const io::TensorSource> stored, std::vector<Layer> layers,
                const std::string& where);

  std::span<const std::byte> raw(std::string_view name) const override;
  io::StoredForm stored_form(std::string_view name) const override;
  std::string location(std::string_view name) const override;
  void release(std::string_view name) const override;
  void read_f32(std::string_view name, std::span<float> out) const override;
  [[nodiscard]] bool has_rows(std::string_view name) const override;

 private:
  std::shared_ptr<const io::TensorSource> stored_;
  std::unordered_map<std::string, Layer> layers_;  // by the name of the weight
};

/// A tensor that belongs to a quantized layer.
/// Errors    kMissingTensor if it is not there, kShapeMismatch if it has another rank.
[[nodiscard]] const TensorInfo& layer_part(const io::TensorSource& stored, const std::string& base,
                                           const std::string& suffix, size_t rank);

/// kShapeMismatch: the tensors of a layer contradict each other.
[[noreturn]] void raise_damaged(const io::TensorSource& stored, const std::string& tensor,
                                const std::string& base, const std::string& why);

[[nodiscard]] inline bool is_scale_type(DType type) {
  return type == DType::kF16 || type == DType::kBF16 || type == DType::kF32;
}

}  // namespace lpcd::bundle
