#pragma once

#include "lpcd/arch/arch.h"
#include "lpcd/arch/block_forward.h"
#include "lpcd/pipeline/plan.h"

namespace lpcd::pipeline {

/// Parts and sum of the peak, and whether activations go to disk and feed-forward activations are
/// kept.
///
/// Errors    kMemoryBudget when even with activations on disk the limit is too low.
void plan_memory(const arch::ModelConfig& config, const arch::SequenceTiling& tiling, Plan& plan);

/// What writing its own calibration text takes; after plan_memory().
///
/// Errors    kMemoryBudget when the limit is too low for that.
void plan_sampling(const arch::ModelConfig& config, Plan& plan);

/// Arithmetic of the whole run, per kind of work; after plan_memory(), which decides what is
/// computed twice.
void plan_flops(const arch::ModelConfig& config, const arch::BlockForward& forward, Plan& plan);

/// Adds what the journal takes, at most, to plan.disk_bytes.
void plan_journal(const arch::ModelConfig& config, Plan& plan);

}  // namespace lpcd::pipeline
