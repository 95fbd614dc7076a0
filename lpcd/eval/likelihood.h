#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "lpcd/arch/model.h"
#include "lpcd/base/context.h"

namespace lpcd::eval {

/// Token ids of which the last `scored` are to be predicted from what comes before them.
struct ScoredText {
  std::vector<int32_t> ids;
  int64_t scored = 0;  ///< 1 to ids.size() - 1, and to the positions that the model has
};

/// How likely a model finds the scored tokens of a text.
struct Likelihood {
  double log_likelihood = 0;  ///< sum over the scored tokens, nats
  bool greedy = false;        ///< each of them is the most likely one
};

/// Likelihoods of texts of any lengths. Texts of one group are alternatives: what they have in
/// common at the beginning is computed once.
///
/// Texts longer than the model's positions lose their beginning.
/// Shapes    result as `groups`.
/// Numerics  The last bits of a result may depend on which groups are beside it.
/// Memory    256 MiB of hidden states (more if one group needs it), one block in f32, the
///           temporaries of about 4096 tokens, the head, the logits of 256 tokens.
/// Errors    kBadModel for an id outside the vocabulary; kNonFinite.
[[nodiscard]] std::vector<std::vector<Likelihood>> likelihoods(
    const RunContext& ctx, const arch::Model& model,
    std::span<const std::vector<ScoredText>> groups,
    const std::function<void(double share)>& advanced);

}  // namespace lpcd::eval
