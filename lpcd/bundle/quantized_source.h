#pragma once

#include <memory>

#include "lpcd/base/json.h"
#include "lpcd/io/tensor_source.h"

namespace lpcd::bundle {

/// Shows a checkpoint in the gptq layout as one with ordinary weights: `X.qweight` and its
/// companions become `X.weight`, decoded when it is read.
///
/// Errors    kBadModel for quantization_config fields out of range, kMissingTensor for a layer that
///           lacks a companion, kShapeMismatch where the tensors contradict each other.
[[nodiscard]] std::unique_ptr<io::TensorSource> open_gptq_source(
    std::shared_ptr<const io::TensorSource> stored, const Json& quantization_config,
    const std::string& where);

/// The same for the pack-quantized format of compressed-tensors (`X.weight_packed`), weights only,
/// groups or one scale per row.
///
/// Errors    besides those above: kUnsupportedModel for another format, for quantized activations
///           and for the padded packing that releases before 0.18 wrote.
[[nodiscard]] std::unique_ptr<io::TensorSource> open_packed_source(
    std::shared_ptr<const io::TensorSource> stored, const Json& quantization_config,
    const std::string& where);

}  // namespace lpcd::bundle
