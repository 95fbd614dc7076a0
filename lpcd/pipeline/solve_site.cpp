#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

#include "lpcd/base/clock.h"
#include "lpcd/base/raise.h"
#include "lpcd/pipeline/block_runner.h"
#include "lpcd/submodules/sums.h"

// The part of BlockRunner that solves the layers of a site one by one, and what projects a layer.

namespace lpcd::pipeline {

using arch::Role;
using submodules::Part;
using submodules::squared_distance;
using submodules::squared_norm;

linalg::Damping BlockRunner::damping_of(double fraction) const {
  return {.fraction = fraction,
          .power = plan_.options.percdamp_power,
          .dead_count_as_one = plan_.solver.reference};
}

solve::Metric BlockRunner::metric_of(Mat h, double damping) const {
  const auto order =
      plan_.options.act_order ? solve::ColumnOrder::kActivation : solve::ColumnOrder::kNatural;
  return solve::make_metric(ctx_, std::move(h), damping_of(damping), order);
}

format::QuantizedMatrix BlockRunner::project(const LayerPlan& layer, ConstView target,
                                             const solve::Metric& metric,
                                             const solve::OutputMetric* outputs) const {
  solve::ProjectOptions options = project_options(plan_, layer);
  const auto on_inputs = [&](ConstView rows) {
    return plan_.options.method == Method::kGptq ? solve::project_gptq(ctx_, rows, metric, options)
                                                 : solve::project_rtn(ctx_, rows, metric, options);
  };
  format::QuantizedMatrix q;
  if (outputs == nullptr) {
    q = on_inputs(target);
  } else {
    options.rows_per_task = 16;  // rows come a few at a time
    q = solve::project_with_output_feedback(ctx_, target, *outputs, on_inputs);
  }
  q.f16_decode = plan_.solver.reference;
  return q;
}

void BlockRunner::solve_site(Site site, SiteMoments moments,
                             const format::QuantizedMatrix* before) {
  ctx_.throw_if_cancelled();
  timed("solve", [&] {
    SiteMoments::Finished solve_part = moments.finish(ctx_, Part::kSolve);
    const SiteMoments::Finished held_out = moments.finish(ctx_, Part::kHeldOut);
    Mat h = std::move(solve_part.h);
    double flops = 0;
    for (const Role role : roles_of(site)) {
      const auto start = Clock::now();
      const LayerPlan& layer = plan_.layer(block_, role);
      report::LayerRecord& record = records_[role];
      record.name = layer.name;
      record.submodule = layer.submodule->name();
      record.grid = layer.grid.text();
      submodules::LayerProblem problem{.role = role,
                                       .weight = original_[role],
                                       .solve = solve_part.view(),
                                       .held_out = held_out.view()};
      if (!layer.cross.input) problem.solve.cross_input = problem.held_out.cross_input = {};
      if (plan_.solver.reference && relaxed_later(role)) {
        targets_.insert_or_assign(role, original_[role].clone());
        dampings_[role] = plan_.dampings.front();
        quantized_[role] = original_[role].clone();
        continue;
      }
      Solution solution =
          with_context(layer.name, [&] { return solve_layer(layer, problem, h, record, before); });
      quantized_[role] = solve::decode(ctx_, solution.quantized);
      layers_.insert_or_assign(role, std::move(solution.quantized));
      targets_.insert_or_assign(role, std::move(solution.target));
      dampings_[role] = solution.damping;
      settle(role);
      record.seconds = seconds_since(start);
      flops += solution.attempts *
               solve_flops(plan_, layer, original_[role].rows(), original_[role].cols());
    }
    site_h_ = std::move(h);
    return flops;
  });
}

BlockRunner::Solution BlockRunner::solve_layer(const LayerPlan& layer,
                                               const submodules::LayerProblem& problem, Mat& h,
                                               report::LayerRecord& record,
                                               const format::QuantizedMatrix* before) {
  Solution best;
  double best_error = std::numeric_limits<double>::infinity();
  const bool judged = problem.has_held_out();
  std::array<Mat, 2> products;
  ConstView missing;
  ConstView held_out_missing;
  if (!plan_.solver.reference) {
    missing = submodules::missing_output(ctx_, problem, problem.solve, products[0]);
  }
  if (judged) {
    held_out_missing = submodules::missing_output(ctx_, problem, problem.held_out, products[1]);
  }
  const auto judge = [&](const format::QuantizedMatrix& q) {
    return judged ? submodules::layer_error(ctx_, problem, problem.held_out, held_out_missing,
                                            solve::decode(ctx_, q))
                  : 0;
  };
  const int sweeps = refine_sweeps(plan_);
  int attempts = 0;
  if (before != nullptr && judged) {
    best = {.quantized = before->clone(), .damping = dampings_.at(layer.role)};
    best_error = judge(best.quantized);
    record.candidates.push_back({.target = "kept",
                                 .metric = "inputs",
                                 .percdamp = best.damping,
                                 .strength = record.strength,
                                 .held_out = best_error,
                                 .chosen = true});
  }
  const auto put = [&](ConstView target, const solve::Metric& metric) {
    return project(layer, target, metric);
  };
  const std::optional<double> given = layer.submodule->strength(plan_.solver);
  const auto attempt = [&](double damping, std::optional<double> share) {
    ctx_.throw_if_cancelled();
    ++attempts;
    working(fmt::format("{}, damping {}", arch::role_name(layer.role), damping));
    solve::Metric metric = metric_of(std::move(h), damping);
    double strength = 0;
    Mat wanted;
    format::QuantizedMatrix projected;
    format::QuantizedMatrix refined;  // from the codes of the cycle before
    if (plan_.solver.reference) {
      projected =
          layer.submodule->solve_as_reference(ctx_, problem, metric, plan_.solver, put, record);
      strength = record.strength;
    } else {
      submodules::Target target =
          submodules::correct(ctx_, problem, metric, share, missing, held_out_missing);
      wanted = std::move(target.weight);
      strength = target.strength;
      if (before != nullptr && sweeps > 0) {
        refined = before->clone();
        solve::refine(ctx_, wanted, metric, sweeps, refined);
      }
      // With nothing held out to choose on, those go on.
      if (judged || refined.rows == 0) projected = put(wanted, metric);
    }
    const bool again = refined.rows > 0;
    const auto consider = [&](format::QuantizedMatrix q, const char* target_name) {
      const double error = judge(q);
      if (judged) {
        record.candidates.push_back({.target = target_name,
                                     .metric = "inputs",
                                     .percdamp = damping,
                                     .strength = strength,
                                     .held_out = error});
      }
      if (best.quantized.rows == 0 || error < best_error) {
        report::choose_none(record.candidates);
        if (judged) record.candidates.back().chosen = true;
        record.damping = metric.factor.lambda;
        record.damping_raised = metric.factor.raised;
        record.strength = strength;
        best.quantized = std::move(q);
        best.target = again ? submodules::copied(ctx_, wanted) : std::move(wanted);
        best.damping = damping;
        best_error = error;
      }
      return error;
    };
    double error = std::numeric_limits<double>::infinity();
    if (projected.rows > 0) error = consider(std::move(projected), "layer");
    if (again) error = std::min(error, consider(std::move(refined), "codes"));
    h = std::move(metric.h);
    const ConstView weight = problem.weight;
    working(arch::role_name(layer.role), solve_flops(plan_, layer, weight.rows(), weight.cols()));
    return error;
  };
  // From the middle of the dampings up while it gets better; if it does not at once, down.
  const auto count = static_cast<int64_t>(plan_.dampings.size());
  const int64_t middle = (count - 1) / 2;
  const auto climb = [&](int64_t step, double error) {
    bool gained = false;
    for (int64_t i = middle + step; i >= 0 && i < count; i += step) {
      const double next = attempt(plan_.dampings[static_cast<size_t>(i)], given);
      if (!(next < error)) break;
      error = next;
      gained = true;
    }
    return gained;
  };
  const double first = attempt(plan_.dampings[static_cast<size_t>(middle)], given);
  if (!climb(1, first)) (void)climb(-1, first);
  // A submodule must beat the layer on its own, on the grid as well. Where it beats the layer's
  // unrounded weights (whose error is what is missing at the output) it is not put to the test.
  const bool beyond_doubt = best_error < problem.held_out.missing_energy;
  if (judged && layer.residual() && record.strength > 0 && !beyond_doubt) {
    (void)attempt(best.damping, 0.0);
  }
  // Relative to what the original gives, where that is known.
  const submodules::LayerMoments& known = problem.solve;
  if (known.missing_energy >= 0 && known.output_energy > 0) {
    submodules::LayerMoments with_h = known;
    with_h.h = h;
    const auto relative = [&](ConstView weight) {
      return std::max(0.0,
                      submodules::layer_error(ctx_, problem, with_h, known.cross_output, weight)) /
             known.output_energy;
    };
    record.objective_before = relative(problem.weight);
    if (!best.target.empty()) record.objective_relaxed = relative(best.target);
    record.objective_projected = relative(solve::decode(ctx_, best.quantized));
  }
  best.attempts = attempts;
  return best;
}

bool BlockRunner::relaxed_later(Role role) const {
  return std::ranges::any_of(plan_.coupled, [&](const submodules::CoupledInfo* info) {
    return std::ranges::find(info->relaxed, role) != info->relaxed.end();
  });
}

void BlockRunner::settle(Role role) {
  if (observer_) observer_(role, layers_.at(role), quantized_[role]);
  records_[role].weight_error = squared_distance(ctx_, quantized_[role], original_[role]) /
                                std::max(squared_norm(ctx_, original_[role]), 1e-30);
}
int refine_sweeps(const Plan& plan) {
  return plan.options.method == Method::kGptq ? plan.options.refine : 0;
}

solve::ProjectOptions project_options(const Plan& plan, const LayerPlan& layer) {
  const QuantizeOptions& o = plan.options;
  const bool reference = o.preset == Preset::kOnecomp;
  solve::ProjectOptions options;
  options.grid = layer.grid;
  options.block_columns = o.block_size;
  options.scale_search = o.scale_search;
  options.refine_sweeps = refine_sweeps(plan);
  options.stale_group_scales = reference;
  options.fit = {
      .search = o.mse ? format::FitOptions::Search::kMse : format::FitOptions::Search::kNone,
      .candidates = o.mse_candidates,
      .max_shrink = o.mse_max_shrink,
      .norm = o.mse_norm,
      .f16_scales = !reference,
      .min_scale = reference && o.method == Method::kRtn ? 1e-5F : 0.0F,
      .one_sided_symmetric = reference && o.method == Method::kGptq,
      .zero_from_one = !reference};
  return options;
}

QuantizedLayers quantize_without_inputs(const RunContext& ctx, const Plan& plan, int64_t block,
                                        const arch::BlockWeights& weights,
                                        report::BlockRecord& record) {
  const auto start = Clock::now();
  QuantizedLayers layers;
  record.block = block;
  for (const LayerPlan& layer : plan.layers[static_cast<size_t>(block)]) {
    const auto layer_start = Clock::now();
    const Mat& w = weights[layer.role];
    auto q = with_context(layer.name,
                          [&] { return solve::project_rtn(ctx, w, project_options(plan, layer)); });
    q.f16_decode = plan.solver.reference;
    report::LayerRecord& r = record.layers.emplace_back();
    r.name = layer.name;
    r.submodule = layer.submodule->name();
    r.grid = layer.grid.text();
    r.weight_error =
        squared_distance(ctx, solve::decode(ctx, q), w) / std::max(squared_norm(ctx, w), 1e-30);
    r.seconds = seconds_since(layer_start);
    layers.emplace(layer.role, std::move(q));
  }
  record.seconds = seconds_since(start);
  return layers;
}

}  // namespace lpcd::pipeline
