#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "lpcd/base/error.h"
#include "lpcd/tensor/half.h"
#include "lpcd/tensor/mat.h"
#include "lpcd/tensor/named_tensor.h"

namespace lpcd {
namespace {

TEST(Half, EveryF16ValueSurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = f16_to_f32(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(value))));
    } else {
      ASSERT_EQ(f32_to_f16(value), half) << value;
    }
  }
}

TEST(Half, F16RoundsToNearestEven) {
  EXPECT_EQ(f16_to_f32(0x3C00), 1.0F);
  EXPECT_EQ(f16_to_f32(0x0001), 0x1.0p-24F);
  EXPECT_EQ(f32_to_f16(65504.0F), 0x7BFF);
  EXPECT_EQ(f32_to_f16(65519.99F), 0x7BFF);
  EXPECT_EQ(f32_to_f16(65520.0F), 0x7C00);               // rounds to Inf
  EXPECT_EQ(f32_to_f16(1.0F + 0x1.0p-11F), 0x3C00);      // tie to even
  EXPECT_EQ(f32_to_f16(1.0F + 3 * 0x1.0p-11F), 0x3C02);  // tie to even
  EXPECT_EQ(f32_to_f16(0x1.0p-25F), 0x0000);             // tie to even zero
  EXPECT_EQ(f32_to_f16(0x1.8p-25F), 0x0001);
  EXPECT_EQ(f32_to_f16(-0.0F), 0x8000);
  EXPECT_EQ(f32_to_f16(std::numeric_limits<float>::infinity()), 0x7C00);
}

TEST(Half, Bf16RoundsToNearestEven) {
  EXPECT_EQ(f32_to_bf16(1.0F), 0x3F80);
  EXPECT_EQ(f32_to_bf16(1.0F + 0x1.0p-8F), 0x3F80);
  EXPECT_EQ(f32_to_bf16(1.0F + 3 * 0x1.0p-8F), 0x3F82);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::nanf("")))));
}

TEST(Mat, IsZeroedAlignedAndCopiedOnlyByClone) {
  Mat m(3, 5);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(m.data()) % 64, 0U);
  EXPECT_EQ(m(2, 4), 0.0F);
  m(1, 2) = 7;
  const Mat c = m.clone();
  m(1, 2) = 8;
  EXPECT_EQ(c(1, 2), 7.0F);
  const ConstView v = ConstView(c).rows_range(1, 2).cols_range(2, 2);
  EXPECT_EQ(v(0, 0), 7.0F);
}

TEST(TensorInfo, CountsBytesOfBlockTypesAndRefusesPartialBlocks) {
  EXPECT_EQ((TensorInfo{"w", DType::kF16, {3, 4}}.bytes()), 24);
  EXPECT_EQ((TensorInfo{"w", DType::kQ4_K, {2, 512}}.bytes()), 2 * 2 * 144);
  EXPECT_THROW((void)(TensorInfo{"w", DType::kQ4_K, {2, 300}}.bytes()), Error);
  EXPECT_THROW((void)(TensorInfo{"w", DType::kF32, {int64_t{1} << 40, int64_t{1} << 40}}.bytes()),
               Error);
  EXPECT_EQ((TensorInfo{"scalar", DType::kF32, {}}.bytes()), 4);
}

}  // namespace
}  // namespace lpcd
