#include "lpcd/pipeline/block_runner.h"

#include <algorithm>
#include <array>
#include <cmath>

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

void BlockRunner::timed(const char* stage, const std::function<double()>& work) {
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

FloatView BlockRunner::mix(int64_t r0, int64_t n) {
  const int64_t width = config_.heads * config_.head_dim;
  const FloatView a_q = primary_attention_norm(r0, n);
  const FloatView z_q =
      plan_.quantized_stream ? attention_out_.target(r0, n, zq_) : sized(zq_, n, width);
  timed(primary_stage(), [&] {
    forward_.attention(ctx_, primary_weights(), a_q, z_q);
    return static_cast<double>(n) * forward_.attention_flops();
  });
  if (plan_.quantized_stream) attention_out_.write(r0, z_q);
  return z_q;
}

void BlockRunner::mix_again() {
  for_chunks([&](Part /*part*/, int64_t r0, int64_t n) { mix(r0, n); });
}

void BlockRunner::attention_output() {
  solve_attention_output();
  repeat_cycles(Half::kAttention);
  if (both_streams()) std::swap(streams_->original, streams_->target);
}

void BlockRunner::solve_attention_output(const format::QuantizedMatrix* before) {
  SiteMoments moments = start_moments(Site::kAttentionOutput);
  const int64_t slab = forward_.tiling().slab_rows;
  const int64_t width = config_.heads * config_.head_dim;
  const double projection = forward_.projection_flops(Role::kO);
  for_chunks([&](Part part, int64_t r0, int64_t n) {
    const auto tokens = static_cast<double>(n);
    const FloatView z_q = mix(r0, n);
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
  solve_site(Site::kAttentionOutput, std::move(moments), before);
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

FloatView BlockRunner::activate(int64_t r0, int64_t n) {
  const FloatView m = sized(aq_, n, config_.hidden);
  const FloatView x_q = streams_->primary().read(r0, n, xq_);
  const FloatView u_q =
      plan_.keep_ffn_activations ? ffn_out_.target(r0, n, uq_) : sized(uq_, n, config_.ffn);
  timed(primary_stage(), [&] {
    forward_.ffn_norm(ctx_, primary_weights(), x_q, m);
    forward_.ffn_activation(ctx_, primary_weights(), m, u_q);
    return static_cast<double>(n) * forward_.ffn_activation_flops();
  });
  return u_q;
}

void BlockRunner::activate_again() {
  if (!plan_.keep_ffn_activations) return;
  for_chunks([&](Part /*part*/, int64_t r0, int64_t n) { activate(r0, n); });
}

void BlockRunner::ffn_output() {
  solve_ffn_output();
  repeat_cycles(Half::kFfn);
  if (both_streams()) std::swap(streams_->original, streams_->target);
}

void BlockRunner::solve_ffn_output(const format::QuantizedMatrix* before) {
  SiteMoments moments = start_moments(Site::kFfnOutput);
  const int64_t slab = forward_.tiling().slab_rows;
  const double projection = forward_.projection_flops(Role::kDown);
  for_chunks([&](Part part, int64_t r0, int64_t n) {
    const auto tokens = static_cast<double>(n);
    const FloatView u_q = activate(r0, n);
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
        y_q = ffn_output_of(streams_->quantized.read(r0, n, xq_), u_q);
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
        r = ffn_output_of(streams_->quantized.read(r0, n, xq_), u_q);
        flops = tokens * projection;
      }
      const FloatView y_f = streams_->target.read(r0, n, xf_);
      subtract(ctx_, y_f, r, r);
      return flops + moments.add_missing(ctx_, part, r, y_f, u_q, slab);
    });
  });
  solve_site(Site::kFfnOutput, std::move(moments), before);
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

}  // namespace lpcd::pipeline
