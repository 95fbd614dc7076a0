#include <benchmark/benchmark.h>

#include <algorithm>
#include <array>
#include <random>

#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/factor.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/nn/ops.h"
#include "lpcd/solve/projector.h"
#include "lpcd/tensor/ggml_blocks.h"

// Micro benchmarks of the hot kernels, on all processors. Extents are those of SmolLM2-135M
// (D 576, F 1536) and of a block of a 1.5B model (D 1536, F 8960).

namespace {

using namespace lpcd;  // NOLINT: a benchmark

RunContext all_threads() {
  linalg::use_single_threaded_blas();
  RunContext ctx;
  ctx.threads = linalg::available_threads();
  return ctx;
}

Mat random_mat(int64_t rows, int64_t cols, uint64_t seed) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal;
  Mat m(rows, cols);
  std::generate_n(m.data(), m.size(), [&] { return normal(rng); });
  return m;
}

Mat moment(int64_t n) {
  const Mat x = random_mat(2 * n, n, 1);
  Mat h(n, n);
  linalg::add_gram(all_threads(), x, 2048, h);
  linalg::mirror_lower(all_threads(), 1.0F / static_cast<float>(n), h);
  return h;
}

void count_flops(benchmark::State& state, double flops) {
  state.counters["FLOP/s"] =
      benchmark::Counter(flops, benchmark::Counter::kIsIterationInvariantRate);
}

void time_gemm(benchmark::State& state, bool split) {
  RunContext ctx = all_threads();
  ctx.split_products = split;
  const Mat x = random_mat(4096, state.range(1), 1);
  const Mat w = random_mat(state.range(0), state.range(1), 2);
  Mat y(4096, state.range(0));
  for (auto _ : state) linalg::gemm_nt(ctx, 1.0F, x, w, 0.0F, y);
  count_flops(state, 2.0 * 4096 * static_cast<double>(w.size()));
}

void gemm(benchmark::State& state) { time_gemm(state, true); }
BENCHMARK(gemm)
    ->Args({576, 576})
    ->Args({1536, 576})
    ->Args({576, 1536})
    ->Args({8960, 1536})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

// The same without the tile unit of CPUs that have one.
void gemm_f32(benchmark::State& state) { time_gemm(state, false); }
BENCHMARK(gemm_f32)
    ->Args({576, 576})
    ->Args({8960, 1536})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

void gram(benchmark::State& state) {
  const RunContext ctx = all_threads();
  const Mat x = random_mat(4096, state.range(0), 1);
  Mat h(state.range(0), state.range(0));
  for (auto _ : state) linalg::add_gram(ctx, x, 2048, h);
  count_flops(state, 4096.0 * static_cast<double>(h.size()));
}
BENCHMARK(gram)->Arg(576)->Arg(1536)->UseRealTime()->Unit(benchmark::kMillisecond);

void cross(benchmark::State& state) {
  const RunContext ctx = all_threads();
  const Mat a = random_mat(4096, state.range(0), 1);
  const Mat b = random_mat(4096, state.range(1), 2);
  Mat c(state.range(0), state.range(1));
  for (auto _ : state) linalg::add_cross(ctx, a, b, 2048, c);
  count_flops(state, 2.0 * 4096 * static_cast<double>(c.size()));
}
BENCHMARK(cross)->Args({576, 576})->Args({576, 1536})->UseRealTime()->Unit(benchmark::kMillisecond);

void factor(benchmark::State& state) {
  const RunContext ctx = all_threads();
  const Mat h = moment(state.range(0));
  for (auto _ : state) benchmark::DoNotOptimize(linalg::factor_damped_inverse(ctx, h, {}));
  const auto n = static_cast<double>(state.range(0));
  count_flops(state, 2.0 / 3 * n * n * n);
}
BENCHMARK(factor)->Arg(576)->Arg(1536)->UseRealTime()->Unit(benchmark::kMillisecond);

void gptq(benchmark::State& state) {
  const RunContext ctx = all_threads();
  const Mat w = random_mat(state.range(0), state.range(1), 1);
  const solve::Metric metric =
      solve::make_metric(ctx, moment(state.range(1)), {}, solve::ColumnOrder::kNatural);
  solve::ProjectOptions options;
  options.grid = {.bits = 3, .group_size = 64};
  if (state.range(2) != 0) options.fit.search = format::FitOptions::Search::kMse;
  for (auto _ : state) benchmark::DoNotOptimize(solve::project_gptq(ctx, w, metric, options));
  count_flops(state, static_cast<double>(w.size() * state.range(1)));
}
BENCHMARK(gptq)
    ->Args({576, 576, 0})
    ->Args({1536, 576, 0})
    ->Args({576, 1536, 0})
    ->Args({576, 1536, 1})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

// `sweeps` of refinement of a projection with searched scales, on 2-bit codes in groups of 64 or on
// blocks; "loss" is what is left of the projection's own.
void refine(benchmark::State& state) {
  const RunContext ctx = all_threads();
  constexpr int64_t kInputs = 1536;
  const Mat w = random_mat(576, kInputs, 1);
  const solve::Metric metric =
      solve::make_metric(ctx, moment(kInputs), {}, solve::ColumnOrder::kNatural);
  constexpr std::array kBlocks = {DType::kQ2_K, DType::kQ3_K, DType::kQ4_K};
  solve::ProjectOptions options;
  options.scale_search = true;
  options.grid = {.bits = 2, .group_size = 64};
  if (state.range(0) > 0) {
    options.grid = format::GridSpec::of_block(kBlocks.at(static_cast<size_t>(state.range(0)) - 1));
  }
  const auto projected = solve::project_gptq(ctx, w, metric, options);
  const auto loss = [&](const format::QuantizedMatrix& q) {
    return solve::output_error(ctx, solve::decode(ctx, q), w, metric.h);
  };
  format::QuantizedMatrix q;
  for (auto _ : state) {
    state.PauseTiming();
    q = projected.clone();
    state.ResumeTiming();
    solve::refine(ctx, w, metric, static_cast<int>(state.range(1)), q);
  }
  state.counters["loss"] = loss(q) / loss(projected);
}
BENCHMARK(refine)
    ->ArgNames({"blocks", "sweeps"})
    ->ArgsProduct({{0, 1, 2, 3}, {1, 2, 4, 6, 12}})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

void output_error(benchmark::State& state) {
  const RunContext ctx = all_threads();
  const Mat a = random_mat(576, 1536, 1);
  const Mat b = random_mat(576, 1536, 2);
  const Mat h = moment(1536);
  for (auto _ : state) benchmark::DoNotOptimize(solve::output_error(ctx, a, b, h));
}
BENCHMARK(output_error)->UseRealTime()->Unit(benchmark::kMillisecond);

void attention(benchmark::State& state) {
  const int64_t length = state.range(0);
  const Mat q = random_mat(length, 64, 1);
  const Mat k = random_mat(length, 64, 2);
  const Mat v = random_mat(length, 64, 3);
  Mat out(length, 64);
  nn::AttentionScratch scratch;
  for (auto _ : state) nn::causal_attention(q, k, v, out, scratch);
  count_flops(state, 2.0 * static_cast<double>(length * length) * 64);
}
BENCHMARK(attention)->Arg(512)->Arg(2048)->Unit(benchmark::kMillisecond);

void element_wise(benchmark::State& state) {
  const Mat x = random_mat(512, 1536, 1);
  const Mat y = random_mat(512, 1536, 2);
  Mat out(512, 1536);
  for (auto _ : state) {
    if (state.range(0) == 0) {
      nn::silu_mul(x, y, out);
    } else {
      nn::rms_norm(x, {y.data(), 1536}, 1e-5F, out);
    }
  }
  state.SetItemsProcessed(state.iterations() * x.size());
  state.SetLabel(state.range(0) == 0 ? "silu_mul" : "rms_norm");
}
BENCHMARK(element_wise)->Arg(0)->Arg(1);

void dequantize(benchmark::State& state) {
  const auto type = static_cast<DType>(state.range(0));
  const DTypeInfo& info = dtype_info(type);
  const int64_t blocks = (1 << 19) / info.block_elems;
  const std::vector<std::byte> bytes(static_cast<size_t>(blocks * info.block_bytes), std::byte{1});
  std::vector<float> out(static_cast<size_t>(blocks * info.block_elems));
  for (auto _ : state) decode_ggml_blocks(type, bytes, out);
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(out.size() * sizeof(float)));
  state.SetLabel(std::string(info.name));
}
BENCHMARK(dequantize)
    ->DenseRange(static_cast<int64_t>(DType::kQ4_0), static_cast<int64_t>(DType::kQ6_K));

}  // namespace

BENCHMARK_MAIN();
