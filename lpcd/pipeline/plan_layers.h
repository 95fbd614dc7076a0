#pragma once

#include "lpcd/arch/model.h"
#include "lpcd/pipeline/plan.h"

namespace lpcd::pipeline {

/// Grid, submodule and cross moments of every layer: plan.layers, plan.coupled,
/// plan.quantized_bytes, and notes on types that could not be had. Needs options, blocks and solver
/// of the plan.
///
/// Errors    kBadOption for patterns that match nothing, and for grids that options do not allow.
void plan_layers(const arch::Model& model, Plan& plan);

}  // namespace lpcd::pipeline
