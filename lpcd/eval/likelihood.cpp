#include "lpcd/eval/likelihood.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "lpcd/arch/block_forward.h"
#include "lpcd/base/raise.h"
#include "lpcd/calib/dataset.h"
#include "lpcd/eval/hidden_states.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/nn/ops.h"

namespace lpcd::eval {
namespace {

using arch::SequenceRows;

constexpr int64_t kChunkRows = 4096;                // rows whose temporaries exist at a time
constexpr int64_t kHiddenBytes = int64_t{1} << 28;  // of a pass over the model

// One scored token: the row that predicts it, and the text that it counts for.
struct Target {
  int64_t row;
  int32_t id;
  size_t group;
  size_t text;
};

// Groups that pass through a block together.
struct Chunk {
  int64_t first_row = 0;
  int64_t rows = 0;
  std::vector<SequenceRows> sequences;  // rows count from first_row
};

// Groups that pass through the model together.
struct Pass {
  std::vector<int32_t> ids;  // of every row
  std::vector<Chunk> chunks;
  std::vector<Target> targets;
};

// What the model reads of a text: all but its last token, and no more than it has positions.
std::span<const int32_t> input_of(const ScoredText& text, int64_t positions) {
  const std::span<const int32_t> ids(text.ids);
  LPCD_CHECK(text.scored >= 1 && std::cmp_less(text.scored, ids.size()) &&
             text.scored <= positions);
  const size_t length = std::min(ids.size() - 1, static_cast<size_t>(positions));
  return ids.subspan(ids.size() - 1 - length, length);
}

size_t common_prefix(const std::vector<std::span<const int32_t>>& inputs) {
  size_t length = inputs.at(0).size();
  for (const auto& input : inputs) {
    const auto [a, b] = std::mismatch(input.begin(), input.end(), inputs[0].begin(),
                                      inputs[0].begin() + static_cast<int64_t>(length));
    length = std::min(length, static_cast<size_t>(a - input.begin()));
  }
  return length;
}

// Rows of a group: the common beginning once, then what each text adds to it.
class Packer {
 public:
  Packer(int64_t positions, int64_t max_rows) : positions_(positions), max_rows_(max_rows) {}

  void add(size_t index, const std::vector<ScoredText>& group) {
    if (group.empty()) return;
    std::vector<std::span<const int32_t>> inputs;
    inputs.reserve(group.size());
    for (const ScoredText& text : group) inputs.push_back(input_of(text, positions_));
    const auto shared = static_cast<int64_t>(common_prefix(inputs));
    int64_t rows = shared;
    for (const auto& input : inputs) rows += std::ssize(input) - shared;

    if (passes_.empty() || std::ssize(passes_.back().ids) + rows > max_rows_)
      passes_.emplace_back();
    Pass& pass = passes_.back();
    if (pass.chunks.empty() || pass.chunks.back().rows + rows > kChunkRows) {
      pass.chunks.push_back({.first_row = std::ssize(pass.ids)});
    }
    Chunk& chunk = pass.chunks.back();
    const int64_t prefix_row = chunk.rows;
    append(pass, chunk, inputs[0].subspan(0, static_cast<size_t>(shared)), {});
    for (size_t i = 0; i < group.size(); ++i) {
      const int64_t own_row = chunk.rows;
      append(pass, chunk, inputs[i].subspan(static_cast<size_t>(shared)),
             {.prefix_row = prefix_row, .prefix_rows = shared});
      for (int64_t k = group[i].scored; k > 0; --k) {
        const int64_t position = std::ssize(inputs[i]) - k;
        const int64_t row = position < shared ? prefix_row + position : own_row + position - shared;
        pass.targets.push_back({chunk.first_row + row,
                                group[i].ids[group[i].ids.size() - static_cast<size_t>(k)], index,
                                i});
      }
      longest_ = std::max(longest_, std::ssize(inputs[i]));
    }
  }

  [[nodiscard]] const std::vector<Pass>& passes() const { return passes_; }
  [[nodiscard]] int64_t longest() const { return longest_; }

 private:
  static void append(Pass& pass, Chunk& chunk, std::span<const int32_t> ids, SequenceRows rows) {
    if (ids.empty()) return;
    rows.row = chunk.rows;
    rows.rows = std::ssize(ids);
    chunk.sequences.push_back(rows);
    chunk.rows += rows.rows;
    pass.ids.insert(pass.ids.end(), ids.begin(), ids.end());
  }

  int64_t positions_;
  int64_t max_rows_;
  int64_t longest_ = 1;
  std::vector<Pass> passes_;
};

// Adds the targets of a pass to the result, from the hidden states of its rows.
void score(const RunContext& ctx, const arch::Model& model, const Pass& pass, ConstView x,
           std::vector<std::vector<Likelihood>>& result) {
  const Mat head = read_head(model);
  const Mat norm = model.read(arch::Role::kFinalNorm);
  Mat gathered = Mat::uninitialized(kRowsPerPass, x.cols());
  Mat logits = Mat::uninitialized(kRowsPerPass, head.rows());
  std::vector<nn::RowSoftmax> softmax(kRowsPerPass);
  for (size_t begin = 0; begin < pass.targets.size(); begin += kRowsPerPass) {
    ctx.throw_if_cancelled();
    const std::span run(pass.targets.data() + begin,
                        std::min<size_t>(kRowsPerPass, pass.targets.size() - begin));
    const FloatView states = gathered.view().rows_range(0, std::ssize(run));
    const FloatView rows = logits.view().rows_range(0, std::ssize(run));
    for (int64_t i = 0; i < std::ssize(run); ++i) {
      copy(x.rows_range(run[static_cast<size_t>(i)].row, 1), states.rows_range(i, 1));
    }
    nn::rms_norm(states, {norm.data(), static_cast<size_t>(norm.size())}, model.config().rms_eps,
                 states);
    project_logits(ctx, states, head, rows);
    linalg::parallel_for(ctx, std::ssize(run), [&](int64_t i) {
      softmax[static_cast<size_t>(i)] = nn::row_log_sum_exp(rows.rows_range(i, 1))[0];
    });
    for (size_t i = 0; i < run.size(); ++i) {
      Likelihood& likelihood = result[run[i].group][run[i].text];
      likelihood.log_likelihood += static_cast<double>(rows(static_cast<int64_t>(i), run[i].id)) -
                                   static_cast<double>(softmax[i].log_sum);
      likelihood.greedy = likelihood.greedy && softmax[i].argmax == run[i].id;
    }
  }
}

}  // namespace

std::vector<std::vector<Likelihood>> likelihoods(const RunContext& ctx, const arch::Model& model,
                                                 std::span<const std::vector<ScoredText>> groups,
                                                 const std::function<void(double)>& advanced) {
  const arch::ModelConfig& config = model.config();
  const int64_t row_bytes = config.hidden * static_cast<int64_t>(sizeof(float));
  Packer packer(config.max_positions, std::max<int64_t>(1, kHiddenBytes / row_bytes));
  std::vector<std::vector<Likelihood>> result;
  double all_rows = 0;
  for (size_t g = 0; g < groups.size(); ++g) {
    for (const ScoredText& text : groups[g]) calib::check_ids(text.ids, config.vocab_size, "text");
    packer.add(g, groups[g]);
    result.emplace_back(groups[g].size(), Likelihood{.greedy = true});
  }
  for (const Pass& pass : packer.passes()) all_rows += static_cast<double>(pass.ids.size());

  const auto forward = arch::BlockForward::for_mixed_lengths(config, packer.longest());
  double done = 0;
  for (const Pass& pass : packer.passes()) {
    const auto rows = std::ssize(pass.ids);
    Mat x = Mat::uninitialized(rows, config.hidden);
    {
      const Mat table = model.read(arch::Role::kEmbedding);
      for (int64_t t = 0; t < rows; ++t) {
        std::memcpy(x.row(t), table.row(pass.ids[static_cast<size_t>(t)]),
                    static_cast<size_t>(row_bytes));
      }
    }
    const double step = static_cast<double>(rows) / all_rows / static_cast<double>(config.blocks);
    for (int64_t b = 0; b < config.blocks; ++b) {
      const arch::BlockWeights weights = model.read_block(b, &ctx);
      for (const Chunk& chunk : pass.chunks) {
        ctx.throw_if_cancelled();
        forward.run_mixed(ctx, weights, chunk.sequences,
                          x.view().rows_range(chunk.first_row, chunk.rows));
      }
      done += step;
      advanced(std::min(done, 1.0));
    }
    score(ctx, model, pass, x, result);
  }
  for (const auto& group : result) {
    for (const Likelihood& likelihood : group) {
      if (!std::isfinite(likelihood.log_likelihood)) {
        raise(ErrorCode::kNonFinite,
              "{}: the model gives no finite probabilities; its weights overflow", model.path());
      }
    }
  }
  return result;
}

}  // namespace lpcd::eval
