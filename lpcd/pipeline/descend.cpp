#include <algorithm>

#include "lpcd/base/raise.h"
#include "lpcd/pipeline/block_runner.h"
#include "lpcd/submodules/sums.h"

// The part of BlockRunner that relaxes submodules of several layers and keeps what is better.

namespace lpcd::pipeline {

using arch::Role;
using submodules::Half;
using submodules::Part;

// Decides on held-out sequences which weights of a submodule are better.
//
// Errors count relative to each token's size, so that the few tokens with massive activations, on
// which much of attention rests, are a handful among thousands; a solve may give them up for a
// little less error everywhere else. So the error at face value, which is theirs, must not rise
// either, unless it stays below the other: then they are no worse off than the rest.
class BlockRunner::Referee {
 public:
  struct Verdict {
    double relative = 0;
    double face_value = -1;  // -1: not told apart
  };

  Referee(const RunContext& ctx, const submodules::Coupled& coupled,
          const submodules::SequenceSource& source, const submodules::Energies& energies,
          const arch::BlockWeights& weights, bool weighted)
      : ctx_(ctx),
        coupled_(coupled),
        source_(source),
        face_(source),
        energies_(energies),
        weighted_(weighted) {
    if (weighted) face_energies_ = submodules::measure_energies(ctx, coupled, face_, weights);
  }

  [[nodiscard]] Verdict judge(const arch::BlockWeights& weights) const {
    Verdict verdict;
    verdict.relative =
        submodules::relative_error(ctx_, coupled_, source_, Part::kHeldOut, energies_, weights);
    if (weighted_) {
      verdict.face_value = submodules::relative_error(ctx_, coupled_, face_, Part::kHeldOut,
                                                      face_energies_, weights);
    }
    return verdict;
  }

  /// a is better than b, and allowed beside the layer-wise baseline.
  [[nodiscard]] static bool better(const Verdict& a, const Verdict& b, const Verdict& baseline) {
    return a.relative < b.relative &&
           (a.face_value <= kTolerance * baseline.face_value || a.face_value <= a.relative);
  }

 private:
  // The same activations with every token's error at face value.
  class FaceValue final : public submodules::SequenceSource {
   public:
    explicit FaceValue(const submodules::SequenceSource& source) : source_(source) {}

    int64_t tokens(Part part) const override { return source_.tokens(part); }
    int64_t seq_len() const override { return source_.seq_len(); }
    void for_chunks(Part part, const std::function<void(const submodules::SequenceChunk&)>& body)
        const override {
      source_.for_chunks(part, [&](submodules::SequenceChunk chunk) {
        chunk.weights = {};
        body(chunk);
      });
    }

   private:
    const submodules::SequenceSource& source_;
  };

  static constexpr double kTolerance = 1.01;  // of tokens that hardly change

  const RunContext& ctx_;
  const submodules::Coupled& coupled_;
  const submodules::SequenceSource& source_;
  FaceValue face_;
  const submodules::Energies& energies_;
  submodules::Energies face_energies_;
  bool weighted_;
};

void BlockRunner::descend_on(const submodules::CoupledInfo& info,
                             const submodules::SequenceSource& source) {
  const auto coupled =
      (plan_.solver.reference ? info.make_reference : info.make)(forward_, original_);
  if (plan_.keep_ffn_activations) coupled->set_cache(&ffn_out_);  // not in use yet
  const submodules::Energies energies =
      submodules::measure_energies(ctx_, *coupled, source, quantized_);
  const bool judged = plan_.held_out_sequences > 0;
  // What ends on the residual stream.
  const bool weighted = judged && plan_.options.token_weights && !info.closed.empty();
  const Referee referee(ctx_, *coupled, source, energies, quantized_, weighted);
  // Layers behind those in work, and those that another submodule will visit, at their real-valued
  // weights.
  std::map<Role, Mat> decided;
  const auto set_real = [&](Role role) {
    auto target = targets_.find(role);
    const Mat& real = target != targets_.end() ? target->second : original_[role];
    decided.insert_or_assign(role, std::move(quantized_[role]));
    quantized_[role] = real.clone();
  };
  const bool attention = info.half == Half::kAttention;
  quantized_[attention ? Role::kO : Role::kDown] =
      original_[attention ? Role::kO : Role::kDown].clone();
  bool passed = false;
  for (const submodules::CoupledInfo* other : plan_.coupled) {
    if (other == &info) passed = true;
    if (other->half != info.half || !passed) continue;
    for (const Role role : other->relaxed) set_real(role);
  }

  std::map<Role, format::QuantizedMatrix> baseline;
  for (const Role role : info.relaxed) {
    if (judged) baseline.emplace(role, layers_.at(role).clone());
  }
  for (int cycle = 0; cycle < plan_.options.alt_steps; ++cycle) {
    for (const Role role : info.relaxed) {
      with_context(records_[role].name, [&] {
        if (plan_.solver.reference) {
          relax_as_reference(info, *coupled, source, energies, role);
        } else {
          relax_layer(info, *coupled, source, energies, referee, role, cycle);
        }
      });
      decided.erase(role);
    }
  }
  // One by one each layer is at least as good as its baseline; together they may not be.
  if (judged && info.relaxed.size() > 1) {
    const Referee::Verdict together = referee.judge(quantized_);
    arch::BlockWeights before;
    for (const Role role : info.relaxed) {
      before[role] = std::move(quantized_[role]);
      quantized_[role] = baseline.at(role).decode();
    }
    const Referee::Verdict apart = referee.judge(quantized_);
    if (together.relative != apart.relative && !Referee::better(together, apart, apart)) {
      for (const Role role : info.relaxed) {
        layers_.insert_or_assign(role, std::move(baseline.at(role)));
      }
      record_->rolled_back.emplace_back(info.name);
    } else {
      for (const Role role : info.relaxed) quantized_[role] = std::move(before[role]);
    }
  }
  for (auto& [role, weight] : decided) quantized_[role] = std::move(weight);
  if (plan_.solver.reference) return;
  for (const Role role : info.relaxed) settle(role);
}

void BlockRunner::relax_layer(const submodules::CoupledInfo& info,
                              const submodules::Coupled& coupled,
                              const submodules::SequenceSource& source,
                              const submodules::Energies& energies, const Referee& referee,
                              Role role, int cycle) {
  const LayerPlan& layer = plan_.layer(block_, role);
  const bool judged = plan_.held_out_sequences > 0;
  report::RelaxationRecord record{.submodule = std::string(info.name), .cycle = cycle};
  quantized_[role] = targets_.at(role).clone();
  const double damping = dampings_.at(role);
  submodules::Relaxed relaxed = submodules::relax(
      ctx_, coupled, role, source, quantized_, energies,
      {.adam = plan_.options.solver == Solver::kGd,
       .adam_options = adam_options(),
       .iterations = plan_.options.cg_iterations,
       .ridge = damping_of(damping),
       .factors = plan_.options.own_metric,
       .strength = plan_.solver.lpcd_strength.value_or(submodules::kDefaultStrength)});
  const double strength = plan_.solver.lpcd_strength.value_or(relaxed.strength);
  record.strength = strength;
  record.objective_before = relaxed.objective_before;
  record.objective_relaxed = relaxed.objective_relaxed;
  record.residual = relaxed.residual;
  Mat target = targets_.at(role).clone();
  for (int64_t i = 0; i < target.size(); ++i) {
    target.data()[i] += static_cast<float>(strength) * relaxed.step.data()[i];
  }

  const auto verdict_on = [&](const format::QuantizedMatrix& q) {
    quantized_[role] = q.decode();
    return judged ? referee.judge(quantized_) : Referee::Verdict();
  };
  const Referee::Verdict baseline = verdict_on(layers_.at(role));
  Referee::Verdict best = baseline;
  record.baseline = baseline.relative;
  record.baseline_face_value = baseline.face_value;
  const auto consider = [&](ConstView wanted, double share, const solve::Metric& metric,
                            const char* metric_name, const char* target_name) {
    format::QuantizedMatrix q = project(layer, wanted, metric);
    const Referee::Verdict verdict = verdict_on(q);
    record.candidates.push_back({.target = target_name,
                                 .metric = metric_name,
                                 .percdamp = damping,
                                 .strength = share,
                                 .held_out = verdict.relative,
                                 .held_out_face_value = verdict.face_value});
    if (!judged || Referee::better(verdict, best, baseline)) {
      for (report::Candidate& c : record.candidates) c.chosen = false;
      record.candidates.back().chosen = true;
      best = verdict;
      layers_.insert_or_assign(role, std::move(q));
    }
  };
  solve::Metric inputs = metric_of(std::move(site_h_), damping);
  if (strength > 0 || !judged) consider(target, strength, inputs, "inputs", "submodule");
  site_h_ = std::move(inputs.h);
  if (plan_.options.own_metric) {
    const solve::Metric own = metric_of(std::move(relaxed.factors.input), damping);
    if (judged) consider(targets_.at(role), 0, own, "submodule", "layer");
    if (strength > 0 || !judged) consider(target, strength, own, "submodule", "submodule");
  }
  record.projected = best.relative;
  quantized_[role] = layers_.at(role).decode();
  targets_.insert_or_assign(role, std::move(target));
  records_[role].relaxations.push_back(std::move(record));
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
  quantized_[role] = layers_.at(role).decode();
  record.projected = error();
  records_[role].relaxations.push_back(std::move(record));
  settle(role);  // the layers behind it see what the observer made of it
}

}  // namespace lpcd::pipeline
