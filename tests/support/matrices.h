#pragma once

#include <algorithm>
#include <cstdint>
#include <random>

#include "lpcd/base/context.h"
#include "lpcd/tensor/mat.h"

namespace lpcd::testing {

inline RunContext with_threads(int threads) {
  RunContext ctx;
  ctx.threads = threads;
  return ctx;
}

/// Normal numbers of that standard deviation.
inline Mat random_mat(int64_t rows, int64_t cols, uint64_t seed, float spread = 1.0F) {
  std::mt19937_64 rng(seed);
  std::normal_distribution<float> normal(0.0F, spread);
  Mat m(rows, cols);
  std::generate_n(m.data(), m.size(), [&] { return normal(rng); });
  return m;
}

inline bool same_bits(const Mat& a, const Mat& b) {
  return a.size() == b.size() && std::equal(a.data(), a.data() + a.size(), b.data());
}

}  // namespace lpcd::testing
