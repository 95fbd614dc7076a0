#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/nn/ops.h"
#include "lpcd/submodules/coupled.h"
#include "lpcd/submodules/sums.h"

// Up-Down and gate: S = x + (silu(m Wg^T) * (m Wu^T)) Wd^T with m the normed stream.
//   up    S is linear: A D = ((m D^T) * s) Wd^T with s = silu(m Wg^T)
//   gate  derivative:  the same with s = silu'(m Wg^T) * (m Wu^T)

namespace lpcd::submodules {
namespace {

using arch::BlockWeights;
using arch::Role;

class FeedForward final : public Coupled {
 public:
  explicit FeedForward(const arch::BlockForward& forward)
      : forward_(forward), config_(forward.config()) {}

  SquaredSum objective(const RunContext& ctx, const SequenceChunk& chunk,
                       const BlockWeights& w) const override {
    Mat m = normed(ctx, chunk, w);
    Mat u = Mat::uninitialized(m.rows(), config_.ffn);
    forward_.ffn_activation(ctx, w, m, u);
    return squared_sum_of_scaled(ctx, chunk.weights, residual(ctx, chunk, w, u));
  }

  SquaredSum energy(const RunContext& ctx, const SequenceChunk& chunk) const override {
    return {.weighted = weighted_squared_norm(ctx, chunk.weights, chunk.y_f),
            .face_value = squared_norm(ctx, chunk.y_f)};
  }

  double descent(const RunContext& ctx, const SequenceChunk& chunk, const BlockWeights& w,
                 Role role, FloatView descent, Factors* factors) const override {
    Mat m = normed(ctx, chunk, w);
    Mat slope;
    Mat u = Mat::uninitialized(m.rows(), config_.ffn);
    activation(ctx, w, m, role, slope, u);
    if (cache_ != nullptr) cache_->write(chunk.first_row, slope);
    Mat r = residual(ctx, chunk, w, u);
    const double error = squared_norm(ctx, r);
    scale_rows(ctx, chunk.weights, r);
    adjoint(ctx, w, m, slope, r, u, descent);
    if (factors != nullptr) add_factors(ctx, chunk, w, m, slope, *factors);
    return error;
  }

  double curvature(const RunContext& ctx, const SequenceChunk& chunk, const BlockWeights& w,
                   Role role, ConstView d, FloatView product) const override {
    const Mat m = normed(ctx, chunk, w);
    Mat buffer;
    ConstView slope;
    Mat u = Mat::uninitialized(m.rows(), config_.ffn);
    if (cache_ != nullptr) {
      slope = cache_->read(chunk.first_row, m.rows(), buffer);
    } else {
      activation(ctx, w, m, role, buffer, {});
      slope = buffer;
    }
    linalg::gemm_nt(ctx, 1.0F, m, d, 0.0F, u, tile());
    multiply(ctx, slope, u);
    Mat out = Mat::uninitialized(m.rows(), config_.hidden);
    linalg::gemm_nt(ctx, 1.0F, u, w[Role::kDown], 0.0F, out, tile());
    scale_rows(ctx, chunk.weights, out);
    const double energy = squared_norm(ctx, out);
    scale_rows(ctx, chunk.weights, out);
    adjoint(ctx, w, m, slope, out, u, product);
    return energy;
  }

  Factors start_factors(Role /*role*/) const override {
    return {.input = Mat(config_.hidden, config_.hidden), .output = Mat(1, config_.ffn)};
  }

  void finish_factors(const RunContext& ctx, const BlockWeights& w, Role /*role*/, int64_t tokens,
                      Factors& sums) const override {
    const std::vector<float> g = column_energies(ctx, w[Role::kDown]);
    double total = 0;  // sum of the token weights
    for (int64_t n = 0; n < sums.output.cols(); ++n) {
      const double weighted =
          static_cast<double>(g[static_cast<size_t>(n)]) * static_cast<double>(sums.output(0, n));
      total += weighted;
      sums.output(0, n) = static_cast<float>(weighted / static_cast<double>(tokens));
    }
    linalg::mirror_lower(ctx, static_cast<float>(2.0 / std::max(total, 1e-30)), sums.input);
  }

  bool linear(Role role) const override { return role == Role::kUp; }

  double outputs_per_sequence() const override {
    return static_cast<double>(forward_.tiling().seq_len * config_.hidden);
  }

  double flops(Role role) const override {
    const double one = forward_.projection_flops(Role::kUp);
    return (cache_ != nullptr ? 4 : role == Role::kUp ? 5 : 6) * one;
  }

  double factor_flops(Role /*role*/) const override {
    return static_cast<double>(config_.hidden) * static_cast<double>(config_.hidden);
  }

  void set_cache(calib::ActivationStore* cache) override { cache_ = cache; }

 private:
  [[nodiscard]] int64_t tile() const { return forward_.tiling().row_tile; }

  Mat normed(const RunContext& ctx, const SequenceChunk& chunk, const BlockWeights& w) const {
    Mat m = Mat::uninitialized(chunk.x_q.rows(), config_.hidden);
    forward_.ffn_norm(ctx, w, chunk.x_q, m);
    return m;
  }

  // slope: what a change of the layer's output is multiplied with; u, if given: the input of
  // down_proj.
  void activation(const RunContext& ctx, const BlockWeights& w, ConstView m, Role role, Mat& slope,
                  FloatView u) const {
    slope = Mat::uninitialized(m.rows(), config_.ffn);
    linalg::gemm_nt(ctx, 1.0F, m, w[Role::kGate], 0.0F, slope, tile());
    Mat up;
    if (role == Role::kGate || !u.empty()) {
      up = Mat::uninitialized(m.rows(), config_.ffn);
      linalg::gemm_nt(ctx, 1.0F, m, w[Role::kUp], 0.0F, up, tile());
    }
    if (!u.empty()) {
      for_rows(ctx, m.rows(), [&](int64_t r0, int64_t n) {
        nn::silu_mul(slope.view().rows_range(r0, n), up.view().rows_range(r0, n),
                     u.rows_range(r0, n));
      });
    }
    if (role == Role::kUp) {
      for_rows(ctx, m.rows(), [&](int64_t r0, int64_t n) {
        nn::silu(slope.view().rows_range(r0, n), slope.view().rows_range(r0, n));
      });
    } else {
      for_rows(ctx, m.rows(), [&](int64_t r0, int64_t n) {
        const FloatView g = slope.view().rows_range(r0, n);
        nn::silu_slope_mul(g, up.view().rows_range(r0, n), g);
      });
    }
  }

  // m is used up. Weight of a token: |A D|^2 for a random D is about sum_n g_n s_n^2 with
  // g = diag(Wd^T Wd).
  void add_factors(const RunContext& ctx, const SequenceChunk& chunk, const BlockWeights& w, Mat& m,
                   ConstView slope, Factors& sums) const {
    const std::vector<float> g = column_energies(ctx, w[Role::kDown]);
    std::vector<float> weights(static_cast<size_t>(m.rows()));
    // Sums over the rows of a tile in the tile's own matrix, then in the order of the tiles.
    const int64_t rows = tile();
    std::vector<Mat> outputs(static_cast<size_t>(ceil_div(m.rows(), rows)));
    linalg::parallel_for(ctx, static_cast<int64_t>(outputs.size()), [&](int64_t index) {
      Mat output(1, slope.cols());
      for (int64_t t = index * rows; t < std::min(m.rows(), (index + 1) * rows); ++t) {
        const float weight = chunk.weights.empty() ? 1.0F : chunk.weights[static_cast<size_t>(t)];
        const float* s = slope.row(t);
        float sum = 0;
        for (int64_t n = 0; n < slope.cols(); ++n) {
          const float square = weight * s[n] * s[n];
          output.data()[n] += square;
          sum += g[static_cast<size_t>(n)] * square;
        }
        weights[static_cast<size_t>(t)] = sum;
      }
      outputs[static_cast<size_t>(index)] = std::move(output);
    });
    for (const Mat& output : outputs) {
      for (int64_t n = 0; n < output.size(); ++n) sums.output.data()[n] += output.data()[n];
    }
    scale_rows(ctx, weights, m);
    linalg::add_gram(ctx, m, forward_.tiling().slab_rows, sums.input);
  }

  // y_f - (x_q + u Wd^T), weighted
  Mat residual(const RunContext& ctx, const SequenceChunk& chunk, const BlockWeights& w,
               ConstView u) const {
    Mat r = Mat::uninitialized(u.rows(), config_.hidden);
    subtract(ctx, chunk.y_f, chunk.x_q, r);
    linalg::gemm_nt(ctx, -1.0F, u, w[Role::kDown], 1.0F, r, tile());
    scale_rows(ctx, chunk.weights, r);
    return r;
  }

  // sum += ((r Wd) * slope)^T m; `buffer` [t, F] is used.
  void adjoint(const RunContext& ctx, const BlockWeights& w, ConstView m, ConstView slope,
               ConstView r, FloatView buffer, FloatView sum) const {
    linalg::gemm_nn(ctx, 1.0F, r, w[Role::kDown], 0.0F, buffer, tile());
    multiply(ctx, slope, buffer);
    linalg::add_cross(ctx, buffer, m, forward_.tiling().slab_rows, sum);
  }

  const arch::BlockForward& forward_;
  const arch::ModelConfig& config_;
  calib::ActivationStore* cache_ = nullptr;
};

}  // namespace

std::unique_ptr<Coupled> make_feed_forward(const arch::BlockForward& forward,
                                           const arch::BlockWeights& /*original*/) {
  return std::make_unique<FeedForward>(forward);
}

}  // namespace lpcd::submodules
