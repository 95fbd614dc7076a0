#include "lpcd/pipeline/block_runner.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>

#include "lpcd/base/raise.h"
#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/nn/ops.h"

namespace lpcd::pipeline {
namespace {

using arch::Role;
using submodules::CrossMoments;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

FloatView sized(Mat& buffer, int64_t rows, int64_t cols) {
  if (buffer.rows() < rows || buffer.cols() != cols) buffer = Mat::uninitialized(rows, cols);
  return buffer.view().rows_range(0, rows);
}

constexpr int64_t kElementRows = 256;  // rows per task of element-wise work

void subtract(const RunContext& ctx, ConstView x, ConstView y, FloatView out) {
  linalg::parallel_for(ctx, ceil_div(x.rows(), kElementRows), [&](int64_t task) {
    const int64_t r0 = task * kElementRows;
    const int64_t n = std::min(kElementRows, x.rows() - r0);
    nn::subtract(x.rows_range(r0, n), y.rows_range(r0, n), out.rows_range(r0, n));
  });
}

double summed(const RunContext& ctx, int64_t rows,
              const std::function<double(int64_t, int64_t)>& part) {
  std::vector<double> sums(static_cast<size_t>(ceil_div(rows, kElementRows)));
  linalg::parallel_for(ctx, static_cast<int64_t>(sums.size()), [&](int64_t task) {
    const int64_t r0 = task * kElementRows;
    sums[static_cast<size_t>(task)] = part(r0, std::min(kElementRows, rows - r0));
  });
  double total = 0;
  for (const double s : sums) total += s;
  return total;
}

double squared_norm(const RunContext& ctx, ConstView x) {
  return summed(ctx, x.rows(),
                [&](int64_t r0, int64_t n) { return nn::squared_norm(x.rows_range(r0, n)); });
}

double squared_distance(const RunContext& ctx, ConstView x, ConstView y) {
  return summed(ctx, x.rows(), [&](int64_t r0, int64_t n) {
    return nn::squared_distance(x.rows_range(r0, n), y.rows_range(r0, n));
  });
}

}  // namespace

class BlockRunner::Moments {
 public:
  Moments(const arch::ModelConfig& config, const LayerPlan& layer, bool equal_inputs)
      : h_(config.shape(layer.role)[1]) {
    const auto shape = config.shape(layer.role);
    if (layer.cross.input && !equal_inputs) input_.emplace(shape[1], shape[1]);
    if (layer.cross.output != CrossMoments::Output::kNone) output_.emplace(shape[0], shape[1]);
  }

  [[nodiscard]] bool wants_original_input() const { return input_.has_value(); }
  [[nodiscard]] bool wants_missing_output() const { return output_.has_value(); }

  // Each add returns the FLOPs it took; x_f is looked at only if it is wanted.
  double add_inputs(const RunContext& ctx, ConstView x_f, ConstView x_q, int64_t slab) {
    const auto tokens = static_cast<double>(x_q.rows());
    const auto k = static_cast<double>(x_q.cols());
    h_.add(ctx, x_q, slab);
    if (!input_) return tokens * k * (k + 1);
    const FloatView difference = sized(difference_, x_q.rows(), x_q.cols());
    subtract(ctx, x_f, x_q, difference);
    input_->add(ctx, difference, x_q, slab);
    return tokens * k * (3 * k + 1);
  }

  double add_missing(const RunContext& ctx, ConstView missing, ConstView y_f, ConstView x_q,
                     int64_t slab) {
    output_->add(ctx, missing, x_q, slab);
    missing_energy_ += squared_norm(ctx, missing);
    output_energy_ += squared_norm(ctx, y_f);
    return 2 * static_cast<double>(x_q.rows()) * static_cast<double>(missing.cols() * x_q.cols());
  }

  Mat finish_h(const RunContext& ctx) { return std::move(h_).finish(ctx); }
  Mat finish_input() { return input_ ? std::move(*input_).finish() : Mat(); }
  Mat finish_output() { return output_ ? std::move(*output_).finish() : Mat(); }
  [[nodiscard]] double missing_energy() const { return missing_energy_; }
  [[nodiscard]] double output_energy() const { return output_energy_; }

 private:
  calib::GramAccumulator h_;
  std::optional<calib::CrossAccumulator> input_;
  std::optional<calib::CrossAccumulator> output_;
  Mat difference_;
  double missing_energy_ = 0;  // sum of |r|^2
  double output_energy_ = 0;   // sum of |y_f|^2
};

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
  const int64_t chunk = forward_.tiling().chunk_rows;
  for (int64_t r0 = 0; r0 < plan_.tokens(); r0 += chunk) {
    ctx_.throw_if_cancelled();
    body(r0, std::min(chunk, plan_.tokens() - r0));
  }
}

template <typename Work>
void BlockRunner::timed(const char* stage, const Work& work) {
  const auto start = Clock::now();
  const double flops = work();
  report::StageCost& cost = record_->stages[stage];
  cost.seconds += seconds_since(start);
  cost.flops += flops;
  if (flops > 0) advanced_(stage, flops);
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
  for (size_t i = 0; i < arch::kRoleCount; ++i) {  // norms and biases stay as they are
    const auto role = static_cast<Role>(i);
    if (!arch::is_linear_role(role)) quantized_[role] = original_[role].clone();
  }
  if (plan_.quantized_stream && attention_out_.empty()) {
    attention_out_ = calib::ActivationStore(plan_.tokens(), config_.heads * config_.head_dim,
                                            scratch_directory_);
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

void BlockRunner::attention_input() {
  Moments moments(config_, plan_.layer(block_, Role::kQ), streams_->equal);
  for_chunks([&](int64_t r0, int64_t n) {
    const FloatView a_q = primary_attention_norm(r0, n);
    FloatView a_f;
    if (moments.wants_original_input()) {
      a_f = sized(af_, n, config_.hidden);
      timed("forward original", [&] {
        forward_.attention_norm(ctx_, original_, streams_->original.read(r0, n, xf_), a_f);
        return 0.0;
      });
    }
    timed("moments",
          [&] { return moments.add_inputs(ctx_, a_f, a_q, forward_.tiling().slab_rows); });
  });
  solve_site(Site::kAttentionInput, std::move(moments));
}

void BlockRunner::attention_output() {
  const LayerPlan& layer = plan_.layer(block_, Role::kO);
  Moments moments(config_, layer, false);
  const int64_t slab = forward_.tiling().slab_rows;
  const int64_t width = config_.heads * config_.head_dim;
  const double projection = forward_.projection_flops(Role::kO);
  for_chunks([&](int64_t r0, int64_t n) {
    const auto tokens = static_cast<double>(n);
    const FloatView a_q = primary_attention_norm(r0, n);
    const FloatView z_q =
        plan_.quantized_stream ? attention_out_.target(r0, n, zq_) : sized(zq_, n, width);
    timed(primary_stage(), [&] {
      forward_.attention(ctx_, primary_weights(), a_q, z_q);
      return tokens * forward_.attention_flops();
    });
    if (plan_.quantized_stream) attention_out_.write(r0, z_q);
    if (!plan_.original_stream) {
      timed("moments", [&] { return moments.add_inputs(ctx_, {}, z_q, slab); });
      return;
    }
    const FloatView x_f = streams_->original.read(r0, n, xf_);
    const FloatView r = sized(r_, n, config_.hidden);
    ConstView z_f = z_q;
    if (both_streams()) {
      const FloatView z = sized(zf_, n, width);
      timed("forward original", [&] {
        const FloatView a_f = sized(af_, n, config_.hidden);
        forward_.attention_norm(ctx_, original_, x_f, a_f);
        forward_.attention(ctx_, original_, a_f, z);
        return tokens * forward_.attention_flops();
      });
      z_f = z;
    }
    // What the output is compared with: h_q for the residual path, h_f for the layer alone.
    if (moments.wants_missing_output()) {
      const bool residual = layer.cross.output == CrossMoments::Output::kResidual;
      copy(residual ? streams_->quantized.read(r0, n, xq_) : x_f, r);
    }
    timed("forward original", [&] {
      forward_.add_projection(ctx_, z_f, original_[Role::kO], x_f);
      return tokens * projection;
    });
    streams_->original.write(r0, x_f);
    timed("moments", [&] {
      double flops = moments.add_inputs(ctx_, z_f, z_q, slab);
      if (moments.wants_missing_output()) {
        forward_.add_projection(ctx_, z_q, original_[Role::kO], r);
        subtract(ctx_, x_f, r, r);
        flops += tokens * projection + moments.add_missing(ctx_, r, x_f, z_q, slab);
      }
      return flops;
    });
  });
  solve_site(Site::kAttentionOutput, std::move(moments));
}

void BlockRunner::ffn_input() {
  Moments moments(config_, plan_.layer(block_, Role::kGate), false);
  for_chunks([&](int64_t r0, int64_t n) {
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
    if (moments.wants_original_input()) {
      m_f = sized(af_, n, config_.hidden);
      timed("forward original", [&] {
        forward_.ffn_norm(ctx_, original_, streams_->original.read(r0, n, xf_), m_f);
        return 0.0;
      });
    }
    timed("moments",
          [&] { return moments.add_inputs(ctx_, m_f, m_q, forward_.tiling().slab_rows); });
  });
  solve_site(Site::kFfnInput, std::move(moments));
}

void BlockRunner::ffn_output() {
  const LayerPlan& layer = plan_.layer(block_, Role::kDown);
  Moments moments(config_, layer, false);
  const int64_t slab = forward_.tiling().slab_rows;
  const double projection = forward_.projection_flops(Role::kDown);
  for_chunks([&](int64_t r0, int64_t n) {
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
    if (!plan_.original_stream) {
      timed("moments", [&] { return moments.add_inputs(ctx_, {}, u_q, slab); });
      return;
    }
    const FloatView x_f = streams_->original.read(r0, n, xf_);
    const FloatView r = sized(r_, n, config_.hidden);
    ConstView u_f = u_q;
    if (both_streams()) {
      const FloatView u = sized(uf_, n, config_.ffn);
      timed("forward original", [&] {
        forward_.ffn_norm(ctx_, original_, x_f, m);
        forward_.ffn_activation(ctx_, original_, m, u);
        return tokens * forward_.ffn_activation_flops();
      });
      u_f = u;
    }
    if (moments.wants_missing_output()) {
      copy(layer.cross.output == CrossMoments::Output::kResidual ? x_q : x_f, r);
    }
    timed("forward original", [&] {
      forward_.add_projection(ctx_, u_f, original_[Role::kDown], x_f);
      return tokens * projection;
    });
    streams_->original.write(r0, x_f);
    timed("moments", [&] {
      double flops = moments.add_inputs(ctx_, u_f, u_q, slab);
      if (moments.wants_missing_output()) {
        forward_.add_projection(ctx_, u_q, original_[Role::kDown], r);
        subtract(ctx_, x_f, r, r);
        flops += tokens * projection + moments.add_missing(ctx_, r, x_f, u_q, slab);
      }
      return flops;
    });
  });
  solve_site(Site::kFfnOutput, std::move(moments));
}

void BlockRunner::block_output() {
  double difference = 0;
  double energy = 0;
  for_chunks([&](int64_t r0, int64_t n) {
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
    if (both_streams()) {
      const FloatView x_f = streams_->original.read(r0, n, xf_);
      difference += squared_distance(ctx_, x_q, x_f);
      energy += squared_norm(ctx_, x_f);
    } else {
      energy += squared_norm(ctx_, x_q);
    }
  });
  if (!std::isfinite(energy) || !std::isfinite(difference)) {
    raise(ErrorCode::kNonFinite, "activations are not finite; the weights overflow in f32");
  }
  if (both_streams() && energy > 0) record_->output_error = difference / energy;
}

void BlockRunner::solve_site(Site site, Moments moments) {
  ctx_.throw_if_cancelled();
  timed("solve", [&] {
    const auto start = Clock::now();
    const Mat cross_input = moments.finish_input();
    const Mat cross_output = moments.finish_output();
    const auto order =
        plan_.options.act_order ? solve::ColumnOrder::kActivation : solve::ColumnOrder::kNatural;
    const solve::Metric metric = solve::make_metric(ctx_, moments.finish_h(ctx_),
                                                    {.fraction = plan_.options.percdamp}, order);
    const auto k = static_cast<double>(metric.inputs());
    double flops = k * k * k;
    const double shared_seconds = seconds_since(start);
    for (const Role role : roles_of(site)) {
      const auto layer_start = Clock::now();
      const LayerPlan& layer = plan_.layer(block_, role);
      const solve::ProjectOptions options = project_options(plan_, layer);
      const auto project = [&](ConstView target) {
        auto q = plan_.options.method == Method::kGptq
                     ? solve::project_gptq(ctx_, target, metric, options)
                     : solve::project_rtn(ctx_, target, options);
        q.f16_decode = plan_.solver.reference;
        return q;
      };
      report::LayerRecord& record = record_->layers.emplace_back();
      record.name = layer.name;
      record.submodule = layer.submodule->name();
      record.grid = layer.grid.text();
      record.damping = metric.factor.lambda;
      record.damping_raised = metric.factor.raised;
      const submodules::LayerProblem problem{
          .role = role,
          .weight = original_[role],
          .metric = &metric,
          .cross_input = cross_input,
          .cross_output = cross_output,
          .missing_energy = cross_output.empty()
                                ? -1
                                : moments.missing_energy() / static_cast<double>(plan_.tokens()),
          .output_energy = cross_output.empty()
                               ? -1
                               : moments.output_energy() / static_cast<double>(plan_.tokens())};
      format::QuantizedMatrix q = with_context(layer.name, [&] {
        return layer.submodule->solve(ctx_, problem, plan_.solver, project, record);
      });
      quantized_[role] = q.decode();
      if (observer_) observer_(role, q, quantized_[role]);
      record.weight_error = squared_distance(ctx_, quantized_[role], original_[role]) /
                            std::max(squared_norm(ctx_, original_[role]), 1e-30);
      layers_.emplace(role, std::move(q));
      const auto n = static_cast<double>(original_[role].rows());
      flops += n * k * k;
      if (!cross_input.empty()) flops += 2 * n * k * k;
      if (!cross_input.empty() || !cross_output.empty()) flops += 2 * n * k * k;
      record.seconds =
          seconds_since(layer_start) + shared_seconds / static_cast<double>(roles_of(site).size());
    }
    return flops;
  });
}

solve::ProjectOptions project_options(const Plan& plan, const LayerPlan& layer) {
  const QuantizeOptions& o = plan.options;
  const bool reference = o.preset == Preset::kOnecomp;
  solve::ProjectOptions options;
  options.grid = layer.grid;
  options.block_columns = o.block_size;
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
    r.weight_error = squared_distance(ctx, q.decode(), w) / std::max(squared_norm(ctx, w), 1e-30);
    r.seconds = seconds_since(layer_start);
    layers.emplace(layer.role, std::move(q));
  }
  record.seconds = seconds_since(start);
  return layers;
}

}  // namespace lpcd::pipeline
