#include "lpcd/eval/evaluate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "lpcd/base/raise.h"
#include "lpcd/calib/dataset.h"
#include "lpcd/eval/hidden_states.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/nn/ops.h"

namespace lpcd::eval {
namespace {

struct MeanAndError {
  double mean = 0;
  double error = 0;
};

MeanAndError mean_and_error(const std::vector<double>& values) {
  const auto n = static_cast<double>(values.size());
  const double mean = std::accumulate(values.begin(), values.end(), 0.0) / n;
  double squares = 0;
  for (const double v : values) squares += (v - mean) * (v - mean);
  return {mean, n > 1 ? std::sqrt(squares / (n - 1) / n) : 0.0};
}

double quantile(std::vector<double> values, double q) {
  const auto at = static_cast<int64_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + at, values.end());
  return values[static_cast<size_t>(at)];
}

// One scored position: row of the hidden states, and the token that really follows.
struct Scored {
  int64_t row;
  int32_t next;
};

std::vector<Scored> scored_positions(const Windows& windows) {
  std::vector<Scored> positions;
  for (int64_t w = 0; w < windows.count(); ++w) {
    for (int64_t i = windows.first_scored(); i + 1 < windows.seq_len; ++i) {
      const int64_t row = w * windows.seq_len + i;
      positions.push_back({row, windows.ids[static_cast<size_t>(row + 1)]});
    }
  }
  return positions;
}

// Logits of a run of scored positions under one model.
class Scorer {
 public:
  Scorer(const arch::Model& model, calib::ActivationStore hidden)
      : hidden_(std::move(hidden)),
        head_(read_head(model)),
        gathered_(Mat::uninitialized(kRowsPerPass, hidden_.cols())),
        logits_(Mat::uninitialized(kRowsPerPass, head_.rows())) {}

  ConstView score(const RunContext& ctx, std::span<const Scored> run) {
    Mat buffer;
    const auto count = static_cast<int64_t>(run.size());
    for (int64_t i = 0; i < count; ++i) {
      copy(hidden_.read(run[static_cast<size_t>(i)].row, 1, buffer),
           gathered_.view().rows_range(i, 1));
    }
    const FloatView logits = logits_.view().rows_range(0, count);
    project_logits(ctx, gathered_.view().rows_range(0, count), head_, logits);
    softmax_.resize(run.size());
    linalg::parallel_for(ctx, count, [&](int64_t i) {
      softmax_[static_cast<size_t>(i)] = nn::row_log_sum_exp(logits.rows_range(i, 1))[0];
    });
    return logits;
  }
  [[nodiscard]] const std::vector<nn::RowSoftmax>& softmax() const { return softmax_; }

 private:
  calib::ActivationStore hidden_;
  Mat head_;
  Mat gathered_;
  Mat logits_;
  std::vector<nn::RowSoftmax> softmax_;
};

BlockError error_of(const RunContext& ctx, ConstView x, ConstView x_f) {
  constexpr int64_t kRows = 256;  // per task
  struct Sums {
    double difference, energy, angles;
  };
  std::vector<Sums> parts(static_cast<size_t>(ceil_div(x.rows(), kRows)));
  linalg::parallel_for(ctx, std::ssize(parts), [&](int64_t task) {
    const int64_t rows = std::min(kRows, x.rows() - task * kRows);
    const ConstView a = x.rows_range(task * kRows, rows);
    const ConstView b = x_f.rows_range(task * kRows, rows);
    parts[static_cast<size_t>(task)] = {nn::squared_distance(a, b), nn::squared_norm(b),
                                        nn::squared_angles(a, b)};
  });
  Sums sum{};
  for (const Sums& part : parts) {
    sum.difference += part.difference;
    sum.energy += part.energy;
    sum.angles += part.angles;
  }
  return {.relative = sum.energy > 0 ? sum.difference / sum.energy : 0,
          .per_token = sum.angles / static_cast<double>(x.rows())};
}

Prediction summarize(const std::vector<double>& nll, const arch::Model& model) {
  const MeanAndError m = mean_and_error(nll);
  if (!std::isfinite(m.mean)) {
    raise(ErrorCode::kNonFinite,
          "{}: the model gives no finite probabilities; its weights overflow", model.path());
  }
  return {.tokens = static_cast<int64_t>(nll.size()), .nll = m.mean, .nll_error = m.error};
}

}  // namespace

double Prediction::perplexity() const { return std::exp(nll); }

Windows make_windows(std::vector<int32_t> tokens, int64_t seq_len, int64_t max_tokens,
                     PerplexityMode mode, std::optional<int32_t> leading_id,
                     const std::string& source) {
  if (max_tokens > 0 && std::cmp_greater(tokens.size(), max_tokens)) {
    tokens.resize(static_cast<size_t>(max_tokens));
  }
  const int64_t count = static_cast<int64_t>(tokens.size()) / seq_len;
  if (count == 0) {
    raise(ErrorCode::kBadText,
          "{}: {} tokens do not fill one window of {}; give more text or a smaller "
          "--seq-len",
          source, tokens.size(), seq_len);
  }
  tokens.resize(static_cast<size_t>(count * seq_len));
  if (mode == PerplexityMode::kLlamaCpp && leading_id) {
    for (int64_t w = 0; w < count; ++w) tokens[static_cast<size_t>(w * seq_len)] = *leading_id;
  }
  return {.ids = std::move(tokens), .seq_len = seq_len, .mode = mode};
}

uint64_t comparison_bytes(const arch::ModelConfig& model, const arch::ModelConfig* reference,
                          int64_t tokens, int64_t seq_len) {
  const auto f32 = [](int64_t rows, int64_t cols) {
    return sizeof(float) * static_cast<uint64_t>(rows) * static_cast<uint64_t>(cols);
  };
  const int64_t chunk = std::min(tokens, arch::SequenceTiling::for_length(seq_len).chunk_rows);
  uint64_t states = 0;
  uint64_t block = 0;  // of one model at a time
  uint64_t heads = 0;
  for (const arch::ModelConfig* c : {&model, reference}) {
    if (c == nullptr) continue;
    const int64_t q = c->heads * c->head_dim;
    const int64_t kv = c->kv_heads * c->head_dim;
    states += f32(tokens, c->hidden);
    // With a matrix on its way from the file, and what BlockForward::run keeps of a chunk.
    block = std::max(block, f32(c->linear_parameters(), 1) + f32(std::max(c->ffn, q), c->hidden) +
                                f32(chunk, c->hidden + q + c->ffn + std::max(q + 2 * kv, c->ffn)));
    heads += f32(c->vocab_size, c->hidden) + f32(kRowsPerPass, c->hidden + c->vocab_size);
  }
  return states + std::max(block, heads);
}

Comparison compare(const RunContext& ctx, const arch::Model& model, const arch::Model* reference,
                   const Windows& windows) {
  calib::check_ids(windows.ids, model.config().vocab_size, "evaluation text");
  if (reference != nullptr && reference->config().vocab_size != model.config().vocab_size) {
    raise(ErrorCode::kBadModel, "{} and {} have vocabularies of {} and {}; they cannot be compared",
          model.path(), reference->path(), model.config().vocab_size,
          reference->config().vocab_size);
  }
  const std::vector<Scored> positions = scored_positions(windows);
  if (positions.empty()) {
    raise(ErrorCode::kBadText,
          "windows of {} tokens leave nothing to score; use a larger --seq-len", windows.seq_len);
  }
  const int64_t models = reference == nullptr ? 1 : 2;
  const double steps =
      static_cast<double>(model.config().blocks + 1) +
      (reference == nullptr ? 0.0 : static_cast<double>(reference->config().blocks + 1));
  double step = 0;
  const auto advance = [&](ForwardPass& pass) {
    pass.advance(ctx);
    step += 1;
    ctx.report({.stage = "evaluate", .item = "blocks", .done = step, .total = steps});
  };
  Comparison result;
  ForwardPass pass(model, windows.ids, windows.seq_len);
  std::optional<ForwardPass> reference_pass;
  if (reference != nullptr) {
    reference_pass.emplace(*reference, windows.ids, windows.seq_len);
    const bool same_shape = model.config().blocks == reference->config().blocks &&
                            model.config().hidden == reference->config().hidden;
    while (!reference_pass->done()) {
      advance(*reference_pass);
      if (!same_shape) continue;
      advance(pass);
      result.block_errors.push_back(error_of(ctx, pass.hidden(), reference_pass->hidden()));
    }
  }
  while (!pass.done()) advance(pass);
  Scorer scorer(model, std::move(pass).finish(ctx));
  std::optional<Scorer> reference_scorer;
  if (reference_pass) reference_scorer.emplace(*reference, std::move(*reference_pass).finish(ctx));

  std::vector<double> nll(positions.size());
  std::vector<double> reference_nll(reference != nullptr ? positions.size() : 0);
  std::vector<double> kl(reference_nll.size());
  int64_t agree = 0;
  for (size_t begin = 0; begin < positions.size(); begin += kRowsPerPass) {
    ctx.throw_if_cancelled();
    const std::span run(positions.data() + begin,
                        std::min<size_t>(kRowsPerPass, positions.size() - begin));
    const ConstView logits = scorer.score(ctx, run);
    const auto nll_of = [&](ConstView l, const std::vector<nn::RowSoftmax>& s, size_t i) {
      return static_cast<double>(s[i].log_sum) -
             static_cast<double>(l(static_cast<int64_t>(i), run[i].next));
    };
    for (size_t i = 0; i < run.size(); ++i) nll[begin + i] = nll_of(logits, scorer.softmax(), i);
    if (reference_scorer) {
      const ConstView other = reference_scorer->score(ctx, run);
      const auto& p = reference_scorer->softmax();
      const auto& q = scorer.softmax();
      const auto width = static_cast<size_t>(logits.cols());
      linalg::parallel_for(ctx, static_cast<int64_t>(run.size()), [&](int64_t row) {
        const auto i = static_cast<size_t>(row);
        reference_nll[begin + i] = nll_of(other, p, i);
        kl[begin + i] = nn::kl_divergence({other.row(row), width}, p[i].log_sum,
                                          {logits.row(row), width}, q[i].log_sum);
      });
      for (size_t i = 0; i < run.size(); ++i) agree += p[i].argmax == q[i].argmax ? 1 : 0;
    }
    ctx.report({.stage = "evaluate",
                .item = "predictions",
                .done = steps - static_cast<double>(models) *
                                    (1.0 - static_cast<double>(begin + run.size()) /
                                               static_cast<double>(positions.size())),
                .total = steps});
  }
  result.model = summarize(nll, model);
  if (reference != nullptr) {
    result.reference = summarize(reference_nll, *reference);
    const MeanAndError mean = mean_and_error(kl);
    result.divergence =
        Divergence{.kl_mean = mean.mean,
                   .kl_error = mean.error,
                   .kl_median = quantile(kl, 0.5),
                   .kl_p99 = quantile(kl, 0.99),
                   .top1_agreement = static_cast<double>(agree) / static_cast<double>(kl.size())};
  }
  return result;
}

}  // namespace lpcd::eval
