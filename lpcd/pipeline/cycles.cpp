#include <algorithm>

#include "lpcd/base/raise.h"
#include "lpcd/pipeline/block_runner.h"
#include "lpcd/submodules/relax.h"

// The part of BlockRunner that comes back to the layers of a submodule once the layer that closes
// it is on its grid: another cycle of coordinate descent.

namespace lpcd::pipeline {

using arch::Role;
using submodules::Half;
using submodules::SquaredSum;

std::vector<const submodules::CoupledInfo*> BlockRunner::repeated(Half half) const {
  std::vector<const submodules::CoupledInfo*> found;
  if (plan_.solver.reference || plan_.options.alt_steps == 1) return found;
  std::ranges::copy_if(plan_.coupled, std::back_inserter(found), [&](const auto* info) {
    return info->half == half && info->closing.has_value();
  });
  return found;
}

void BlockRunner::repeat_cycles(Half half) {
  for (int cycle = 1; cycle < plan_.options.alt_steps; ++cycle) {
    if (!repeat_cycle(half, cycle)) break;  // the next one would do the same
  }
  first_cycle_ = {};
}

bool BlockRunner::repeat_cycle(Half half, int cycle) {
  const auto infos = repeated(half);
  if (infos.empty()) return false;
  const Role closing = infos.front()->closing.value();  // of all of one half
  std::vector<Role> roles = {closing};
  for (const auto* info : infos) {
    roles.insert(roles.end(), info->relaxed.begin(), info->relaxed.end());
  }
  struct Before {
    format::QuantizedMatrix layer;
    report::LayerRecord record;
    double damping;
  };
  std::map<Role, Before> before;
  for (const Role role : roles) {
    before.emplace(role, Before{.layer = layers_.at(role).clone(),
                                .record = records_.at(role),
                                .damping = dampings_.at(role)});
  }
  std::string name;
  for (const auto* info : infos) {
    if (!name.empty()) name += '+';
    name += info->name;
  }
  bool changed = false;
  bool kept = false;
  site_h_ = Mat();  // of the closing layer; it will have another
  visit(half, [&](const submodules::SequenceSource& source, std::string& doing) {
    const auto coupled = infos.front()->make(forward_, original_);
    const submodules::Energies energies(ctx_, *coupled, source);
    const auto judge = [&] {
      return submodules::relative_errors(ctx_, *coupled, source, judging_part(), energies,
                                         quantized_);
    };
    const SquaredSum apart = judge();
    if (cycle == 1) first_cycle_.errors = apart;
    std::swap(site_h_, first_cycle_.h);
    for (const auto* info : infos) {
      doing = "relax " + std::string(info->name);
      timed(doing.c_str(), [&] {
        double flops = 0;
        changed = relax_again(*info, source, cycle, flops) || changed;
        return flops;
      });
    }
    std::swap(site_h_, first_cycle_.h);
    if (!changed) return;
    // What the codes that there are were made with, should they be kept.
    const Before& was = before.at(closing);
    records_[closing] = {.damping = was.record.damping,
                         .damping_raised = was.record.damping_raised,
                         .strength = was.record.strength};
    if (half == Half::kAttention) {
      solve_attention_output(&was.layer);
    } else {
      solve_ffn_output(&was.layer);
    }
    records_[closing].seconds += was.record.seconds;
    const SquaredSum together = judge();
    kept = submodules::better(together, apart, first_cycle_.errors);
    record_->joint.push_back({.submodule = name,
                              .cycle = cycle,
                              .baseline = apart.weighted,
                              .baseline_face_value = apart.face_value,
                              .projected = together.weighted,
                              .projected_face_value = together.face_value,
                              .rolled_back = !kept});
  });
  if (!kept) {
    for (auto& [role, was] : before) {
      std::vector<report::RelaxationRecord> tried;
      for (report::RelaxationRecord& r : records_[role].relaxations) {
        if (r.cycle != cycle) continue;
        r.rolled_back = changed;
        report::choose_none(r.candidates);
        tried.push_back(std::move(r));
      }
      quantized_[role] = solve::decode(ctx_, was.layer);
      layers_.insert_or_assign(role, std::move(was.layer));
      dampings_[role] = was.damping;
      records_[role] = std::move(was.record);
      auto& relaxations = records_[role].relaxations;
      std::ranges::move(tried, std::back_inserter(relaxations));
    }
  }
  for (const Role role : roles) settle(role);
  if (!kept) {
    if (half == Half::kFfn) {
      activate_again();  // in their place derivatives have been
    } else if (changed) {
      mix_again();
    }
  }
  return kept;
}

bool BlockRunner::relax_again(const submodules::CoupledInfo& info,
                              const submodules::SequenceSource& source, int cycle, double& flops) {
  const auto coupled = info.make(forward_, original_);
  if (plan_.keep_ffn_activations) coupled->set_cache(&ffn_out_);
  const submodules::Energies energies(ctx_, *coupled, source);
  bool changed = false;
  for (const Role role : info.relaxed) {
    with_context(records_[role].name, [&] {
      changed = relax_layer(info, *coupled, source, energies, role, first_cycle_.layerwise.at(role),
                            cycle) ||
                changed;
    });
    flops += relax_flops(plan_, *coupled, role);
  }
  return changed;
}

}  // namespace lpcd::pipeline
