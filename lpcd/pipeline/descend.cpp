#include <algorithm>

#include "lpcd/base/raise.h"
#include "lpcd/pipeline/block_runner.h"
#include "lpcd/submodules/sums.h"

// The part of BlockRunner that relaxes submodules of several layers and keeps what is better.

namespace lpcd::pipeline {

using arch::Role;
using submodules::Half;
using submodules::Part;
using submodules::SquaredSum;

namespace {

// Of the metric of a head's outputs. Without a floor, channels that matter little would take up
// errors without limit.
constexpr double kOutputDamping = 0.05;

// The streams around a half block, as submodules want to see them.
class StreamSource final : public submodules::SequenceSource {
 public:
  StreamSource(const RunContext& ctx, const Plan& plan, const Streams& streams, int64_t chunk,
               double face_value, std::span<const float> y_q_energies,
               std::function<void()> at_chunk)
      : ctx_(ctx),
        plan_(plan),
        streams_(streams),
        chunk_(chunk),
        face_value_(face_value),
        y_q_energies_(y_q_energies),
        at_chunk_(std::move(at_chunk)) {}

  int64_t tokens(Part part) const override { return plan_.tokens(part); }
  int64_t seq_len() const override { return plan_.seq_len; }

  void for_chunks(
      Part part, const std::function<void(const submodules::SequenceChunk&)>& body) const override {
    plan_.for_chunks(chunk_, [&](Part of, int64_t r0, int64_t n) {
      if (of != (part == Part::kSample ? Part::kSolve : part)) return;
      if (part == Part::kSample) n = std::min(n, plan_.tokens(part) - r0);
      if (n <= 0) return;
      ctx_.throw_if_cancelled();
      at_chunk_();
      const ConstView y_f = streams_.target.read(r0, n, y_f_);
      const ConstView x_q = streams_.quantized.read(r0, n, x_q_);
      std::vector<float> weights;
      if (plan_.options.token_weights) {
        const auto energies = y_q_energies_.empty() ? y_q_energies_
                                                    : y_q_energies_.subspan(static_cast<size_t>(r0),
                                                                            static_cast<size_t>(n));
        weights = submodules::token_weights(ctx_, y_f, x_q, face_value_, energies);
      }
      body({.x_f = streams_.original.read(r0, n, x_f_),
            .x_q = x_q,
            .y_f = y_f,
            .weights = weights,
            .first_row = r0});
    });
  }

 private:
  const RunContext& ctx_;
  const Plan& plan_;
  const Streams& streams_;
  int64_t chunk_;
  double face_value_;
  std::span<const float> y_q_energies_;
  std::function<void()> at_chunk_;
  mutable Mat x_f_, x_q_, y_f_;
};

}  // namespace

void BlockRunner::visit(
    Half half, const std::function<void(const submodules::SequenceSource&, std::string&)>& body) {
  const int64_t chunk = plan_.options.solver == Solver::kGd ? submodules::kAdamChunk * plan_.seq_len
                                                            : forward_.tiling().chunk_rows;
  const std::vector<float> y_q_energies =
      half == Half::kFfn && plan_.relaxes(half) ? ffn_energies() : std::vector<float>();
  std::string doing;
  const StreamSource source(ctx_, plan_, *streams_, chunk, face_value_weight(), y_q_energies,
                            [&] { working(doing); });
  body(source, doing);
}

void BlockRunner::descend(Half half) {
  visit(half, [&](const submodules::SequenceSource& source, std::string& doing) {
    for (const submodules::CoupledInfo* info : plan_.coupled) {
      if (info->half != half) continue;
      doing = "relax " + std::string(info->name);
      timed(doing.c_str(), [&] {
        descend_on(*info, source);
        const auto coupled = info->make(forward_, original_);
        double flops = 0;
        for (const Role role : info->relaxed) flops += relax_flops(plan_, *coupled, role);
        return flops * cycles_at_once(*info);
      });
    }
  });
  targets_.clear();
  if (!repeated(half).empty()) first_cycle_.h = std::move(site_h_);  // more cycles will come
  site_h_ = Mat();
}

// q and k take turns before anything depends on them. The layers of a submodule that another layer
// closes wait for that one.
int BlockRunner::cycles_at_once(const submodules::CoupledInfo& info) const {
  return info.closing ? 1 : plan_.options.alt_steps;
}

void BlockRunner::descend_on(const submodules::CoupledInfo& info,
                             const submodules::SequenceSource& source) {
  const auto coupled =
      (plan_.solver.reference ? info.make_reference : info.make)(forward_, original_);
  if (plan_.keep_ffn_activations) coupled->set_cache(&ffn_out_);  // not in use yet
  const submodules::Energies energies(ctx_, *coupled, source);
  const bool judged = !plan_.solver.reference;
  // Layers behind those in work, and those that another submodule will visit, at their real-valued
  // weights.
  std::map<Role, Mat> decided;
  const auto set_real = [&](Role role) {
    auto target = targets_.find(role);
    const Mat& real = target != targets_.end() ? target->second : original_[role];
    decided.insert_or_assign(role, std::move(quantized_[role]));
    quantized_[role] = real.clone();
  };
  if (info.closing) quantized_[*info.closing] = original_[*info.closing].clone();
  bool passed = false;
  for (const submodules::CoupledInfo* other : plan_.coupled) {
    if (other == &info) passed = true;
    if (other->half != info.half || !passed) continue;
    for (const Role role : other->relaxed) set_real(role);
  }

  QuantizedLayers layerwise;
  for (const Role role : info.relaxed) {
    if (judged) layerwise.emplace(role, layers_.at(role).clone());
  }
  for (int cycle = 0; cycle < cycles_at_once(info); ++cycle) {
    for (const Role role : info.relaxed) {
      with_context(records_[role].name, [&] {
        if (plan_.solver.reference) {
          relax_as_reference(info, *coupled, source, energies, role);
        } else {
          relax_layer(info, *coupled, source, energies, role, layerwise.at(role), cycle);
        }
      });
      decided.erase(role);
      working(fmt::format("relax {} {}", info.name, arch::role_name(role)),
              relax_flops(plan_, *coupled, role));
    }
  }
  if (judged && info.relaxed.size() > 1) {
    judge_together(info, *coupled, source, energies, layerwise);
  }
  for (auto& [role, weight] : decided) quantized_[role] = std::move(weight);
  if (plan_.solver.reference) return;
  for (const Role role : info.relaxed) settle(role);
  if (info.closing && plan_.options.alt_steps > 1) first_cycle_.layerwise.merge(layerwise);
}

// One by one each layer is at least as good as its baseline; together they may not be.
void BlockRunner::judge_together(const submodules::CoupledInfo& info,
                                 const submodules::Coupled& coupled,
                                 const submodules::SequenceSource& source,
                                 const submodules::Energies& energies,
                                 const QuantizedLayers& layerwise) {
  const auto judge = [&] {
    return submodules::relative_errors(ctx_, coupled, source, judging_part(), energies, quantized_);
  };
  const SquaredSum together = judge();
  arch::BlockWeights chosen;
  for (const Role role : info.relaxed) {
    chosen[role] = std::move(quantized_[role]);
    quantized_[role] = solve::decode(ctx_, layerwise.at(role));
  }
  const SquaredSum apart = judge();
  const bool keep =
      together.weighted == apart.weighted || submodules::better(together, apart, apart);
  for (const Role role : info.relaxed) {
    if (keep) {
      quantized_[role] = std::move(chosen[role]);
      continue;
    }
    layers_.insert_or_assign(role, layerwise.at(role).clone());
    for (report::RelaxationRecord& relaxation : records_[role].relaxations) {
      if (relaxation.submodule != info.name) continue;
      relaxation.rolled_back = true;
      report::choose_none(relaxation.candidates);
    }
  }
  record_->joint.push_back({.submodule = std::string(info.name),
                            .baseline = apart.weighted,
                            .baseline_face_value = apart.face_value,
                            .projected = together.weighted,
                            .projected_face_value = together.face_value,
                            .rolled_back = !keep});
}

// With nothing held out a submodule must at least not be worse on what it was solved on: a step
// that its quadratic model has wrong can make a massive activation, and the model useless.
Part BlockRunner::judging_part() const {
  return plan_.held_out_sequences > 0 ? Part::kHeldOut : Part::kSolve;
}

bool BlockRunner::relax_layer(const submodules::CoupledInfo& info,
                              const submodules::Coupled& coupled,
                              const submodules::SequenceSource& source,
                              const submodules::Energies& energies, Role role,
                              const format::QuantizedMatrix& layerwise, int cycle) {
  const LayerPlan& layer = plan_.layer(block_, role);
  report::RelaxationRecord record{.submodule = std::string(info.name), .cycle = cycle};
  // Later cycles go on from the codes, whose errors the other layers' and the closing layer's may
  // cancel.
  const bool first = cycle == 0;
  Mat target =
      first ? submodules::copied(ctx_, targets_.at(role)) : solve::decode(ctx_, layers_.at(role));
  quantized_[role] = submodules::copied(ctx_, target);
  const double damping = dampings_.at(role);
  submodules::Relaxed relaxed = submodules::relax(ctx_, coupled, role, source, quantized_, energies,
                                                  {.adam = plan_.options.solver == Solver::kGd,
                                                   .adam_options = adam_options(),
                                                   .iterations = plan_.options.cg_iterations,
                                                   .ridge = damping_of(damping),
                                                   .factors = plan_.options.own_metric,
                                                   .strength = plan_.solver.lpcd_strength});
  const double strength = relaxed.strength;
  record.strength = strength;
  record.objective_before = relaxed.objective_before;
  record.objective_relaxed = relaxed.objective_relaxed;
  record.residual = relaxed.residual;
  submodules::add_scaled(ctx_, strength, relaxed.step, target);

  const auto errors_of = [&](const format::QuantizedMatrix& q) {
    quantized_[role] = solve::decode(ctx_, q);
    return submodules::relative_errors(ctx_, coupled, source, judging_part(), energies, quantized_);
  };
  // Of all cycles one candidate at most is the layer that there is.
  const auto choose_none = [&] {
    for (report::RelaxationRecord& earlier : records_[role].relaxations) {
      if (earlier.submodule == record.submodule) report::choose_none(earlier.candidates);
    }
    report::choose_none(record.candidates);
  };
  const format::QuantizedMatrix before =
      first ? format::QuantizedMatrix() : layers_.at(role).clone();
  const SquaredSum baseline = errors_of(layerwise);
  SquaredSum best = baseline;
  bool changed = false;
  if (!first) {
    // Beside what has become of the other layers the layer-wise solution may be the better one now.
    const SquaredSum kept = errors_of(layers_.at(role));
    if (submodules::better(kept, baseline, baseline)) {
      best = kept;
    } else {
      layers_.insert_or_assign(role, layerwise.clone());
      choose_none();
      changed = kept.weighted != baseline.weighted || kept.face_value != baseline.face_value;
    }
  }
  record.baseline = baseline.weighted;
  record.baseline_face_value = baseline.face_value;
  const auto consider = [&](format::QuantizedMatrix q, double share, const char* metric_name,
                            const char* target_name) {
    const SquaredSum errors = errors_of(q);
    record.candidates.push_back({.target = target_name,
                                 .metric = metric_name,
                                 .percdamp = damping,
                                 .strength = share,
                                 .held_out = errors.weighted,
                                 .held_out_face_value = errors.face_value});
    if (submodules::better(errors, best, baseline)) {
      choose_none();
      record.candidates.back().chosen = true;
      best = errors;
      changed = true;
      layers_.insert_or_assign(role, std::move(q));
    }
  };
  solve::Metric inputs = metric_of(std::move(site_h_), damping);
  // In a later cycle the codes as they are, moved towards the new target, beside another rounding.
  const auto consider_codes = [&](const solve::Metric& metric, const char* metric_name) {
    if (first || strength == 0 || refine_sweeps(plan_) == 0) return;
    format::QuantizedMatrix q = before.clone();
    solve::refine(ctx_, target, metric, refine_sweeps(plan_), q);
    consider(std::move(q), strength, metric_name, "codes");
  };
  if (strength > 0) consider(project(layer, target, inputs), strength, "inputs", "submodule");
  if (!plan_.options.own_metric) consider_codes(inputs, "inputs");
  site_h_ = std::move(inputs.h);
  if (plan_.options.own_metric) {
    const solve::Metric own = metric_of(std::move(relaxed.factors.input), damping);
    solve::OutputMetric outputs;
    const bool feedback = plan_.options.output_feedback && !relaxed.factors.diagonal_output();
    if (feedback) {
      outputs = solve::make_output_metric(ctx_, relaxed.factors.output,
                                          {.fraction = kOutputDamping, .power = 0});
    }
    const auto consider_own = [&](ConstView wanted, double share, const char* target_name) {
      consider(project(layer, wanted, own, feedback ? &outputs : nullptr), share, "submodule",
               target_name);
    };
    if (first) consider_own(targets_.at(role), 0, "layer");
    if (strength > 0) consider_own(target, strength, "submodule");
    consider_codes(own, "submodule");
  }
  record.projected = best.weighted;
  quantized_[role] = solve::decode(ctx_, layers_.at(role));
  if (first) targets_.insert_or_assign(role, std::move(target));
  records_[role].relaxations.push_back(std::move(record));
  return changed;
}

submodules::AdamOptions BlockRunner::adam_options() const {
  return {.epochs = plan_.options.gd_steps,
          .batch = plan_.options.gd_batch_size,
          .base_rate = plan_.options.gd_base_lr};
}

// One layer after the other: relaxed from its original weight, blended with it, projected; kept
// even if it got worse.
void BlockRunner::relax_as_reference(const submodules::CoupledInfo& info,
                                     const submodules::Coupled& coupled,
                                     const submodules::SequenceSource& source,
                                     const submodules::Energies& energies, Role role) {
  report::RelaxationRecord record{.submodule = std::string(info.name)};
  const double strength = plan_.solver.lpcd_strength.value_or(submodules::kDefaultStrength);
  const auto error = [&] {
    return submodules::relative_error(ctx_, coupled, source, Part::kSolve, energies, quantized_);
  };
  record.strength = strength;
  record.objective_before = error();
  Mat target =
      submodules::descend_with_adam(ctx_, coupled, role, source, quantized_, adam_options());
  const auto s = static_cast<float>(strength);
  for (int64_t i = 0; i < target.size(); ++i) {
    target.data()[i] = (1.0F - s) * original_[role].data()[i] + s * target.data()[i];
  }
  quantized_[role] = std::move(target);
  record.objective_relaxed = error();
  solve::Metric metric = metric_of(std::move(site_h_), plan_.dampings.front());
  records_[role].damping = metric.factor.lambda;
  layers_.insert_or_assign(role, project(plan_.layer(block_, role), quantized_[role], metric));
  site_h_ = std::move(metric.h);
  quantized_[role] = solve::decode(ctx_, layers_.at(role));
  record.projected = error();
  records_[role].relaxations.push_back(std::move(record));
  settle(role);  // the layers behind it see what the observer made of it
}

}  // namespace lpcd::pipeline
