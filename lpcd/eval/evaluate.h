#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "lpcd/arch/model.h"
#include "lpcd/base/context.h"

namespace lpcd::eval {

/// Which tokens of a window are scored.
enum class PerplexityMode {
  kWindows,   ///< every token but the first of a window (transformers' usual loop)
  kLlamaCpp,  ///< the second half of a window, with BOS in its first place where the model adds one
};

/// Windows of token ids to score.
struct Windows {
  std::vector<int32_t> ids;  ///< [B, L]
  int64_t seq_len = 0;
  PerplexityMode mode = PerplexityMode::kWindows;

  [[nodiscard]] int64_t count() const { return static_cast<int64_t>(ids.size()) / seq_len; }
  /// First position of a window whose prediction of the next token counts.
  [[nodiscard]] int64_t first_scored() const {
    return mode == PerplexityMode::kLlamaCpp ? seq_len / 2 : 0;
  }
};

/// Cuts tokens into windows; a partial last window is left out.
/// Errors    kBadText if there is not one whole window.
[[nodiscard]] Windows make_windows(std::vector<int32_t> tokens, int64_t seq_len, int64_t max_tokens,
                                   PerplexityMode mode, std::optional<int32_t> leading_id,
                                   const std::string& source);

/// How well a model predicts a text.
struct Prediction {
  int64_t tokens = 0;    ///< scored
  double nll = 0;        ///< mean negative log likelihood, nats per token
  double nll_error = 0;  ///< standard error of the mean
  [[nodiscard]] double perplexity() const;
};

/// How far a model's next-token distribution is from another's, over the scored tokens.
struct Divergence {
  double kl_mean = 0;   ///< KL(reference || model), nats
  double kl_error = 0;  ///< standard error of the mean
  double kl_median = 0;
  double kl_p99 = 0;
  double top1_agreement = 0;  ///< share of tokens with the same most likely successor
};

/// Error of a block's output X (the residual stream) against the reference's X_f.
struct BlockError {
  double relative = 0;   ///< |X - X_f|^2 / |X_f|^2 over all tokens, as in LPCD's Figure 1
  double per_token = 0;  ///< mean of | x / |x| - x_f / |x_f| |^2, what the next norm sees of it
};

struct Comparison {
  Prediction model;
  std::optional<Prediction> reference;
  std::optional<Divergence> divergence;
  std::vector<BlockError> block_errors;  ///< empty without a reference of the same shape
};

/// What compare() takes of memory for so many tokens in windows of seq_len; `reference` may be
/// null.
[[nodiscard]] uint64_t comparison_bytes(const arch::ModelConfig& model,
                                        const arch::ModelConfig* reference, int64_t tokens,
                                        int64_t seq_len);

/// Scores `model` on the windows, and `reference` beside it if given.
///
/// Memory    comparison_bytes(): hidden states of all windows for each model; beside them one block
///           and the temporaries of a chunk, later both heads and the logits of 256 rows.
/// Errors    kBadModel if the vocabularies differ or an id is outside them; kNonFinite.
[[nodiscard]] Comparison compare(const RunContext& ctx, const arch::Model& model,
                                 const arch::Model* reference, const Windows& windows);

}  // namespace lpcd::eval
