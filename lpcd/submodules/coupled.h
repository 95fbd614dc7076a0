#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "lpcd/arch/block_forward.h"
#include "lpcd/calib/activations.h"
#include "lpcd/submodules/sums.h"

namespace lpcd::submodules {

/// What a chunk of whole sequences looks like around one half of a block (attention or
/// feed-forward).
///
/// Shapes    all [t, D]. Lifetime: of the call that it is handed to.
struct SequenceChunk {
  ConstView x_f;  ///< residual stream of the original model before the half block
  ConstView x_q;  ///< the same of the quantized model
  ConstView y_f;  ///< residual stream of the original model behind the half block
  /// Weight of each token's squared error on the residual path [t]; empty: 1. See token_weights().
  std::span<const float> weights;
  int64_t first_row = 0;  ///< of all calibration tokens
};

/// Calibration sequences that weights are solved on, and those that only choices are made on.
/// kSample is the beginning of kSolve: enough for the curvature of a least-squares problem, whose
/// gradient needs them all.
enum class Part { kSolve, kHeldOut, kSample };

/// Hands out the activations around a half block, chunk by chunk, in a fixed order.
class SequenceSource {
 public:
  virtual ~SequenceSource() = default;
  [[nodiscard]] virtual int64_t tokens(Part part) const = 0;
  [[nodiscard]] virtual int64_t seq_len() const = 0;
  virtual void for_chunks(Part part,
                          const std::function<void(const SequenceChunk&)>& body) const = 0;
};

/// What a relaxation wants to know of its least-squares problem besides the operator.
struct Factors {
  /// Second moment of the layer's inputs with the weight that the submodule gives them,
  /// (2/T) sum w_t x_t x_t^T, sum w_t = T.  [K, K]: a metric to project in.
  Mat input;
  /// How errors of the layer's outputs add up: A^T A is about `output` (x) `input`.
  /// [1, N] if it is diagonal, or [N, d]: the blocks [d, d] on the diagonal, one per head.
  Mat output;

  [[nodiscard]] bool diagonal_output() const { return output.rows() == 1; }
};

/// Several layers whose joint output LPCD keeps close to the original's (arXiv 2512.01546), seen as
/// a least-squares problem in one of them while the others are fixed:
///
///   f(W) = (1/T) sum_t w_t |S_f - S(W)|^2,   S(W + D) = S(W) + A D.
///
/// The weights w_t of the tokens apply where S is the residual stream; below, S stands for what
/// remains once they are multiplied in.
///
/// Where S is not linear in W, A is its derivative at W (Gauss-Newton).
///
/// Every method adds to its last argument what a chunk contributes, without the factor 1/T.
/// Numerics  Sums go slab by slab in token order: results depend neither on threads nor on the
///           size of the chunks.
class Coupled {
 public:
  virtual ~Coupled() = default;

  /// |S_f - S(W)|^2 of the chunk.
  virtual SquaredSum objective(const RunContext& ctx, const SequenceChunk& chunk,
                               const arch::BlockWeights& w) const = 0;
  /// |S_f|^2 of the chunk: what errors are relative to.
  virtual SquaredSum energy(const RunContext& ctx, const SequenceChunk& chunk) const = 0;
  /// descent += A^T (S_f - S(W)) for the layer `role` at its weight in w; returns |S_f - S(W)|^2.
  /// `factors`, if given, are the sums that finish_factors() turns into Factors.
  /// Shapes    descent [N, K].
  virtual double descent(const RunContext& ctx, const SequenceChunk& chunk,
                         const arch::BlockWeights& w, arch::Role role, FloatView descent,
                         Factors* factors) const = 0;
  /// product += A^T A d at the weights of the last descent() on this chunk; returns |A d|^2.
  /// Shapes    d, product [N, K].
  virtual double curvature(const RunContext& ctx, const SequenceChunk& chunk,
                           const arch::BlockWeights& w, arch::Role role, ConstView d,
                           FloatView product) const = 0;
  /// Factors of zeros, of the right shapes; and what the sums over `tokens` tokens come to.
  [[nodiscard]] virtual Factors start_factors(arch::Role role) const = 0;
  virtual void finish_factors(const RunContext& ctx, const arch::BlockWeights& w, arch::Role role,
                              int64_t tokens, Factors& sums) const = 0;
  /// S is linear in the layer: f is a parabola along any line.
  [[nodiscard]] virtual bool linear(arch::Role role) const = 0;
  /// Numbers that f compares per sequence: the reference package's losses are means over them.
  [[nodiscard]] virtual double outputs_per_sequence() const = 0;
  /// Lends memory [T, F] in which derivatives are kept between descent() and curvature(), which
  /// otherwise computes them again; null takes it back.
  virtual void set_cache(calib::ActivationStore* /*cache*/) {}
  /// FLOPs per token of curvature(); descent() costs about the same, objective() about half.
  [[nodiscard]] virtual double flops(arch::Role role) const = 0;
  /// FLOPs per token of the sums for Factors, which descent() adds up when asked to.
  [[nodiscard]] virtual double factor_flops(arch::Role role) const = 0;
};

/// The half of a block that a coupled submodule lives in.
enum class Half { kAttention, kFfn };

/// A row of the registry.
struct CoupledInfo {
  std::string_view name;  ///< what --lpcd calls it
  Half half;
  std::vector<arch::Role> relaxed;  ///< layers relaxed by this submodule, in order
  /// The layer behind them at whose output, on the residual stream, errors are compared; it is
  /// solved after them. Nothing: errors are compared at their own outputs.
  std::optional<arch::Role> closing;
  bool owns_closing;  ///< the closing layer is the submodule's too: its residual path is solved
  /// For one block; `original` holds its weights in the original model and must outlive the result.
  std::unique_ptr<Coupled> (*make)(const arch::BlockForward& forward,
                                   const arch::BlockWeights& original);
  /// As the reference package has it; null: it has not.
  std::unique_ptr<Coupled> (*make_reference)(const arch::BlockForward& forward,
                                             const arch::BlockWeights& original);
};

/// All coupled submodules in the order in which they are visited.
[[nodiscard]] std::span<const CoupledInfo> coupled_submodules();

/// q_proj and k_proj: attention logits.
std::unique_ptr<Coupled> make_query_key(const arch::BlockForward& forward,
                                        const arch::BlockWeights& original);
/// The same over all pairs of positions, future keys included, as the reference package compares
/// them.
std::unique_ptr<Coupled> make_reference_query_key(const arch::BlockForward& forward,
                                                  const arch::BlockWeights& original);
/// v_proj (then o_proj): residual stream behind attention.
std::unique_ptr<Coupled> make_value_output(const arch::BlockForward& forward,
                                           const arch::BlockWeights& original);
/// gate_proj and up_proj (then down_proj): residual stream behind the feed-forward half.
std::unique_ptr<Coupled> make_feed_forward(const arch::BlockForward& forward,
                                           const arch::BlockWeights& original);

}  // namespace lpcd::submodules
