#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "lpcd/base/error.h"
#include "lpcd/linalg/blas.h"
#include "lpcd/solve/output_feedback.h"
#include "lpcd/solve/projector.h"
#include "lpcd/tensor/half.h"
#include "tests/support/matrices.h"

namespace lpcd::solve {
namespace {

using testing::random_mat;
using testing::with_threads;

// Second moment of correlated inputs: x = z A with a random mixing A.
Mat correlated_moment(int64_t n, uint64_t seed) {
  const Mat z = random_mat(4 * n, n, seed);
  const Mat mix = random_mat(n, n, seed + 1, 1.0F / std::sqrt(static_cast<float>(n)));
  Mat x(4 * n, n);
  linalg::gemm_nn(1.0F, z, mix, 0.0F, x);
  for (int64_t t = 0; t < x.rows(); ++t) {
    for (int64_t k = 0; k < n; ++k) x(t, k) += 0.5F * x(t, 0);
  }
  Mat h(n, n);
  linalg::add_gram(with_threads(1), x, 512, h);
  linalg::mirror_lower(with_threads(1), 2.0F / static_cast<float>(x.rows()), h);
  return h;
}

Metric metric_of(const Mat& h, ColumnOrder order = ColumnOrder::kNatural) {
  return make_metric(with_threads(2), h.clone(), {.fraction = 0.1, .power = 0.5}, order);
}

ProjectOptions options_for(int bits, int64_t group, bool symmetric = true) {
  ProjectOptions options;
  options.grid = {.bits = bits, .group_size = group, .symmetric = symmetric};
  return options;
}

double loss(const Mat& w, const format::QuantizedMatrix& q, const Mat& h) {
  return output_error(with_threads(1), w, q.decode(), h);
}

TEST(Gptq, WithADiagonalMomentIsRoundToNearest) {
  const Mat w = random_mat(70, 200, 1);
  Mat h(200, 200);
  for (int64_t k = 0; k < 200; ++k) h(k, k) = 0.5F + static_cast<float>(k % 7);
  for (const int64_t group : {-1, 32, 48, 128, 150}) {
    for (const bool symmetric : {true, false}) {
      const ProjectOptions options = options_for(3, group, symmetric);
      for (const ColumnOrder order : {ColumnOrder::kNatural, ColumnOrder::kActivation}) {
        const auto gptq = project_gptq(with_threads(2), w, metric_of(h, order), options);
        EXPECT_EQ(gptq.codes, project_rtn(with_threads(1), w, options).codes) << group;
      }
    }
  }
}

// Optimal Brain Surgeon written out: after rounding column i, the columns left are moved by the
// step that minimises the loss, and i is eliminated from the inverse. f64, one row at a time.
std::vector<uint8_t> gptq_by_elimination(const Mat& w, const Metric& metric,
                                         const ProjectOptions& options) {
  const Mat& h = metric.h;
  const auto n = static_cast<size_t>(h.rows());
  std::vector<double> inverse(n * n);
  {
    std::vector<double> a(n * n);
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < n; ++j) a[i * n + j] = h(i, j) + (i == j ? metric.damping(i) : 0.0F);
      inverse[i * n + i] = 1.0;
    }
    for (size_t p = 0; p < n; ++p) {  // Gauss-Jordan; a is positive definite
      const double pivot = a[p * n + p];
      for (size_t j = 0; j < n; ++j) {
        a[p * n + j] /= pivot;
        inverse[p * n + j] /= pivot;
      }
      for (size_t i = 0; i < n; ++i) {
        if (i == p) continue;
        const double factor = a[i * n + p];
        for (size_t j = 0; j < n; ++j) {
          a[i * n + j] -= factor * a[p * n + j];
          inverse[i * n + j] -= factor * inverse[p * n + j];
        }
      }
    }
  }
  std::vector<uint8_t> codes(static_cast<size_t>(w.size()));
  for (int64_t r = 0; r < w.rows(); ++r) {
    std::vector<double> row(w.row(r), w.row(r) + n);
    std::vector<double> inv = inverse;
    format::GroupParameters p;
    for (size_t i = 0; i < n; ++i) {
      const auto length = static_cast<size_t>(options.grid.group_length(h.rows()));
      if (i % length == 0) {
        const size_t end = std::min(n, i + length);
        Mat group(static_cast<int64_t>(end - i), 1);
        for (size_t k = i; k < end; ++k)
          group(static_cast<int64_t>(k - i), 0) = static_cast<float>(row[k]);
        format::fit_group(group, options.grid, options.fit, p);
      }
      const auto value = static_cast<float>(row[i]);
      float code = 0;
      float decoded = 0;
      format::quantize_column({&value, 1}, p, options.grid.max_code(), {&code, 1}, {&decoded, 1});
      codes[static_cast<size_t>(r) * n + i] = static_cast<uint8_t>(code);
      const double error = (row[i] - static_cast<double>(decoded)) / inv[i * n + i];
      for (size_t j = i; j < n; ++j) row[j] -= error * inv[i * n + j];
      std::vector<double> next = inv;
      for (size_t a = i + 1; a < n; ++a) {
        for (size_t b = i + 1; b < n; ++b) {
          next[a * n + b] -= inv[a * n + i] * inv[i * n + b] / inv[i * n + i];
        }
      }
      inv = std::move(next);
    }
  }
  return codes;
}

TEST(Gptq, MatchesEliminationWrittenOut) {
  const Mat w = random_mat(9, 40, 11);
  const Mat h = correlated_moment(40, 12);
  for (const int64_t group : {-1, 8, 16, 24}) {
    ProjectOptions options = options_for(3, group);
    options.block_columns = 16;
    const Metric metric = metric_of(h);
    const auto expected = gptq_by_elimination(w, metric, options);
    const auto got = project_gptq(with_threads(1), w, metric, options).codes;
    const auto differing =
        std::inner_product(got.begin(), got.end(), expected.begin(), 0, std::plus<>(),
                           [](uint8_t a, uint8_t b) { return a != b ? 1 : 0; });
    EXPECT_EQ(differing, 0) << "group " << group;  // no tie in this data
  }
}

// Two-sided feedback is GPTQ on all weights as one row, in the Kronecker product of both metrics.
TEST(OutputFeedback, IsGptqInTheKroneckerProduct) {
  const int64_t d = 6;
  const int64_t inputs = 16;
  const ProjectOptions options = options_for(3, inputs);
  Mat a = correlated_moment(d, 31);
  std::vector<float> scale;  // so that channels are visited as they are
  for (int64_t i = 0; i < d; ++i) {
    scale.push_back(static_cast<float>(d - i) / std::sqrt(a(i, i)));
  }
  for (int64_t i = 0; i < a.size(); ++i) {
    a.data()[i] *= scale[static_cast<size_t>(i / d)] * scale[static_cast<size_t>(i % d)];
  }
  const Mat h = correlated_moment(inputs, 32);
  const Metric metric = metric_of(h);
  const OutputMetric outputs = make_output_metric(with_threads(1), a, {.fraction = 0.05});
  ASSERT_TRUE(std::ranges::is_sorted(outputs.heads.at(0).order));
  Metric both{.h = Mat(d * inputs, d * inputs)};
  both.added.resize(static_cast<size_t>(d * inputs), 0.0F);
  for (int64_t r = 0; r < d * inputs; ++r) {
    for (int64_t c = 0; c < d * inputs; ++c) {
      const int64_t i = r / inputs;
      const int64_t j = c / inputs;
      const float a_ij = a(i, j) + (i == j ? outputs.heads[0].factor.added[0] : 0.0F);
      const int64_t k = r % inputs;
      both.h(r, c) = a_ij * (h(k, c % inputs) + (k == c % inputs ? metric.damping(k) : 0.0F));
    }
  }
  const Mat w = random_mat(d, inputs, 33);
  Mat row(1, d * inputs);
  std::copy_n(w.data(), w.size(), row.data());
  const auto got = project_with_output_feedback(with_threads(2), w, outputs, [&](ConstView rows) {
    return project_gptq(with_threads(2), rows, metric, options);
  });
  EXPECT_EQ(got.codes, gptq_by_elimination(row, both, options));
}

// tr(A E H E^T), head by head.
double coupled_loss(const Mat& w, const format::QuantizedMatrix& q, const Mat& blocks,
                    const Mat& h) {
  Mat e = q.decode();
  for (int64_t i = 0; i < e.size(); ++i) e.data()[i] -= w.data()[i];
  Mat eh(e.rows(), e.cols());
  linalg::gemm_nn(1.0F, e, h, 0.0F, eh);
  const int64_t d = blocks.cols();
  double sum = 0;
  for (int64_t i = 0; i < e.rows(); ++i) {
    for (int64_t j = i / d * d; j < i / d * d + d; ++j) {
      double product = 0;
      for (int64_t k = 0; k < e.cols(); ++k) {
        product += static_cast<double>(eh(i, k)) * static_cast<double>(e(j, k));
      }
      sum += static_cast<double>(blocks(i, j % d)) * product;
    }
  }
  return sum;
}

void expect_less_loss_of_coupled_outputs(int64_t inputs, std::vector<ProjectOptions> grids) {
  const int64_t d = 40;  // does not divide into steps evenly
  const int64_t heads = 3;
  const Mat h = correlated_moment(inputs, 41);
  const Metric metric = metric_of(h);
  const Mat w = random_mat(heads * d, inputs, 42);
  Mat blocks(heads * d, d);
  for (int64_t head = 0; head < heads; ++head) {
    const Mat a = correlated_moment(d, 50 + 2 * static_cast<uint64_t>(head));
    copy(a, blocks.view().rows_range(head * d, d));
  }
  const OutputMetric outputs = make_output_metric(with_threads(2), blocks, {.fraction = 0.05});
  const auto project = [&](int threads, const ProjectOptions& options) {
    return project_with_output_feedback(with_threads(threads), w, outputs, [&](ConstView rows) {
      return project_gptq(with_threads(threads), rows, metric, options);
    });
  };
  for (ProjectOptions& options : grids) {
    SCOPED_TRACE(options.grid.text());
    options.rows_per_task = 16;
    const auto fed_back = project(1, options);
    const auto plain = project_gptq(with_threads(1), w, metric, options);
    EXPECT_LT(coupled_loss(w, fed_back, blocks, h), 0.8 * coupled_loss(w, plain, blocks, h));
    const auto again = project(3, options);
    EXPECT_EQ(again.codes, fed_back.codes);
    EXPECT_EQ(again.blocks, fed_back.blocks);
  }
}

TEST(OutputFeedback, LowersTheLossOfCoupledOutputsAndDoesNotDependOnThreads) {
  const auto on = [](DType type) {
    ProjectOptions options = options_for(4, 32);
    options.grid = format::GridSpec::of_block(type);
    return options;
  };
  expect_less_loss_of_coupled_outputs(
      64, {options_for(2, 32), options_for(3, 16, false), options_for(4, -1), on(DType::kQ4_0)});
  // Super-blocks of 256, row by row.
  expect_less_loss_of_coupled_outputs(256, {on(DType::kQ2_K), on(DType::kQ3_K), on(DType::kQ4_K)});
}

// Nothing to pass on: every row is projected as it is, whatever the order.
TEST(OutputFeedback, WithIndependentOutputsIsPlainProjection) {
  const Mat h = correlated_moment(48, 61);
  const Metric metric = metric_of(h);
  const Mat w = random_mat(36, 48, 62);
  Mat blocks(36, 12);
  for (int64_t i = 0; i < 36; ++i) blocks(i, i % 12) = 1.0F + static_cast<float>(i % 5);
  const OutputMetric outputs = make_output_metric(with_threads(1), blocks, {.fraction = 0.01});
  const ProjectOptions options = options_for(3, 16);
  const auto got = project_with_output_feedback(with_threads(1), w, outputs, [&](ConstView rows) {
    return project_gptq(with_threads(1), rows, metric, options);
  });
  const auto expected = project_gptq(with_threads(1), w, metric, options);
  EXPECT_EQ(got.codes, expected.codes);
  EXPECT_EQ(got.zeros, expected.zeros);
  for (int64_t i = 0; i < got.scales.size(); ++i) {
    EXPECT_EQ(got.scales.data()[i], expected.scales.data()[i]);
  }
}

TEST(Gptq, LosesLessThanRoundToNearest) {
  const Mat w = random_mat(100, 256, 21);
  const Mat h = correlated_moment(256, 22);
  for (const int bits : {2, 3, 4}) {
    for (const int64_t group : {-1, 64, 100}) {
      for (const ColumnOrder order : {ColumnOrder::kNatural, ColumnOrder::kActivation}) {
        const ProjectOptions options = options_for(bits, group);
        const double gptq =
            loss(w, project_gptq(with_threads(2), w, metric_of(h, order), options), h);
        const double rtn = loss(w, project_rtn(with_threads(2), w, options), h);
        EXPECT_LT(gptq, 0.8 * rtn) << bits << " bits, group " << group;
      }
    }
  }
}

TEST(Gptq, DoesNotDependOnThreads) {
  const Mat w = random_mat(300, 300, 31);
  const Metric metric = metric_of(correlated_moment(300, 32));
  ProjectOptions options = options_for(3, 64, false);
  options.fit.search = format::FitOptions::Search::kMse;
  const auto one = project_gptq(with_threads(1), w, metric, options);
  const auto three = project_gptq(with_threads(3), w, metric, options);
  EXPECT_EQ(one.codes, three.codes);
  EXPECT_EQ(one.zeros, three.zeros);
  EXPECT_TRUE(
      std::equal(one.scales.data(), one.scales.data() + one.scales.size(), three.scales.data()));
}

TEST(Gptq, DeadInputsBecomeZero) {
  const Mat w = random_mat(5, 64, 41);
  Mat h = correlated_moment(64, 42);
  for (int64_t k = 0; k < 64; ++k) h(7, k) = h(k, 7) = 0.0F;
  const auto q = project_gptq(with_threads(1), w, metric_of(h), options_for(3, 32));
  const Mat decoded = q.decode();
  for (int64_t r = 0; r < 5; ++r) EXPECT_EQ(decoded(r, 7), 0.0F);
}

TEST(Gptq, RefusesWeightsThatAreNotFinite) {
  Mat w = random_mat(5, 64, 51);
  w(3, 9) = std::nanf("");
  EXPECT_THROW((void)project_gptq(with_threads(1), w, metric_of(correlated_moment(64, 52)),
                                  options_for(3, 32)),
               Error);
  w(3, 9) = HUGE_VALF;
  EXPECT_THROW((void)project_rtn(with_threads(2), w, options_for(3, 32)), Error);
}

TEST(Rtn, CodesOfADecodedMatrixOnTheSameGridAreTheCodes) {
  const Mat w = random_mat(40, 130, 61);
  for (const bool symmetric : {true, false}) {
    const ProjectOptions options = options_for(4, 32, symmetric);
    const auto q = project_rtn(with_threads(1), w, options);
    const Mat decoded = q.decode();
    for (int64_t r = 0; r < w.rows(); ++r) {
      for (int64_t k = 0; k < w.cols(); ++k) {
        const int64_t g = k / 32;
        const format::GroupParameters p{
            {q.scales(g, r)}, {static_cast<float>(q.zeros[static_cast<size_t>(g * 40 + r)])}};
        float code = 0;
        float again = 0;
        format::quantize_column({decoded.row(r) + k, 1}, p, 15.0F, {&code, 1}, {&again, 1});
        ASSERT_EQ(code, q.codes[static_cast<size_t>(r * 130 + k)]);
        ASSERT_EQ(again, decoded(r, k));
      }
    }
  }
}

TEST(OutputError, IsTheQuadraticForm) {
  const Mat a = random_mat(70, 20, 71);
  const Mat b = random_mat(70, 20, 72);
  const Mat h = correlated_moment(20, 73);
  double expected = 0;
  for (int64_t r = 0; r < 70; ++r) {
    for (int64_t i = 0; i < 20; ++i) {
      for (int64_t j = 0; j < 20; ++j) {
        expected += 0.5 * double{a(r, i) - b(r, i)} * h(i, j) * double{a(r, j) - b(r, j)};
      }
    }
  }
  EXPECT_NEAR(output_error(with_threads(2), a, b, h), expected, 1e-4 * expected);
}

// With exact data (the quantized inputs are a linear map of the original ones) full strength and
// no damping recover the weight that gives the original outputs.
// What GPTQ minimises: the loss in the damped metric.
double damped_loss(const Mat& w, const format::QuantizedMatrix& q, const Metric& metric) {
  Mat h = metric.h.clone();
  for (int64_t k = 0; k < h.rows(); ++k) h(k, k) += metric.damping(k);
  return loss(w, q, h);
}

TEST(ScaleSearch, LowersTheLossOfEveryGrid) {
  const Mat w = random_mat(70, 192, 21);
  const Metric metric = metric_of(correlated_moment(192, 22));
  Mat diagonal(192, 192);  // what the search for RTN looks at
  for (int64_t k = 0; k < 192; ++k) diagonal(k, k) = metric.h(k, k);
  for (const int bits : {2, 3, 4}) {
    for (const int64_t group : {-1, 32, 64}) {
      for (const bool symmetric : {true, false}) {
        ProjectOptions options = options_for(bits, group, symmetric);
        const double plain =
            damped_loss(w, project_gptq(with_threads(2), w, metric, options), metric);
        const double plain_rtn =
            loss(w, project_rtn(with_threads(2), w, metric, options), diagonal);
        options.scale_search = true;
        EXPECT_LT(damped_loss(w, project_gptq(with_threads(2), w, metric, options), metric), plain)
            << bits << " " << group << " " << symmetric;
        EXPECT_LT(loss(w, project_rtn(with_threads(2), w, metric, options), diagonal), plain_rtn);
      }
    }
  }
}

TEST(ScaleSearch, OneSignedGroupsUseTheWholeGrid) {
  Mat w = random_mat(64, 64, 23);
  for (int64_t i = 0; i < w.size(); ++i) w.data()[i] = std::abs(w.data()[i]);
  const Metric metric = metric_of(correlated_moment(64, 24));
  ProjectOptions options = options_for(2, 32);
  options.scale_search = true;
  const auto q = project_gptq(with_threads(1), w, metric, options);
  // The longer side of the grid, codes below the middle, has to point at the positive tail.
  for (int64_t i = 0; i < q.scales.size(); ++i) EXPECT_LT(q.scales.data()[i], 0.0F);
}

TEST(Refine, NeverRaisesTheLossAndDoesNotDependOnThreads) {
  const Mat w = random_mat(130, 200, 25);
  Mat h = correlated_moment(200, 26);
  for (int64_t k = 0; k < 200; ++k) h(7, k) = h(k, 7) = 0.0F;  // a dead input
  const Metric metric = metric_of(h);
  for (const int64_t group : {-1, 16, 64, 150}) {
    for (const bool symmetric : {true, false}) {
      for (const bool search : {true, false}) {
        ProjectOptions options = options_for(3, group, symmetric);
        options.scale_search = search;
        auto q = project_gptq(with_threads(2), w, metric, options);
        Mat target = w.clone();
        for (int64_t n = 0; n < w.rows(); ++n) target(n, 7) = 0.0F;
        double before = damped_loss(target, q, metric);
        for (int sweep = 0; sweep < 3; ++sweep) {
          refine(with_threads(2), w, metric, 1, q);
          const double after = damped_loss(target, q, metric);
          EXPECT_LE(after, before * (1 + 1e-5));
          if (sweep == 0) {
            EXPECT_LT(after, before);
          }
          before = after;
        }
        options.refine_sweeps = 3;
        const auto at_once = project_gptq(with_threads(1), w, metric, options);
        for (int64_t i = 0; i < q.scales.size(); ++i) {
          EXPECT_EQ(q.scales.data()[i], round_to_f16(q.scales.data()[i]));
        }
        EXPECT_NEAR(damped_loss(target, at_once, metric), before, 1e-3 * before);
        options.refine_sweeps = 2;
        EXPECT_EQ(project_gptq(with_threads(1), w, metric, options).codes,
                  project_gptq(with_threads(3), w, metric, options).codes);
      }
    }
  }
}

// Without correlations every code is already the nearest one, and nothing is left to do but the
// scale.
TEST(Refine, LeavesNearestCodesAlone) {
  const Mat w = random_mat(64, 64, 27);
  Mat h(64, 64);
  for (int64_t k = 0; k < 64; ++k) h(k, k) = 1.0F;
  const Metric metric = metric_of(h);
  ProjectOptions options = options_for(4, 16);
  auto q = project_gptq(with_threads(1), w, metric, options);
  refine(with_threads(1), w, metric, 20, q);
  const std::vector<uint8_t> settled = q.codes;
  refine(with_threads(1), w, metric, 1, q);
  EXPECT_EQ(q.codes, settled);
}

// ---- grids of ggml blocks -----------------------------------------------------------------------

constexpr std::array kBlockTypes = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                                    DType::kQ8_0, DType::kQ2_K, DType::kQ3_K, DType::kQ4_K,
                                    DType::kQ5_K, DType::kQ6_K, DType::kQ2_0};

ProjectOptions block_options(DType type, bool search = false, int sweeps = 0) {
  ProjectOptions options;
  options.grid = format::GridSpec::of_block(type);
  options.scale_search = search;
  options.refine_sweeps = sweeps;
  return options;
}

TEST(Blocks, GptqWithADiagonalMomentIsRoundToNearest) {
  const Mat w = random_mat(70, 512, 1, 0.02F);
  Mat h(512, 512);
  for (int64_t k = 0; k < 512; ++k) h(k, k) = 0.5F + static_cast<float>(k % 7);
  const Metric metric = metric_of(h);
  for (const DType type : kBlockTypes) {
    const auto gptq = project_gptq(with_threads(2), w, metric, block_options(type));
    const auto rtn = project_rtn(with_threads(2), w, metric, block_options(type));
    // What an error costs is h_kk for the one and 1 / u_kk^2 for the other: equal but for rounding,
    // which can turn the choice between fits that are as good.
    const double a = loss(w, gptq, h);
    EXPECT_NEAR(a / loss(w, rtn, h), 1.0, 0.01) << dtype_info(type).name;
    size_t same = 0;
    for (size_t i = 0; i < gptq.blocks.size(); ++i) same += gptq.blocks[i] == rtn.blocks[i];
    EXPECT_GT(same, gptq.blocks.size() * 9 / 10) << dtype_info(type).name;
  }
}

TEST(Blocks, ErrorFeedbackSearchAndRefinementEachLowerTheLoss) {
  const Mat w = random_mat(64, 512, 3, 0.02F);
  const Mat h = correlated_moment(512, 4);
  const Metric metric = metric_of(h);
  for (const DType type : kBlockTypes) {
    const double rtn = loss(w, project_rtn(with_threads(2), w, metric, block_options(type)), h);
    const double gptq = loss(w, project_gptq(with_threads(2), w, metric, block_options(type)), h);
    const double searched =
        loss(w, project_gptq(with_threads(2), w, metric, block_options(type, true)), h);
    const double refined =
        loss(w, project_gptq(with_threads(2), w, metric, block_options(type, true, 2)), h);
    std::string name(dtype_info(type).name);
    RecordProperty(name,
                   fmt::format("{:.3f} {:.3f} {:.3f}", gptq / rtn, searched / rtn, refined / rtn));
    EXPECT_LT(gptq, rtn) << name;
    EXPECT_LT(searched, gptq * 1.02) << name;
    EXPECT_LT(refined, searched) << name;
  }
}

TEST(Blocks, BitsDoNotDependOnThreadsAndColumnOrdersAreFine) {
  const Mat w = random_mat(130, 256, 5, 0.02F);
  const Mat h = correlated_moment(256, 6);
  for (const ColumnOrder order : {ColumnOrder::kNatural, ColumnOrder::kActivation}) {
    const Metric metric = metric_of(h, order);
    for (const DType type : {DType::kQ3_K, DType::kQ4_K, DType::kQ4_1}) {
      const auto one = project_gptq(with_threads(1), w, metric, block_options(type, true, 1));
      const auto four = project_gptq(with_threads(4), w, metric, block_options(type, true, 1));
      EXPECT_EQ(one.blocks, four.blocks);
      EXPECT_LT(loss(w, one, h),
                loss(w, project_rtn(with_threads(1), w, metric, block_options(type)), h));
    }
  }
}

TEST(Blocks, DeadInputsAndConstantRowsAreFine) {
  Mat w = random_mat(8, 256, 7, 0.02F);
  for (int64_t k = 0; k < 256; ++k) {
    w(0, k) = 0.0F;
    w(1, k) = 0.25F;
  }
  Mat h = correlated_moment(256, 8);
  for (int64_t k = 0; k < 256; ++k) h(17, k) = h(k, 17) = 0.0F;
  const Metric metric = metric_of(h);
  for (const DType type : kBlockTypes) {
    const Mat q = project_gptq(with_threads(1), w, metric, block_options(type, true, 2)).decode();
    for (int64_t k = 0; k < 256; ++k) {
      EXPECT_EQ(q(0, k), 0.0F);
      ASSERT_TRUE(std::isfinite(q(5, k)));
    }
  }
}

}  // namespace
}  // namespace lpcd::solve
