#pragma once

#include "lpcd/calib/dataset.h"
#include "lpcd/pipeline/journal.h"
#include "lpcd/pipeline/plan.h"

namespace lpcd::pipeline {

/// Takes every block of the model through the plan and commits each to the journal. Goes on behind
/// the blocks that are there already.
///
/// Shapes    data: plan.sequences x plan.seq_len ids, unless the plan needs no calibration.
/// Errors    kCancelled between two steps of a block; committed blocks stay.
void run_plan(const RunContext& ctx, const arch::Model& model, const Plan& plan,
              const calib::Dataset& data, Journal& journal);

}  // namespace lpcd::pipeline
