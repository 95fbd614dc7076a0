#include "lpcd/pipeline/run.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "lpcd/base/clock.h"
#include "lpcd/base/raise.h"
#include "lpcd/pipeline/block_runner.h"

namespace lpcd::pipeline {
namespace {

// The streams are saved when the work since the last save is worth ten times the saving.
constexpr double kWorkPerSave = 10.0;

class Runner {
 public:
  Runner(const RunContext& ctx, const arch::Model& model, const Plan& plan,
         const calib::Dataset& data, Journal& journal)
      : ctx_(ctx),
        model_(model),
        plan_(plan),
        data_(data),
        journal_(journal),
        forward_(model.config(), plan.needs_calibration ? plan.seq_len : 1) {}

  void run() {
    const int64_t done = journal_.committed_blocks();
    per_block_ = std::max(1.0, plan_.total_flops / static_cast<double>(plan_.blocks));
    flops_done_ = per_block_ * static_cast<double>(done);
    if (done >= plan_.blocks) return;
    if (plan_.needs_calibration) prepare_streams(done);
    BlockRunner blocks(ctx_, plan_, model_.config(), forward_, journal_.directory(),
                       [this](std::string_view item, double flops) { advanced(item, flops); });
    int64_t end = plan_.blocks;  // behind the last block that is missing
    while (journal_.has_block(end - 1)) --end;
    for (block_ = done; block_ < end; ++block_) {
      ctx_.throw_if_cancelled();
      with_context(fmt::format("block {}", block_), [&] {
        // Behind a block that was damaged and made again stand others, which need no more than
        // that.
        if (journal_.has_block(block_)) {
          if (plan_.needs_calibration) run_again(block_, done, end);
        } else {
          run_block(blocks);
        }
      });
    }
  }

 private:
  void run_block(BlockRunner& blocks) {
    report::BlockRecord record;
    arch::BlockWeights weights = model_.read_block(block_, &ctx_);
    QuantizedLayers layers = plan_.needs_calibration
                                 ? blocks.run(block_, std::move(weights), streams_, record)
                                 : quantize_without_inputs(ctx_, plan_, block_, weights, record);
    const std::string text = report::to_json_text(record);
    journal_.commit_block(block_, layers, plan_.layers[static_cast<size_t>(block_)],
                          parse_json(text, "block record"));
    flops_done_ = per_block_ * static_cast<double>(block_ + 1);
    advanced("", 0);
    work_since_save_ += record.seconds;
    if (plan_.needs_calibration && block_ + 1 < plan_.blocks &&
        work_since_save_ > kWorkPerSave * save_seconds_) {
      const auto start = Clock::now();
      save_streams();
      save_seconds_ = seconds_since(start);
      work_since_save_ = 0;
    }
  }

  // They only save time later: a run whose block is committed does not end for want of them.
  void save_streams() {
    std::string problem;
    try {
      journal_.save_state(block_ + 1, streams_);
    } catch (const Error& e) {
      if (e.code() != ErrorCode::kWriteFailed) throw;
      problem = e.message();
    }
    if (!problem.empty() && problem != save_problem_) {
      ctx_.warn(fmt::format(
          "{}; going on, but a --resume would run blocks that are finished once more", problem));
    }
    save_problem_ = problem;
  }

  void advanced(std::string_view item, double flops) {
    flops_done_ += flops;
    ctx_.report({.stage = "quantize",
                 .item = item.empty()
                             ? fmt::format("block {}/{}", block_ + 1, plan_.blocks)
                             : fmt::format("block {}/{} {}", block_ + 1, plan_.blocks, item),
                 .done = std::min(flops_done_, per_block_ * static_cast<double>(plan_.blocks)),
                 .total = per_block_ * static_cast<double>(plan_.blocks)});
  }

  // Streams at the input of block `done`: from the journal as far as it has them, and by running
  // finished blocks again from there.
  void prepare_streams(int64_t done) {
    const std::string scratch = plan_.activations_on_disk ? journal_.directory() : "";
    const int64_t width = model_.config().hidden;
    if (plan_.original_stream) {
      streams_.original = calib::ActivationStore(plan_.tokens(), width, scratch);
    }
    if (plan_.quantized_stream) {
      streams_.quantized = calib::ActivationStore(plan_.tokens(), width, scratch);
    }
    std::optional<int64_t> at;
    if (done > 0) at = journal_.load_state(streams_);
    if (!at || *at > done) {
      embed();
      at = 0;
    }
    for (int64_t b = *at; b < done; ++b) run_again(b, *at, done);
  }

  // The streams through block b, which is committed: one of begin..end.
  void run_again(int64_t b, int64_t begin, int64_t end) {
    ctx_.report({.stage = "resume",
                 .item = fmt::format("running block {}/{} again", b + 1, end),
                 .done = static_cast<double>(b - begin),
                 .total = static_cast<double>(end - begin)});
    arch::BlockWeights weights = model_.read_block(b, &ctx_);
    if (plan_.original_stream) advance(weights, streams_.original);
    if (plan_.quantized_stream) {
      for (auto& [role, q] : journal_.read_block(b)) weights[role] = q.decode();
      advance(weights, streams_.quantized);
    }
    streams_.equal = false;
  }

  void advance(const arch::BlockWeights& weights, calib::ActivationStore& store) {
    Mat buffer;
    plan_.for_chunks(forward_.tiling().chunk_rows, [&](auto, int64_t r0, int64_t n) {
      const FloatView x = store.read(r0, n, buffer);
      forward_.run(ctx_, weights, x);
      store.write(r0, x);
    });
  }

  void embed() {
    const Mat table = model_.read(arch::Role::kEmbedding, 0, &ctx_);
    const int64_t chunk = forward_.tiling().chunk_rows;
    Mat buffer;
    for (calib::ActivationStore* store : {&streams_.original, &streams_.quantized}) {
      for (int64_t r0 = 0; r0 < store->rows(); r0 += chunk) {
        const FloatView x = store->target(r0, std::min(chunk, store->rows() - r0), buffer);
        for (int64_t r = 0; r < x.rows(); ++r) {
          const int32_t id = data_.ids[static_cast<size_t>(r0 + r)];
          std::memcpy(x.row(r), table.row(id), static_cast<size_t>(x.cols()) * sizeof(float));
        }
        store->write(r0, x);
      }
    }
    streams_.equal = true;
  }

  const RunContext& ctx_;
  const arch::Model& model_;
  const Plan& plan_;
  const calib::Dataset& data_;
  Journal& journal_;
  arch::BlockForward forward_;
  Streams streams_;
  int64_t block_ = 0;
  double per_block_ = 1;
  double flops_done_ = 0;
  double work_since_save_ = 0;
  double save_seconds_ = 0;
  std::string save_problem_;  // why the last save failed, or nothing
};

}  // namespace

void run_plan(const RunContext& ctx, const arch::Model& model, const Plan& plan,
              const calib::Dataset& data, Journal& journal) {
  if (plan.needs_calibration) {
    LPCD_CHECK(data.seq_len == plan.seq_len && data.sequences() == plan.sequences);
    calib::check_ids(data.ids, model.config().vocab_size, "calibration");
  }
  Runner(ctx, model, plan, data, journal).run();
}

}  // namespace lpcd::pipeline
