#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>
#include <set>
#include <thread>

#include "lpcd/base/error.h"
#include "lpcd/linalg/blas.h"
#include "lpcd/linalg/factor.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/linalg/split_gemm.h"
#include "tests/support/matrices.h"

namespace lpcd::linalg {
namespace {

using testing::random_mat;
using testing::same_bits;
using testing::with_threads;

TEST(ParallelFor, RunsEveryTaskOnceAndRethrowsTheFirstException) {
  std::vector<int> hits(1000, 0);
  parallel_for(with_threads(4), 1000, [&](int64_t i) { ++hits[static_cast<size_t>(i)]; });
  EXPECT_EQ(std::accumulate(hits.begin(), hits.end(), 0), 1000);
  EXPECT_EQ(*std::max_element(hits.begin(), hits.end()), 1);
  EXPECT_THROW(parallel_for(with_threads(4), 100,
                            [](int64_t i) {
                              if (i == 37) throw Error(ErrorCode::kInternal, "task 37");
                            }),
               Error);
}

TEST(ParallelFor, KeepsItsThreadsWhenTasksAreFew) {
  const auto threads_of = [](int64_t tasks) {
    std::set<pid_t> threads;
    std::mutex mutex;
    std::atomic<int64_t> begun{0};
    parallel_for(with_threads(4), tasks, [&](int64_t) {
      ++begun;
      // Until each task has a thread; in vain where there are fewer than asked for.
      const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
      while (begun < tasks && std::chrono::steady_clock::now() < end) std::this_thread::yield();
      const std::lock_guard lock(mutex);
      threads.insert(gettid());
    });
    return threads;
  };
  const std::set<pid_t> before = threads_of(4);
  EXPECT_EQ(threads_of(2).size(), 2U);
  EXPECT_EQ(threads_of(4), before);
}

TEST(Gemm, AgreesWithDoubleSumsAndDoesNotDependOnThreads) {
  const Mat a = random_mat(1100, 70, 1);
  const Mat b = random_mat(2500, 70, 2);
  Mat one(1100, 2500);
  Mat three(1100, 2500);
  gemm_nt(with_threads(1), 1.0F, a, b, 0.0F, one);
  gemm_nt(with_threads(3), 1.0F, a, b, 0.0F, three);
  EXPECT_TRUE(same_bits(one, three));
  for (const auto& [r, c] : {std::pair{0, 0}, {1099, 2499}, {511, 2047}, {512, 2048}}) {
    double sum = 0;
    for (int64_t k = 0; k < 70; ++k) sum += double{a(r, k)} * b(c, k);
    EXPECT_NEAR(one(r, c), sum, 70 * 1e-6 * 10);
  }
}

// A million tokens: the sum must be as good as f32 can store it. The direct f64 sum is the truth.
// Every layout and every kind of edge, against sums of doubles.
TEST(SplitGemm, AgreesWithDoubleSumsForAllLayoutsAndEdges) {
  if (!has_split_gemm()) GTEST_SKIP() << "this CPU has no bf16 tile unit (AMX)";
  for (const auto& [m, n, k] : {std::array<int64_t, 3>{1, 1, 1},
                                {32, 32, 32},
                                {33, 47, 31},
                                {16, 15, 515},
                                {517, 65, 1100}}) {
    for (const Factor left : {Factor::kRows, Factor::kColumns}) {
      for (const Factor right : {Factor::kRows, Factor::kColumns}) {
        const Mat a = left == Factor::kRows ? random_mat(m, k, 1) : random_mat(k, m, 1);
        const Mat b = right == Factor::kRows ? random_mat(n, k, 2) : random_mat(k, n, 2);
        const Mat before = random_mat(m, n, 3);
        Mat c = before.clone();
        split_gemm(0.5F, a, left, b, right, -2.0F, c);
        Mat fresh(m, n);
        std::fill_n(fresh.data(), fresh.size(), std::numeric_limits<float>::quiet_NaN());
        split_gemm(1.0F, a, left, b, right, 0.0F, fresh);
        for (int64_t r = 0; r < m; ++r) {
          for (int64_t j = 0; j < n; ++j) {
            double sum = 0;
            double size = 0;
            for (int64_t i = 0; i < k; ++i) {
              const double product = double{left == Factor::kRows ? a(r, i) : a(i, r)} *
                                     double{right == Factor::kRows ? b(j, i) : b(i, j)};
              sum += product;
              size += std::abs(product);
            }
            ASSERT_NEAR(fresh(r, j), sum, size * 0x1p-16) << m << ' ' << n << ' ' << k;
            ASSERT_NEAR(c(r, j), 0.5 * sum - 2.0 * double{before(r, j)},
                        0.5 * size * 0x1p-16 + 1e-6)
                << m << ' ' << n << ' ' << k;
          }
        }
      }
    }
  }
}

TEST(SplitGemm, RunsOnlyWhereTheContextAllowsIt) {
  const Mat a = random_mat(40, 70, 1);
  const Mat b = random_mat(50, 70, 2);
  RunContext ctx = with_threads(1);
  ctx.split_products = false;
  Mat plain(40, 50);
  Mat got(40, 50);
  gemm_nt(1.0F, a, b, 0.0F, plain);
  gemm_nt(ctx, 1.0F, a, b, 0.0F, got);
  EXPECT_TRUE(same_bits(got, plain));
  if (!has_split_gemm()) GTEST_SKIP() << "this CPU has no bf16 tile unit (AMX)";
  ctx.split_products = true;
  split_gemm(1.0F, a, Factor::kRows, b, Factor::kRows, 0.0F, plain);
  gemm_nt(ctx, 1.0F, a, b, 0.0F, got);
  EXPECT_TRUE(same_bits(got, plain));
}

TEST(SplitGemm, ElementsDoNotDependOnTheRestOfTheCall) {
  if (!has_split_gemm()) GTEST_SKIP() << "this CPU has no bf16 tile unit (AMX)";
  const Mat a = random_mat(100, 700, 1);
  const Mat b = random_mat(90, 700, 2);
  Mat whole(100, 90);
  split_gemm(1.0F, a, Factor::kRows, b, Factor::kRows, 0.0F, whole);
  Mat part(29, 50);
  split_gemm(1.0F, a.view().rows_range(71, 29), Factor::kRows, b.view().rows_range(5, 50),
             Factor::kRows, 0.0F, part);
  for (int64_t r = 0; r < 29; ++r) {
    for (int64_t c = 0; c < 50; ++c) ASSERT_EQ(part(r, c), whole(71 + r, 5 + c));
  }
}

// Against sums in double. From 32 columns on the tile unit of a CPU that has one does the work.
void expect_accurate_moments(int64_t tokens, int64_t width, double tolerance) {
  constexpr int64_t kChunk = 4096;
  Mat h(width, width);
  Mat c(width, width);
  std::vector<double> exact_h(static_cast<size_t>(width * width));
  std::vector<double> exact_c(static_cast<size_t>(width * width));
  for (int64_t t = 0; t < tokens; t += kChunk) {
    Mat x = random_mat(kChunk, width, static_cast<uint64_t>(t));
    for (int64_t r = 0; r < kChunk; ++r) x(r, 1) = x(r, 0) * 0.5F + 3.0F;  // a large mean
    const Mat y = random_mat(kChunk, width, static_cast<uint64_t>(t) + 1);
    add_gram(with_threads(2), x, 2048, h);
    add_cross(with_threads(2), y, x, 2048, c);
    for (int64_t r = 0; r < kChunk; ++r) {
      for (int64_t i = 0; i < width; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          exact_h[static_cast<size_t>(i * width + j)] += double{x(r, i)} * x(r, j);
          exact_c[static_cast<size_t>(i * width + j)] += double{y(r, i)} * x(r, j);
        }
      }
    }
  }
  mirror_lower(with_threads(1), 1.0F, h);
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t j = 0; j < width; ++j) {
      // Scale of an entry: sqrt(H_ii H_jj).
      const double scale = std::sqrt(exact_h[static_cast<size_t>(i * width + i)] *
                                     exact_h[static_cast<size_t>(j * width + j)]);
      EXPECT_NEAR(h(i, j), exact_h[static_cast<size_t>(i * width + j)], tolerance * scale);
      const double cross_scale =
          std::sqrt(static_cast<double>(tokens) * exact_h[static_cast<size_t>(j * width + j)]);
      EXPECT_NEAR(c(i, j), exact_c[static_cast<size_t>(i * width + j)], tolerance * cross_scale);
    }
  }
}

TEST(Moments, LoseNothingVisibleOverAMillionTokens) {
  expect_accurate_moments(1 << 20, 6, 2e-6);  // 16 units of f32 after 512 slab sums
}

TEST(Moments, AreAccurateOnTheTileUnit) {
  expect_accurate_moments(1 << 14, 40, has_split_gemm() ? 0x1p-16 : 2e-6);
}

TEST(Moments, DoNotDependOnThreadsOrOnHowSlabsAreSplitOverCalls) {
  const Mat x = random_mat(4096, 300, 5);
  Mat whole(300, 300);
  Mat parts(300, 300);
  add_gram(with_threads(1), x, 512, whole);
  for (int64_t t = 0; t < 4096; t += 1024) {
    add_gram(with_threads(3), ConstView(x).rows_range(t, 1024), 512, parts);
  }
  mirror_lower(with_threads(2), 2.0F / 4096, whole);
  mirror_lower(with_threads(1), 2.0F / 4096, parts);
  EXPECT_TRUE(same_bits(whole, parts));
}

Mat spd(int64_t n, uint64_t seed) {
  const Mat x = random_mat(2 * n, n, seed);
  Mat h(n, n);
  add_gram(with_threads(2), x, 512, h);
  mirror_lower(with_threads(1), 1.0F / static_cast<float>(2 * n), h);
  return h;
}

TEST(Factor, UpperTimesItsTransposeIsTheDampedInverse) {
  constexpr int64_t kN = 600;  // three diagonal blocks, the last one partial
  const Mat h = spd(kN, 9);
  const InverseFactor f = factor_damped_inverse(with_threads(2), h, {.fraction = 0.01});
  EXPECT_TRUE(f.raised.empty());
  // (H + lambda I) (U^T U) = I
  Mat inverse(kN, kN);
  gemm_tn(1.0F, f.upper, f.upper, 0.0F, inverse);
  Mat damped = h.clone();
  for (int64_t k = 0; k < kN; ++k) damped(k, k) += static_cast<float>(f.lambda);
  Mat product(kN, kN);
  gemm_nn(1.0F, damped, inverse, 0.0F, product);
  for (int64_t i = 0; i < kN; ++i) {
    for (int64_t j = 0; j < kN; ++j) ASSERT_NEAR(product(i, j), i == j ? 1.0F : 0.0F, 2e-3);
  }
  EXPECT_EQ(f.upper(5, 4), 0.0F);
  const InverseFactor again = factor_damped_inverse(with_threads(1), h, {.fraction = 0.01});
  EXPECT_TRUE(same_bits(f.upper, again.upper));
}

// (U^T U)^-1 - H is what was added: a power of each diagonal element, and the ridge for power 0.
TEST(Factor, DampingFollowsAPowerOfTheDiagonal) {
  constexpr int64_t kN = 40;
  Mat h(kN, kN);
  double mean = 0;
  for (int64_t k = 0; k < kN; ++k) {
    h(k, k) = static_cast<float>(1 + k * k);
    mean += static_cast<double>(h(k, k)) / kN;
  }
  for (const double power : {0.0, 0.5, 1.0}) {
    const InverseFactor f =
        factor_damped_inverse(with_threads(1), h, {.fraction = 0.3, .power = power});
    EXPECT_NEAR(f.lambda, 0.3 * mean, 1e-9 * mean);
    for (int64_t k = 0; k < kN; ++k) {
      const double expected = 0.3 * mean * std::pow(static_cast<double>(h(k, k)) / mean, power);
      const double u = f.upper(k, k);
      EXPECT_NEAR(f.added[static_cast<size_t>(k)], expected, 1e-5 * expected);
      EXPECT_NEAR(1 / (u * u) - static_cast<double>(h(k, k)), expected, 1e-4 * mean);
    }
  }
}

TEST(Factor, SolveRightRecoversAKnownSolution) {
  const Mat h = spd(300, 3);
  const InverseFactor f = factor_damped_inverse(with_threads(2), h, {.fraction = 0.1});
  const Mat known = random_mat(130, 300, 4);
  Mat damped = h.clone();
  for (int64_t k = 0; k < 300; ++k) damped(k, k) += static_cast<float>(f.lambda);
  Mat r(130, 300);
  gemm_nn(1.0F, known, damped, 0.0F, r);
  solve_right(with_threads(2), f, r);
  for (int64_t i = 0; i < r.size(); ++i) ASSERT_NEAR(r.data()[i], known.data()[i], 1e-3);
}

TEST(Factor, RaisesTheDampingStepByStepAndRecordsIt) {
  Mat h(4, 4);
  for (int64_t i = 0; i < 4; ++i) h(i, i) = 1.0F;
  h(0, 1) = h(1, 0) = 1.05F;  // indefinite until lambda > 0.05
  const InverseFactor f = factor_damped_inverse(with_threads(1), h, {.fraction = 0.01});
  ASSERT_EQ(f.raised.size(), 1U);
  EXPECT_NEAR(f.raised[0], 0.01, 1e-9);
  EXPECT_NEAR(f.lambda, 0.11, 1e-9);
  h(0, 1) = h(1, 0) = 1e9F;
  EXPECT_THROW((void)factor_damped_inverse(with_threads(1), h, {.fraction = 0.01}), Error);
  h(0, 1) = h(1, 0) = 1.000005F;  // a singular moment of text that is too short
  const InverseFactor from_zero = factor_damped_inverse(with_threads(1), h, {.fraction = 0});
  EXPECT_EQ(from_zero.raised, std::vector<double>{0});
  EXPECT_NEAR(from_zero.lambda, 1e-5, 1e-9);  // 10 times 1e-6 of the mean
}

TEST(Factor, DeadInputsDoNotRaiseTheDampingOfOthersAndNanIsRefused) {
  Mat h(3, 3);
  h(0, 0) = 2e-4F;
  h(2, 2) = 4e-4F;
  InverseFactor f = factor_damped_inverse(with_threads(1), h, {.fraction = 0.5});
  EXPECT_NEAR(f.lambda, 0.5 * 3e-4, 1e-9);
  EXPECT_NEAR(f.upper(1, 1), 1 / std::sqrt(4.5e-4), 1e-3);
  EXPECT_TRUE(same_bits(factor_damped_inverse(with_threads(1), Mat(2, 2), {.fraction = 0.5}).upper,
                        factor_damped_inverse(with_threads(1), Mat(2, 2),
                                              {.fraction = 0.5, .dead_count_as_one = true})
                            .upper));  // all are
  h(0, 0) = 2.0F;
  h(2, 2) = 3.0F;
  f = factor_damped_inverse(with_threads(1), h, {.fraction = 0.5, .dead_count_as_one = true});
  EXPECT_NEAR(f.lambda, 0.5 * 2.0, 1e-9);  // mean of 2, 1, 3
  EXPECT_NEAR(f.upper(1, 1), 1 / std::sqrt(2.0), 1e-6);
  h(2, 2) = std::nanf("");
  EXPECT_THROW((void)factor_damped_inverse(with_threads(1), h, {.fraction = 0.5}), Error);
}

TEST(Blas, NamesTheLibrary) { EXPECT_FALSE(blas_info().library.empty()); }

}  // namespace
}  // namespace lpcd::linalg
