#include "lpcd/calib/self_sample.h"

#include <algorithm>
#include <cmath>
#include <random>

#include "lpcd/arch/decoder.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/nn/ops.h"

namespace lpcd::calib {
namespace {

// Sequences that are generated side by side: enough for products to be matrix products, few enough
// for the key-value cache to stay below 4 GiB. Depends on the model only: a product's last bits may
// depend on its number of rows, and the text must not depend on the memory budget.
constexpr int64_t kMaxBatch = 64;
constexpr uint64_t kMaxCacheBytes = uint64_t{4} << 30;

// 53 random bits as a number in [0, 1).
double uniform01(std::mt19937_64& rng) { return static_cast<double>(rng() >> 11) * 0x1.0p-53; }

// What texts begin with: as the tokenizer has it, or the configuration where there is no tokenizer.
std::optional<int32_t> leading_of(const arch::Model& model, const text::Tokenizer* tokenizer) {
  std::optional<int64_t> id;
  if (tokenizer != nullptr) {
    id = tokenizer->leading_id();
  } else if (const Json bos = model.hf_config().value("bos_token_id", Json());
             bos.is_number_integer()) {
    id = bos.get<int64_t>();
  }
  if (!id || *id < 0 || *id >= model.config().vocab_size) return std::nullopt;
  return static_cast<int32_t>(*id);
}

int32_t draw_first(const text::Tokenizer* tokenizer, int64_t vocab_size, std::mt19937_64& rng) {
  constexpr int kDraws = 64;  // of vocabularies that have ordinary tokens at all
  int32_t id = 0;
  for (int draw = 0; draw < kDraws; ++draw) {
    id = static_cast<int32_t>(uniform01(rng) * static_cast<double>(vocab_size));
    if (tokenizer == nullptr || tokenizer->is_ordinary(id)) break;
  }
  return id;
}

}  // namespace

SamplingCost sampling_cost(const arch::ModelConfig& c, int64_t samples, int64_t seq_len) {
  const auto f32 = [](int64_t rows, int64_t cols) {
    return sizeof(float) * static_cast<uint64_t>(rows) * static_cast<uint64_t>(cols);
  };
  const uint64_t cache = 2 * f32(seq_len, c.blocks * c.kv_heads * c.head_dim);  // of a sequence
  SamplingCost cost;
  cost.batch = std::clamp<int64_t>(static_cast<int64_t>(kMaxCacheBytes / cache), 1,
                                   std::min(kMaxBatch, samples));
  cost.passes = ceil_div(samples, cost.batch) * (seq_len - 1);
  const auto tokens = static_cast<double>(samples) * static_cast<double>(seq_len - 1);
  const double attention = 2.0 * static_cast<double>(c.blocks * c.heads * c.head_dim * seq_len);
  cost.flops =
      tokens *
      (2.0 * static_cast<double>(c.linear_parameters() * c.blocks + c.vocab_size * c.hidden) +
       attention);
  cost.weight_bytes = f32(c.linear_parameters(), c.blocks);
  cost.bytes = static_cast<uint64_t>(cost.batch) * cache + f32(cost.batch, c.vocab_size) +
               f32((c.tied_head ? 1 : 2) * c.vocab_size, c.hidden) + f32(c.linear_parameters(), 1);
  return cost;
}

int32_t draw_token(std::span<float> logits, double temperature, double uniform) {
  const auto best = std::max_element(logits.begin(), logits.end()) - logits.begin();
  if (temperature <= 0) return static_cast<int32_t>(best);
  double left = uniform * nn::exp_weights(logits, static_cast<float>(1.0 / temperature));
  for (size_t i = 0; i < logits.size(); ++i) {
    left -= static_cast<double>(logits[i]);
    if (left < 0) return static_cast<int32_t>(i);
  }
  return static_cast<int32_t>(best);
}

Dataset sample_from_model(const RunContext& ctx, const arch::Model& model,
                          const text::Tokenizer* tokenizer, const DatasetOptions& options,
                          double temperature, uint64_t weight_budget,
                          const SampleCheckpoint* checkpoint) {
  const arch::ModelConfig& c = model.config();
  Dataset data;
  data.seq_len = options.seq_len;
  data.ids.resize(static_cast<size_t>(options.samples * options.seq_len));
  data.sources = {{"self", options.samples * options.seq_len, options.samples * options.seq_len}};

  const int64_t batch = sampling_cost(c, options.samples, options.seq_len).batch;
  const double total = static_cast<double>(options.samples * options.seq_len);

  const std::optional<int32_t> leading = leading_of(model, tokenizer);
  int64_t begin = 0;
  if (checkpoint != nullptr) {
    const std::vector<int32_t> kept = checkpoint->load();
    const auto tokens = static_cast<int64_t>(kept.size());
    if (tokens % (batch * options.seq_len) == 0 && kept.size() < data.ids.size()) {
      std::ranges::copy(kept, data.ids.begin());
      begin = tokens / options.seq_len;
    }
  }
  // One for all batches: a model that fits in memory is read once.
  arch::Decoder decoder(model, std::min(batch, options.samples - begin), options.seq_len,
                        weight_budget, &ctx);
  for (int64_t first = begin; first < options.samples; first += batch) {
    const int64_t count = std::min(batch, options.samples - first);
    // A generator per sequence: the text of one does not depend on how many are made at a time.
    std::vector<std::mt19937_64> rng;
    for (int64_t s = 0; s < count; ++s) {
      std::seed_seq seed{static_cast<uint32_t>(options.seed),
                         static_cast<uint32_t>(options.seed >> 32),
                         static_cast<uint32_t>(first + s)};
      rng.emplace_back(seed);
    }
    decoder.restart(count);
    std::vector<int32_t> ids(static_cast<size_t>(count));
    for (int64_t s = 0; s < count; ++s) {
      const auto i = static_cast<size_t>(s);
      ids[i] = leading ? *leading : draw_first(tokenizer, c.vocab_size, rng[i]);
      data.ids[static_cast<size_t>((first + s) * options.seq_len)] = ids[i];
    }
    for (int64_t t = 1; t < options.seq_len; ++t) {
      ctx.throw_if_cancelled();
      const FloatView logits = decoder.step(ctx, ids);
      linalg::parallel_for(ctx, count, [&](int64_t s) {
        const auto i = static_cast<size_t>(s);
        ids[i] = draw_token({logits.row(s), static_cast<size_t>(logits.cols())}, temperature,
                            uniform01(rng[i]));
        data.ids[static_cast<size_t>((first + s) * options.seq_len + t)] = ids[i];
      });
      ctx.report({.stage = "calibrate",
                  .item = "sampling text from the model",
                  .done = static_cast<double>(first * options.seq_len + count * t),
                  .total = total});
    }
    if (checkpoint != nullptr && first + batch < options.samples) {
      checkpoint->save(
          std::span(data.ids).first(static_cast<size_t>((first + count) * options.seq_len)));
    }
  }
  return data;
}

}  // namespace lpcd::calib
