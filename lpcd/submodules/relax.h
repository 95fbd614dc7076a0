#pragma once

#include <optional>
#include <vector>

#include "lpcd/linalg/factor.h"
#include "lpcd/submodules/coupled.h"
#include "lpcd/submodules/submodule.h"

namespace lpcd::submodules {

/// Adam as the reference package runs it: batches of 16 sequences whose gradients are averaged over
/// a step, 10 % warm-up, cosine; the schedule is laid out for one step per `batch` / 16
/// *sequences*, though a step takes `batch` of them, so that the learning rate rarely leaves the
/// warm-up.
struct AdamOptions {
  int epochs = 20;
  int64_t batch = 16;  ///< sequences per step, a multiple of 16
  double base_rate = 1e-4;
};
/// Sequences whose gradient is one term of a step.
constexpr int64_t kAdamChunk = 16;

struct RelaxOptions {
  bool adam = false;  ///< else conjugate gradients
  AdamOptions adam_options;
  /// Products with A^T A. The preconditioner is close to A^T A, so few are needed.
  int iterations = 2;
  /// Ridge of the problem (its fraction of the mean diagonal) and of the preconditioner's factors.
  linalg::Damping ridge;
  /// The factors are wanted even by Adam.
  bool factors = true;
  /// Share of the step to take; nothing: the best one on the held-out sequences, or, where there
  /// are none, kDefaultStrength.
  std::optional<double> strength;
};

/// |S_f|^2 per token: what errors are relative to. Measured when first asked for, since one part is
/// enough for most.
class Energies {
 public:
  /// What it is given must outlive it.
  Energies(const RunContext& ctx, const Coupled& coupled, const SequenceSource& source)
      : ctx_(ctx), coupled_(coupled), source_(source) {}

  [[nodiscard]] const SquaredSum& of(Part part) const;

 private:
  const RunContext& ctx_;
  const Coupled& coupled_;
  const SequenceSource& source_;
  mutable std::optional<SquaredSum> solve_;
  mutable std::optional<SquaredSum> held_out_;
};

/// The real-valued optimum of one layer of a submodule, as a step from where it was.
struct Relaxed {
  Mat step;             ///< D [N, K]: the least-squares optimum is W + D
  double strength = 0;  ///< share of it to take, in [0, 1]
  /// Mean squared error per token before, and after strength * D, relative to the energy of the
  /// original output; on the held-out sequences where there are any.
  double objective_before = 0;
  double objective_relaxed = 0;
  double residual = 0;  ///< |r| / |r_0| of the normal equations at the end
  Factors factors;      ///< of the layer at its weight in w, on the sequences that are solved on
};

/// Minimises the submodule's error in one layer by preconditioned conjugate gradients on
/// A^T A + ridge. The gradient and the factors, whose Kronecker product is the preconditioner, come
/// from all sequences that are solved on, A^T A from Part::kSample.
///
/// Where the submodule is not linear in the layer, the strength is tried on the true objective,
/// given or not: halved while it does not lower that, and 0 if nothing is gained.
/// Shapes    w[role] [N, K] is where the step starts.
/// Memory    6 N K floats, two factorisations, the temporaries of a chunk.
[[nodiscard]] Relaxed relax(const RunContext& ctx, const Coupled& coupled, arch::Role role,
                            const SequenceSource& source, arch::BlockWeights& w,
                            const Energies& energies, const RelaxOptions& options);

/// The weights that Adam reaches from w[role].
/// Shapes    `source` gives chunks of kAdamChunk sequences.
[[nodiscard]] Mat descend_with_adam(const RunContext& ctx, const Coupled& coupled, arch::Role role,
                                    const SequenceSource& source, arch::BlockWeights& w,
                                    const AdamOptions& options);

/// The submodule's errors at the weights in w, relative to its energies.
[[nodiscard]] SquaredSum relative_errors(const RunContext& ctx, const Coupled& coupled,
                                         const SequenceSource& source, Part part,
                                         const Energies& energies, const arch::BlockWeights& w);
/// The one with weights.
[[nodiscard]] double relative_error(const RunContext& ctx, const Coupled& coupled,
                                    const SequenceSource& source, Part part,
                                    const Energies& energies, const arch::BlockWeights& w);

/// a is better than b on the held-out sequences, and allowed beside the layer-wise baseline.
///
/// With the tokens' weights the few that have massive activations, on which much of attention
/// rests, are a handful among thousands: a solve may give them up for a little less error
/// everywhere else. So the error at face value, which is theirs, must not rise by more than 1 %
/// either, unless it stays below the other: then they are no worse off than the rest.
[[nodiscard]] bool better(const SquaredSum& a, const SquaredSum& b, const SquaredSum& baseline);

}  // namespace lpcd::submodules
