#include "lpcd/pipeline/block_runner.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "lpcd/base/clock.h"
#include "lpcd/base/raise.h"
#include "lpcd/nn/ops.h"
#include "lpcd/submodules/relax.h"
#include "lpcd/submodules/sums.h"

namespace lpcd::pipeline {
namespace {

using arch::Role;
using submodules::CrossMoments;
using submodules::Half;
using submodules::Part;
using submodules::squared_distance;
using submodules::squared_norm;
using submodules::subtract;

FloatView sized(Mat& buffer, int64_t rows, int64_t cols) {
  if (buffer.rows() < rows || buffer.cols() != cols) buffer = Mat::uninitialized(rows, cols);
  return buffer.view().rows_range(0, rows);
}

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

BlockRunner::BlockRunner(const RunContext& ctx, const Plan& plan, const arch::ModelConfig& config,
                         const arch::BlockForward& forward, const std::string& scratch_directory,
                         std::function<void(std::string_view, double)> advanced)
    : ctx_(ctx),
      plan_(plan),
      config_(config),
      forward_(forward),
      scratch_directory_(plan.activations_on_disk ? scratch_directory : ""),
      advanced_(std::move(advanced)) {}

const char* BlockRunner::primary_stage() const {
  return plan_.quantized_stream ? "forward quantized" : "forward original";
}

template <typename Body>
void BlockRunner::for_chunks(const Body& body) {
  plan_.for_chunks(forward_.tiling().chunk_rows, [&](Part part, int64_t r0, int64_t n) {
    ctx_.throw_if_cancelled();
    body(part, r0, n);
  });
}

template <typename Work>
void BlockRunner::timed(const char* stage, const Work& work) {
  const auto start = Clock::now();
  reported_ = 0;
  const double flops = work();
  report::StageCost& cost = record_->stages[stage];
  cost.seconds += seconds_since(start);
  cost.flops += flops;
  if (flops > 0) advanced_(stage, std::max(0.0, flops - reported_));
}

void BlockRunner::working(std::string_view item, double flops) {
  reported_ += flops;
  advanced_(item, flops);
}

QuantizedLayers BlockRunner::run(int64_t block, arch::BlockWeights original, Streams& streams,
                                 report::BlockRecord& record) {
  const auto start = Clock::now();
  block_ = block;
  original_ = std::move(original);
  quantized_ = {};
  streams_ = &streams;
  record_ = &record;
  record.block = block;
  layers_.clear();
  records_.clear();
  for (size_t i = 0; i < arch::kRoleCount; ++i) {  // norms and biases stay as they are
    const auto role = static_cast<Role>(i);
    if (!arch::is_linear_role(role)) quantized_[role] = original_[role].clone();
  }
  if (plan_.quantized_stream && attention_out_.empty()) {
    attention_out_ = calib::ActivationStore(plan_.tokens(), config_.heads * config_.head_dim,
                                            scratch_directory_);
  }
  if (both_streams() && streams.target.empty()) {
    streams.target = calib::ActivationStore(plan_.tokens(), config_.hidden, scratch_directory_);
  }
  if (plan_.keep_ffn_activations && ffn_out_.empty()) {
    ffn_out_ = calib::ActivationStore(plan_.tokens(), config_.ffn, "");
  }
  attention_input();
  attention_output();
  ffn_input();
  ffn_output();
  if (plan_.quantized_stream) block_output();
  streams.equal = false;
  for (const Role role : arch::kLinearRoles) record.layers.push_back(std::move(records_[role]));
  targets_.clear();  // of down_proj; the next block's weights are read before the next call
  site_h_ = Mat();
  record.seconds = seconds_since(start);
  return std::move(layers_);
}

FloatView BlockRunner::primary_attention_norm(int64_t r0, int64_t n) {
  const FloatView a = sized(aq_, n, config_.hidden);
  timed(primary_stage(), [&] {
    forward_.attention_norm(ctx_, primary_weights(), streams_->primary().read(r0, n, xq_), a);
    return 0.0;
  });
  return a;
}

SiteMoments BlockRunner::start_moments(Site site) const {
  CrossMoments cross;
  for (const Role role : roles_of(site)) {
    const CrossMoments& wanted = plan_.layer(block_, role).cross;
    cross.input = cross.input || wanted.input;
    if (wanted.output != CrossMoments::Output::kNone) cross.output = wanted.output;
  }
  if (site == Site::kAttentionInput && streams_->equal) cross.input = false;
  const auto shape = config_.shape(roles_of(site)[0]);
  return {shape[0], shape[1], cross};
}

void BlockRunner::write_target(Part part, int64_t r0, ConstView y_f) {
  streams_->target.write(r0, y_f);
  if (r0 == 0) target_energy_ = 0;
  if (part != Part::kSolve) return;
  // Row by row: the sum must not depend on the chunks.
  for (int64_t t = 0; t < y_f.rows(); ++t) {
    target_energy_ += nn::squared_norm(y_f.rows_range(t, 1));
  }
}

double BlockRunner::face_value_weight() const {
  const double mean =
      target_energy_ / static_cast<double>(plan_.tokens(Part::kSolve) * config_.hidden);
  return mean > 0 ? plan_.options.massive_weight / mean : 0;
}

void BlockRunner::weigh_tokens(SiteMoments& moments, int64_t r0, int64_t n,
                               std::span<const float> y_q_energies) {
  if (!plan_.options.token_weights || !both_streams()) return;
  const ConstView x_q = streams_->quantized.read(r0, n, xq_);
  moments.set_weights(submodules::token_weights(ctx_, streams_->target.read(r0, n, r_), x_q,
                                                face_value_weight(), y_q_energies));
}

FloatView BlockRunner::ffn_output_of(ConstView x_q, ConstView u_q) {
  const FloatView y_q = sized(yq_, x_q.rows(), config_.hidden);
  copy(x_q, y_q);
  forward_.add_projection(ctx_, u_q, original_[Role::kDown], y_q);
  return y_q;
}

std::vector<float> BlockRunner::ffn_energies() {
  std::vector<float> energies;
  if (!plan_.options.token_weights || !both_streams()) return energies;
  for_chunks([&](Part /*part*/, int64_t r0, int64_t n) {
    const FloatView x_q = streams_->quantized.read(r0, n, xq_);
    const FloatView m = sized(aq_, n, config_.hidden);
    const FloatView u_q = sized(uq_, n, config_.ffn);
    timed("forward quantized", [&] {
      forward_.ffn_norm(ctx_, quantized_, x_q, m);
      forward_.ffn_activation(ctx_, quantized_, m, u_q);
      const std::vector<float> chunk = submodules::row_energies(ctx_, ffn_output_of(x_q, u_q));
      LPCD_CHECK(static_cast<int64_t>(energies.size()) == r0);
      energies.insert(energies.end(), chunk.begin(), chunk.end());
      return static_cast<double>(n) *
             (forward_.ffn_activation_flops() + forward_.projection_flops(Role::kDown));
    });
  });
  return energies;
}

void BlockRunner::attention_input() {
  SiteMoments moments = start_moments(Site::kAttentionInput);
  for_chunks([&](Part part, int64_t r0, int64_t n) {
    const FloatView a_q = primary_attention_norm(r0, n);
    FloatView a_f;
    const FloatView x_f = both_streams() ? streams_->original.read(r0, n, xf_) : FloatView();
    if (both_streams()) {
      a_f = sized(af_, n, config_.hidden);
      timed("forward original", [&] {
        forward_.attention_norm(ctx_, original_, x_f, a_f);
        const FloatView y_f = streams_->target.target(r0, n, r_);
        const FloatView z_f = sized(zf_, n, config_.heads * config_.head_dim);
        forward_.attention(ctx_, original_, a_f, z_f);
        copy(x_f, y_f);
        forward_.add_projection(ctx_, z_f, original_[Role::kO], y_f);
        write_target(part, r0, y_f);
        return static_cast<double>(n) *
               (forward_.attention_flops() + forward_.projection_flops(Role::kO));
      });
    }
    timed("moments",
          [&] { return moments.add_inputs(ctx_, part, a_f, a_q, forward_.tiling().slab_rows); });
  });
  solve_site(Site::kAttentionInput, std::move(moments));
  descend(Half::kAttention);
}

void BlockRunner::attention_output() {
  SiteMoments moments = start_moments(Site::kAttentionOutput);
  const int64_t slab = forward_.tiling().slab_rows;
  const int64_t width = config_.heads * config_.head_dim;
  const double projection = forward_.projection_flops(Role::kO);
  for_chunks([&](Part part, int64_t r0, int64_t n) {
    const auto tokens = static_cast<double>(n);
    const FloatView a_q = primary_attention_norm(r0, n);
    const FloatView z_q =
        plan_.quantized_stream ? attention_out_.target(r0, n, zq_) : sized(zq_, n, width);
    timed(primary_stage(), [&] {
      forward_.attention(ctx_, primary_weights(), a_q, z_q);
      return tokens * forward_.attention_flops();
    });
    if (plan_.quantized_stream) attention_out_.write(r0, z_q);
    FloatView z_f;
    if (moments.wants_original_input()) {
      z_f = sized(zf_, n, width);
      timed("forward original", [&] {
        const FloatView a_f = sized(af_, n, config_.hidden);
        forward_.attention_norm(ctx_, original_, streams_->original.read(r0, n, xf_), a_f);
        forward_.attention(ctx_, original_, a_f, z_f);
        return tokens * forward_.attention_flops();
      });
    }
    weigh_tokens(moments, r0, n);
    timed("moments", [&] { return moments.add_inputs(ctx_, part, z_f, z_q, slab); });
    if (!plan_.original_stream) return;
    if (!both_streams()) {
      timed("forward original", [&] {
        const FloatView x_f = streams_->original.read(r0, n, xf_);
        forward_.add_projection(ctx_, z_q, original_[Role::kO], x_f);
        streams_->original.write(r0, x_f);
        return tokens * projection;
      });
      return;
    }
    if (!moments.wants_missing_output()) return;
    timed("moments", [&] {
      // What the output is compared with: h_q for the residual path, h_f for the layer alone.
      const FloatView r = sized(r_, n, config_.hidden);
      const bool residual = moments.output() == CrossMoments::Output::kResidual;
      copy(residual ? streams_->quantized.read(r0, n, xq_) : streams_->original.read(r0, n, xf_),
           r);
      forward_.add_projection(ctx_, z_q, original_[Role::kO], r);
      const FloatView y_f = streams_->target.read(r0, n, xf_);
      subtract(ctx_, y_f, r, r);
      return tokens * projection + moments.add_missing(ctx_, part, r, y_f, z_q, slab);
    });
  });
  if (both_streams()) std::swap(streams_->original, streams_->target);
  solve_site(Site::kAttentionOutput, std::move(moments));
}

void BlockRunner::ffn_input() {
  SiteMoments moments = start_moments(Site::kFfnInput);
  for_chunks([&](Part part, int64_t r0, int64_t n) {
    const FloatView x = streams_->primary().read(r0, n, xq_);
    const FloatView m_q = sized(aq_, n, config_.hidden);
    timed(primary_stage(), [&] {
      double flops = 0;
      if (plan_.quantized_stream) {
        forward_.add_projection(ctx_, attention_out_.read(r0, n, zq_), quantized_[Role::kO], x);
        streams_->quantized.write(r0, x);
        flops = static_cast<double>(n) * forward_.projection_flops(Role::kO);
      }
      forward_.ffn_norm(ctx_, primary_weights(), x, m_q);
      return flops;
    });
    FloatView m_f;
    if (both_streams()) {
      m_f = sized(af_, n, config_.hidden);
      timed("forward original", [&] {
        const FloatView x_f = streams_->original.read(r0, n, xf_);
        forward_.ffn_norm(ctx_, original_, x_f, m_f);
        const FloatView y_f = streams_->target.target(r0, n, r_);
        const FloatView u_f = sized(uf_, n, config_.ffn);
        forward_.ffn_activation(ctx_, original_, m_f, u_f);
        copy(x_f, y_f);
        forward_.add_projection(ctx_, u_f, original_[Role::kDown], y_f);
        write_target(part, r0, y_f);
        return static_cast<double>(n) *
               (forward_.ffn_activation_flops() + forward_.projection_flops(Role::kDown));
      });
    }
    timed("moments",
          [&] { return moments.add_inputs(ctx_, part, m_f, m_q, forward_.tiling().slab_rows); });
  });
  solve_site(Site::kFfnInput, std::move(moments));
  descend(Half::kFfn);
}

void BlockRunner::ffn_output() {
  SiteMoments moments = start_moments(Site::kFfnOutput);
  const int64_t slab = forward_.tiling().slab_rows;
  const double projection = forward_.projection_flops(Role::kDown);
  for_chunks([&](Part part, int64_t r0, int64_t n) {
    const auto tokens = static_cast<double>(n);
    const FloatView m = sized(aq_, n, config_.hidden);
    const FloatView x_q = streams_->primary().read(r0, n, xq_);
    const FloatView u_q =
        plan_.keep_ffn_activations ? ffn_out_.target(r0, n, uq_) : sized(uq_, n, config_.ffn);
    timed(primary_stage(), [&] {
      forward_.ffn_norm(ctx_, primary_weights(), x_q, m);
      forward_.ffn_activation(ctx_, primary_weights(), m, u_q);
      return tokens * forward_.ffn_activation_flops();
    });
    FloatView u_f;
    if (moments.wants_original_input()) {
      u_f = sized(uf_, n, config_.ffn);
      timed("forward original", [&] {
        const FloatView m_f = sized(af_, n, config_.hidden);
        forward_.ffn_norm(ctx_, original_, streams_->original.read(r0, n, xf_), m_f);
        forward_.ffn_activation(ctx_, original_, m_f, u_f);
        return tokens * forward_.ffn_activation_flops();
      });
    }
    FloatView y_q;
    if (plan_.options.token_weights && both_streams()) {
      timed(primary_stage(), [&] {
        y_q = ffn_output_of(x_q, u_q);
        weigh_tokens(moments, r0, n, submodules::row_energies(ctx_, y_q));
        return tokens * projection;
      });
    }
    timed("moments", [&] { return moments.add_inputs(ctx_, part, u_f, u_q, slab); });
    if (!plan_.original_stream) return;
    if (!both_streams()) {
      timed("forward original", [&] {
        const FloatView x_f = streams_->original.read(r0, n, xf_);
        forward_.add_projection(ctx_, u_q, original_[Role::kDown], x_f);
        streams_->original.write(r0, x_f);
        return tokens * projection;
      });
      return;
    }
    if (!moments.wants_missing_output()) return;
    timed("moments", [&] {
      double flops = 0;
      FloatView r = y_q;
      if (moments.output() != CrossMoments::Output::kResidual) {
        r = sized(r_, n, config_.hidden);
        copy(streams_->original.read(r0, n, xf_), r);
        forward_.add_projection(ctx_, u_q, original_[Role::kDown], r);
        flops = tokens * projection;
      } else if (r.empty()) {
        r = ffn_output_of(x_q, u_q);
        flops = tokens * projection;
      }
      const FloatView y_f = streams_->target.read(r0, n, xf_);
      subtract(ctx_, y_f, r, r);
      return flops + moments.add_missing(ctx_, part, r, y_f, u_q, slab);
    });
  });
  if (both_streams()) std::swap(streams_->original, streams_->target);
  solve_site(Site::kFfnOutput, std::move(moments));
}

void BlockRunner::block_output() {
  std::array<double, 2> difference = {};
  std::array<double, 2> energy = {};
  std::array<double, 2> angles = {};
  for_chunks([&](Part part, int64_t r0, int64_t n) {
    const FloatView x_q = streams_->quantized.read(r0, n, xq_);
    timed("forward quantized", [&] {
      const auto tokens = static_cast<double>(n);
      double flops = tokens * forward_.projection_flops(Role::kDown);
      ConstView u_q;
      if (plan_.keep_ffn_activations) {
        u_q = ffn_out_.read(r0, n, uq_);
      } else {
        const FloatView m = sized(aq_, n, config_.hidden);
        const FloatView u = sized(uq_, n, config_.ffn);
        forward_.ffn_norm(ctx_, quantized_, x_q, m);
        forward_.ffn_activation(ctx_, quantized_, m, u);
        flops += tokens * forward_.ffn_activation_flops();
        u_q = u;
      }
      forward_.add_projection(ctx_, u_q, quantized_[Role::kDown], x_q);
      return flops;
    });
    streams_->quantized.write(r0, x_q);
    const auto i = static_cast<size_t>(part);
    if (both_streams()) {
      const FloatView x_f = streams_->original.read(r0, n, xf_);
      difference[i] += squared_distance(ctx_, x_q, x_f);
      energy[i] += squared_norm(ctx_, x_f);
      angles[i] += submodules::squared_angles(ctx_, x_q, x_f);
    } else {
      energy[i] += squared_norm(ctx_, x_q);
    }
  });
  if (!std::isfinite(energy[0] + energy[1]) || !std::isfinite(difference[0] + difference[1])) {
    raise(ErrorCode::kNonFinite, "activations are not finite; the weights overflow in f32");
  }
  if (!both_streams()) return;
  if (energy[0] > 0) record_->output_error = difference[0] / energy[0];
  if (energy[1] > 0) record_->held_out_error = difference[1] / energy[1];
  const auto per_token = [&](Part part) {
    const int64_t tokens = plan_.tokens(part);
    return tokens > 0 ? angles[static_cast<size_t>(part)] / static_cast<double>(tokens) : -1;
  };
  record_->token_error = per_token(Part::kSolve);
  record_->held_out_token_error = per_token(Part::kHeldOut);
}

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

void BlockRunner::solve_site(Site site, SiteMoments moments) {
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
          with_context(layer.name, [&] { return solve_layer(layer, problem, h, record); });
      quantized_[role] = solve::decode(ctx_, solution.quantized);
      layers_.insert_or_assign(role, std::move(solution.quantized));
      targets_.insert_or_assign(role, std::move(solution.target));
      dampings_[role] = solution.damping;
      settle(role);
      record.seconds = seconds_since(start);
      // One candidate a damping; none are kept where there was no choice.
      const auto attempts = static_cast<double>(std::max<size_t>(1, record.candidates.size()));
      flops += attempts * solve_flops(plan_, layer, original_[role].rows(), original_[role].cols());
    }
    site_h_ = std::move(h);
    return flops;
  });
}

BlockRunner::Solution BlockRunner::solve_layer(const LayerPlan& layer,
                                               const submodules::LayerProblem& problem, Mat& h,
                                               report::LayerRecord& record) {
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
  const auto put = [&](ConstView target, const solve::Metric& metric) {
    return project(layer, target, metric);
  };
  const std::optional<double> given = layer.submodule->strength(plan_.solver);
  const auto attempt = [&](double damping, std::optional<double> share) {
    ctx_.throw_if_cancelled();
    working(fmt::format("{}, damping {}", arch::role_name(layer.role), damping));
    solve::Metric metric = metric_of(std::move(h), damping);
    Solution trial{.damping = damping};
    double strength = 0;
    if (plan_.solver.reference) {
      trial.quantized =
          layer.submodule->solve_as_reference(ctx_, problem, metric, plan_.solver, put, record);
      strength = record.strength;
    } else {
      submodules::Target target =
          submodules::correct(ctx_, problem, metric, share, missing, held_out_missing);
      trial.target = std::move(target.weight);
      strength = target.strength;
      trial.quantized = put(trial.target, metric);
    }
    const double error =
        judged ? submodules::layer_error(ctx_, problem, problem.held_out, held_out_missing,
                                         solve::decode(ctx_, trial.quantized))
               : 0;
    if (judged) {
      record.candidates.push_back({.target = "layer",
                                   .metric = "inputs",
                                   .percdamp = damping,
                                   .strength = strength,
                                   .held_out = error});
    }
    if (best.quantized.rows == 0 || error < best_error) {
      for (report::Candidate& c : record.candidates) c.chosen = false;
      if (judged) record.candidates.back().chosen = true;
      record.damping = metric.factor.lambda;
      record.damping_raised = metric.factor.raised;
      record.strength = strength;
      best = std::move(trial);
      best_error = error;
    }
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

void BlockRunner::descend(Half half) {
  const int64_t chunk = plan_.options.solver == Solver::kGd ? submodules::kAdamChunk * plan_.seq_len
                                                            : forward_.tiling().chunk_rows;
  const std::vector<float> y_q_energies =
      half == Half::kFfn && plan_.relaxes(half) ? ffn_energies() : std::vector<float>();
  std::string doing;
  const StreamSource source(ctx_, plan_, *streams_, chunk, face_value_weight(), y_q_energies,
                            [&] { working(doing); });
  for (const submodules::CoupledInfo* info : plan_.coupled) {
    if (info->half != half) continue;
    doing = "relax " + std::string(info->name);
    timed(doing.c_str(), [&] {
      descend_on(*info, source);
      const auto coupled = info->make(forward_, original_);
      double flops = 0;
      for (const Role role : info->relaxed) flops += relax_flops(plan_, *coupled, role);
      return flops;
    });
  }
  targets_.clear();
  site_h_ = Mat();
}

solve::ProjectOptions project_options(const Plan& plan, const LayerPlan& layer) {
  const QuantizeOptions& o = plan.options;
  const bool reference = o.preset == Preset::kOnecomp;
  solve::ProjectOptions options;
  options.grid = layer.grid;
  options.block_columns = o.block_size;
  options.scale_search = o.scale_search;
  options.refine_sweeps = o.method == Method::kGptq ? o.refine : 0;
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
