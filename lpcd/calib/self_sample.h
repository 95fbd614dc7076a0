#pragma once

#include <functional>
#include <span>
#include <vector>

#include "lpcd/arch/model.h"
#include "lpcd/calib/dataset.h"

namespace lpcd::calib {

/// What sample_from_model() takes.
struct SamplingCost {
  int64_t batch = 0;   ///< sequences that are written side by side
  int64_t passes = 0;  ///< over all weights; each adds a token to every sequence of a batch
  double flops = 0;
  uint64_t bytes = 0;         ///< of memory, with the weights of one block at a time
  uint64_t weight_bytes = 0;  ///< of all blocks in f32: those that fit as well are read only once
};
[[nodiscard]] SamplingCost sampling_cost(const arch::ModelConfig& config, int64_t samples,
                                         int64_t seq_len);

/// Keeps what is written from batch to batch, so that a process that is killed loses one batch.
struct SampleCheckpoint {
  /// Ids of the first sequences, whole batches of them, as save() got them last; or none.
  std::function<std::vector<int32_t>()> load;
  std::function<void(std::span<const int32_t> ids)> save;
};

/// Text that the model writes itself: `samples` sequences of seq_len tokens drawn at `temperature`
/// from its own distribution, so that no data set is needed.
///
/// The first token is the model's leading token where its tokenizer adds one (without a tokenizer:
/// where config.json names one), else one drawn uniformly from the ordinary tokens; end tokens do
/// not end a sequence, the text just goes on.
///
/// Numerics  Deterministic by seed for a given CPU and BLAS.
/// Memory    see arch::Decoder, which gets `weight_budget`; the cache of a batch is at most 4 GiB.
[[nodiscard]] Dataset sample_from_model(const RunContext& ctx, const arch::Model& model,
                                        const text::Tokenizer* tokenizer,
                                        const DatasetOptions& options, double temperature,
                                        uint64_t weight_budget,
                                        const SampleCheckpoint* checkpoint = nullptr);

/// One token from softmax(logits / temperature); the largest if temperature is 0.
/// `uniform` is a number in [0, 1). The logits are used up.
[[nodiscard]] int32_t draw_token(std::span<float> logits, double temperature, double uniform);

}  // namespace lpcd::calib
