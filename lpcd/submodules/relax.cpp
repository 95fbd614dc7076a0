#include "lpcd/submodules/relax.h"

#include <algorithm>
#include <cmath>

#include "lpcd/nn/ops.h"
#include "lpcd/submodules/sums.h"

namespace lpcd::submodules {
namespace {

using arch::BlockWeights;
using arch::Role;

// Of a square matrix, of blocks on a diagonal one below the other, or of a diagonal as a row.
double mean_diagonal(ConstView m) {
  double sum = 0;
  const int64_t n = std::max(m.rows(), m.cols());
  for (int64_t k = 0; k < n; ++k) {
    sum += static_cast<double>(m.rows() == 1 ? m(0, k) : m(k, k % m.cols()));
  }
  return sum / static_cast<double>(n);
}

Mat transposed(const RunContext& ctx, ConstView m) {
  Mat out = Mat::uninitialized(m.cols(), m.rows());
  for_rows(ctx, out.rows(), [&](int64_t r0, int64_t n) {
    for (int64_t c = r0; c < r0 + n; ++c) {
      for (int64_t r = 0; r < m.rows(); ++r) out(c, r) = m(r, c);
    }
  });
  return out;
}

// (output + ridge)^-1 R (input + ridge)^-1
class Preconditioner {
 public:
  Preconditioner(const RunContext& ctx, const Factors& factors, const linalg::Damping& ridge)
      : ctx_(ctx), input_(linalg::factor_damped_inverse(ctx, factors.input, ridge)) {
    if (!factors.diagonal_output()) {
      const int64_t d = factors.output.cols();
      for (int64_t first = 0; first < factors.output.rows(); first += d) {
        heads_.push_back(
            linalg::factor_damped_inverse(ctx, factors.output.view().rows_range(first, d), ridge));
      }
      return;
    }
    const double damping = std::max(ridge.fraction * mean_diagonal(factors.output), 1e-30);
    for (int64_t n = 0; n < factors.output.cols(); ++n) {
      inverse_diagonal_.push_back(
          static_cast<float>(1.0 / (static_cast<double>(factors.output(0, n)) + damping)));
    }
  }

  [[nodiscard]] Mat apply(const Mat& r) const {
    Mat out = copied(ctx_, r);
    linalg::solve_right(ctx_, input_, out);
    if (!inverse_diagonal_.empty()) {
      for_rows(ctx_, out.rows(), [&](int64_t r0, int64_t count) {
        for (int64_t n = r0; n < r0 + count; ++n) {
          const float factor = inverse_diagonal_[static_cast<size_t>(n)];
          for (int64_t k = 0; k < out.cols(); ++k) out(n, k) *= factor;
        }
      });
      return out;
    }
    const int64_t d = out.rows() / static_cast<int64_t>(heads_.size());
    for (size_t head = 0; head < heads_.size(); ++head) {
      const FloatView rows = out.view().rows_range(static_cast<int64_t>(head) * d, d);
      Mat turned = transposed(ctx_, rows);
      linalg::solve_right(ctx_, heads_[head], turned);
      copy(transposed(ctx_, turned), rows);
    }
    return out;
  }

 private:
  const RunContext& ctx_;
  linalg::InverseFactor input_;
  std::vector<linalg::InverseFactor> heads_;
  std::vector<float> inverse_diagonal_;
};

struct Descent {
  Mat gradient;      // (1/T) A^T (S_f - S)
  double error = 0;  // per token
};

Descent descent_on(const RunContext& ctx, const Coupled& coupled, Role role,
                   const SequenceSource& source, Part part, const BlockWeights& w,
                   Factors* factors = nullptr) {
  Descent d{.gradient = Mat(w[role].rows(), w[role].cols())};
  source.for_chunks(part, [&](const SequenceChunk& chunk) {
    d.error += coupled.descent(ctx, chunk, w, role, d.gradient, factors);
  });
  const double tokens = static_cast<double>(source.tokens(part));
  scale(ctx, 1.0 / tokens, d.gradient);
  d.error /= tokens;
  return d;
}

// On the sequences that weights are solved on.
Descent descent_with_factors(const RunContext& ctx, const Coupled& coupled, Role role,
                             const SequenceSource& source, const BlockWeights& w,
                             Factors& factors) {
  factors = coupled.start_factors(role);
  Descent d = descent_on(ctx, coupled, role, source, Part::kSolve, w, &factors);
  coupled.finish_factors(ctx, w, role, source.tokens(Part::kSolve), factors);
  return d;
}

// (1/T) A^T A d; returns (1/T) |A d|^2
double curvature_on(const RunContext& ctx, const Coupled& coupled, Role role,
                    const SequenceSource& source, Part part, const BlockWeights& w, const Mat& d,
                    Mat& product) {
  product.set_zero();
  double energy = 0;
  source.for_chunks(part, [&](const SequenceChunk& chunk) {
    energy += coupled.curvature(ctx, chunk, w, role, d, product);
  });
  const double tokens = static_cast<double>(source.tokens(part));
  scale(ctx, 1.0 / tokens, product);
  return energy / tokens;
}

// Per token.
SquaredSum errors_on(const RunContext& ctx, const Coupled& coupled, const SequenceSource& source,
                     Part part, const BlockWeights& w) {
  SquaredSum sum;
  source.for_chunks(part,
                    [&](const SequenceChunk& chunk) { sum += coupled.objective(ctx, chunk, w); });
  const auto tokens = static_cast<double>(source.tokens(part));
  return {.weighted = sum.weighted / tokens, .face_value = sum.face_value / tokens};
}

void conjugate_gradients(const RunContext& ctx, const Coupled& coupled, Role role,
                         const SequenceSource& source, const BlockWeights& w,
                         const RelaxOptions& options, Relaxed& result) {
  Descent start = descent_with_factors(ctx, coupled, role, source, w, result.factors);
  const Factors& factors = result.factors;
  const Preconditioner precondition(ctx, factors, options.ridge);
  const double ridge =
      options.ridge.fraction * mean_diagonal(factors.output) * 0.5 * mean_diagonal(factors.input);
  result.step = Mat(w[role].rows(), w[role].cols());
  Mat residual = std::move(start.gradient);
  const double first = std::sqrt(inner_product(ctx, residual, residual));
  Mat z = precondition.apply(residual);
  Mat direction = z.clone();
  Mat product(residual.rows(), residual.cols());
  double rz = inner_product(ctx, residual, z);
  for (int i = 0; i < options.iterations && rz > 0; ++i) {
    curvature_on(ctx, coupled, role, source, Part::kSample, w, direction, product);
    add_scaled(ctx, ridge, direction, product);
    const double bend = inner_product(ctx, direction, product);
    if (!(bend > 0)) break;
    const double length = rz / bend;
    add_scaled(ctx, length, direction, result.step);
    add_scaled(ctx, -length, product, residual);
    if (i + 1 == options.iterations) break;
    z = precondition.apply(residual);
    const double next = inner_product(ctx, residual, z);
    scale(ctx, next / rz, direction);
    add_scaled(ctx, 1.0, z, direction);
    rz = next;
  }
  result.residual = first > 0 ? std::sqrt(inner_product(ctx, residual, residual)) / first : 0;
}

}  // namespace

const SquaredSum& Energies::of(Part part) const {
  LPCD_CHECK(part != Part::kSample);
  std::optional<SquaredSum>& known = part == Part::kSolve ? solve_ : held_out_;
  if (!known) {
    SquaredSum sum;
    source_.for_chunks(part,
                       [&](const SequenceChunk& chunk) { sum += coupled_.energy(ctx_, chunk); });
    const double tokens = std::max(1.0, static_cast<double>(source_.tokens(part)));
    known = SquaredSum{.weighted = std::max(sum.weighted / tokens, 1e-30),
                       .face_value = std::max(sum.face_value / tokens, 1e-30)};
  }
  return *known;
}

SquaredSum relative_errors(const RunContext& ctx, const Coupled& coupled,
                           const SequenceSource& source, Part part, const Energies& energies,
                           const BlockWeights& w) {
  const SquaredSum error = errors_on(ctx, coupled, source, part, w);
  const SquaredSum& energy = energies.of(part);
  return {.weighted = error.weighted / energy.weighted,
          .face_value = error.face_value / energy.face_value};
}

bool better(const SquaredSum& a, const SquaredSum& b, const SquaredSum& baseline) {
  constexpr double kTolerance = 1.01;  // between two solutions it hardly changes
  return a.weighted < b.weighted &&
         (a.face_value <= kTolerance * baseline.face_value || a.face_value <= a.weighted);
}

double relative_error(const RunContext& ctx, const Coupled& coupled, const SequenceSource& source,
                      Part part, const Energies& energies, const BlockWeights& w) {
  return relative_errors(ctx, coupled, source, part, energies, w).weighted;
}

Mat descend_with_adam(const RunContext& ctx, const Coupled& coupled, Role role,
                      const SequenceSource& source, BlockWeights& w, const AdamOptions& options) {
  const int64_t sequences = source.tokens(Part::kSolve) / source.seq_len();
  const int64_t chunks_per_step = options.batch / kAdamChunk;
  const int64_t total = options.epochs * sequences / chunks_per_step;
  const auto warm = static_cast<int64_t>(0.1 * static_cast<double>(total));
  const auto rate_at = [&](int64_t step) {
    if (step < warm) {
      return options.base_rate * static_cast<double>(step) / static_cast<double>(warm);
    }
    const double share =
        static_cast<double>(step - warm) / static_cast<double>(std::max<int64_t>(1, total - warm));
    return options.base_rate * std::max(0.0, (1 + std::cos(M_PI * share)) / 2);
  };
  Mat& weight = w[role];
  const Mat from = weight.clone();
  Mat gradient(weight.rows(), weight.cols());
  Mat descent(weight.rows(), weight.cols());
  Mat mean(weight.rows(), weight.cols());
  Mat square(weight.rows(), weight.cols());
  int64_t step = 0;
  for (int epoch = 0; epoch < options.epochs; ++epoch) {
    int64_t chunk_index = 0;
    source.for_chunks(Part::kSolve, [&](const SequenceChunk& chunk) {
      descent.set_zero();
      (void)coupled.descent(ctx, chunk, w, role, descent, nullptr);
      const int64_t in_chunk = chunk.x_q.rows() / source.seq_len();
      const double outputs = coupled.outputs_per_sequence() * static_cast<double>(in_chunk);
      add_scaled(ctx, -2.0 / outputs / static_cast<double>(chunks_per_step), descent, gradient);
      if (++chunk_index % chunks_per_step != 0) return;
      const double rate = rate_at(step++);
      const auto first = static_cast<float>(1 - std::pow(0.9, step));
      const auto second = static_cast<float>(std::sqrt(1 - std::pow(0.999, step)));
      const auto length = static_cast<float>(rate) / first;
      for (int64_t i = 0; i < weight.size(); ++i) {
        const float g = gradient.data()[i];
        float& m = mean.data()[i];
        float& v = square.data()[i];
        m += (g - m) * 0.1F;
        v = v * 0.999F + g * g * 0.001F;
        weight.data()[i] -= length * m / (std::sqrt(v) / second + 1e-8F);
      }
      gradient.set_zero();
    });
  }
  Mat reached = weight.clone();
  copy(from, weight);
  return reached;
}

Relaxed relax(const RunContext& ctx, const Coupled& coupled, Role role,
              const SequenceSource& source, BlockWeights& w, const Energies& energies,
              const RelaxOptions& options) {
  Relaxed result;
  if (options.adam) {
    result.step = descend_with_adam(ctx, coupled, role, source, w, options.adam_options);
    add_scaled(ctx, -1.0, w[role], result.step);
    if (options.factors) {
      (void)descent_with_factors(ctx, coupled, role, source, w, result.factors);
    }
  } else {
    conjugate_gradients(ctx, coupled, role, source, w, options, result);
  }

  const bool held_out = source.tokens(Part::kHeldOut) > 0;
  const Part judge = held_out ? Part::kHeldOut : Part::kSolve;
  const double energy = energies.of(judge).weighted;
  Mat product(w[role].rows(), w[role].cols());
  const Descent here = descent_on(ctx, coupled, role, source, judge, w);
  const double bend = curvature_on(ctx, coupled, role, source, judge, w, result.step, product);
  const double slope = inner_product(ctx, here.gradient, result.step);
  result.objective_before = here.error / energy;
  // f(s) = f(0) - 2 s slope + s^2 bend
  double s = options.strength.value_or(kDefaultStrength);
  if (held_out && !options.strength) s = bend > 0 ? std::clamp(slope / bend, 0.0, 1.0) : 0.0;
  if (coupled.linear(role)) {
    result.strength = s;
    result.objective_relaxed = std::max(0.0, here.error - 2 * s * slope + s * s * bend) / energy;
    return result;
  }
  // The parabola is a guess; the true objective decides.
  result.objective_relaxed = result.objective_before;
  const Mat from = w[role].clone();
  for (int attempt = 0; attempt < 3 && s > 0; ++attempt, s /= 2) {
    copy(from, w[role]);
    add_scaled(ctx, s, result.step, w[role]);
    const double error = errors_on(ctx, coupled, source, judge, w).weighted / energy;
    if (error < result.objective_relaxed) {
      result.objective_relaxed = error;
      result.strength = s;
      break;
    }
  }
  copy(from, w[role]);
  return result;
}

}  // namespace lpcd::submodules
