#include "lpcd/tensor/ggml_blocks.h"

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "lpcd/base/error.h"
#include "lpcd/tensor/half.h"

namespace lpcd {
namespace {

constexpr std::array kBlockTypes = {DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                                    DType::kQ8_0, DType::kQ2_K, DType::kQ3_K, DType::kQ4_K,
                                    DType::kQ5_K, DType::kQ6_K, DType::kQ2_0};

/// A block seen as the format description has it: element by element, bit by bit. It shares no
/// step with the decoders, which work by whole runs.
class Block {
 public:
  explicit Block(const uint8_t* bytes) : bytes_(bytes) {}

  [[nodiscard]] float element(DType type, int e) const {
    switch (type) {
      case DType::kQ4_0:
        return half(0) * number(nibble(2, e) - 8);
      case DType::kQ4_1:
        return half(0) * number(nibble(4, e)) + half(2);
      case DType::kQ5_0:
        return half(0) * number(nibble(6, e) + 16 * bit(2 + e / 8, e % 8) - 16);
      case DType::kQ5_1:
        return half(0) * number(nibble(8, e) + 16 * bit(4 + e / 8, e % 8)) + half(2);
      case DType::kQ8_0:
        return half(0) * number(signed_byte(2 + e));
      case DType::kQ2_K:
        return half(80) * number(bytes_[e / 16] & 15) * number(pair(16, e)) -
               half(82) * number(bytes_[e / 16] >> 4);
      case DType::kQ3_K:
        return half(108) * number(q3_scale(e / 16)) *
               number(pair(32, e) + 4 * bit(e % 32, e / 32) - 4);
      case DType::kQ4_K:
        return half(0) * number(k_scale(e / 32)) * number(k_nibble(16, e)) -
               half(2) * number(k_min(e / 32));
      case DType::kQ5_K:
        return half(0) * number(k_scale(e / 32)) *
                   number(k_nibble(48, e) + 16 * bit(16 + e % 32, e / 32)) -
               half(2) * number(k_min(e / 32));
      case DType::kQ6_K: {
        const int low = bytes_[64 * (e / 128) + e % 64] >> (e % 128 < 64 ? 0 : 4) & 15;
        return half(208) * number(signed_byte(192 + e / 16)) * number(low + 16 * pair(128, e) - 32);
      }
      case DType::kQ2_0:
        return half(0) * number((bytes_[2 + e / 4] >> (2 * (e % 4)) & 3) - 1);
      default:
        return 0;
    }
  }

 private:
  static float number(int value) { return static_cast<float>(value); }
  [[nodiscard]] float half(int at) const {
    return f16_to_f32(static_cast<uint16_t>(bytes_[at] | bytes_[at + 1] << 8));
  }
  [[nodiscard]] int signed_byte(int at) const { return static_cast<int8_t>(bytes_[at]); }
  [[nodiscard]] int bit(int at, int position) const { return bytes_[at] >> position & 1; }
  [[nodiscard]] int nibble(int at, int e) const {
    return e < 16 ? bytes_[at + e] & 15 : bytes_[at + e - 16] >> 4;
  }
  [[nodiscard]] int pair(int at, int e) const {
    return bytes_[at + 32 * (e / 128) + e % 32] >> (2 * (e % 128 / 32)) & 3;
  }
  [[nodiscard]] int k_nibble(int at, int e) const {
    const int byte = bytes_[at + 32 * (e / 64) + e % 32];
    return e % 64 < 32 ? byte & 15 : byte >> 4;
  }
  [[nodiscard]] int k_scale(int j) const {
    const uint8_t* b = bytes_ + 4;
    return j < 4 ? b[j] & 63 : (b[j + 4] & 15) | (b[j - 4] >> 6 << 4);
  }
  [[nodiscard]] int k_min(int j) const {
    const uint8_t* b = bytes_ + 4;
    return j < 4 ? b[j + 4] & 63 : b[j + 4] >> 4 | (b[j] >> 6 << 4);
  }
  [[nodiscard]] int q3_scale(int j) const {
    const int low = j < 8 ? bytes_[96 + j] & 15 : bytes_[96 + j - 8] >> 4;
    const int high = bytes_[96 + 8 + j % 4] >> (2 * (j / 4)) & 3;
    return low + 16 * high - 32;
  }

  const uint8_t* bytes_;
};

std::vector<float> decode(DType type, const std::vector<uint8_t>& bytes) {
  const DTypeInfo& info = dtype_info(type);
  std::vector<float> out(bytes.size() / static_cast<size_t>(info.block_bytes) *
                         static_cast<size_t>(info.block_elems));
  decode_ggml_blocks(type, std::as_bytes(std::span(bytes)), out);
  return out;
}

/// Random blocks whose scales are finite: no exponent of all ones in any byte pair.
std::vector<uint8_t> random_blocks(DType type, int count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<uint8_t> bytes(static_cast<size_t>(dtype_info(type).block_bytes * count));
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(random());
  // Every place where some type keeps fp16 bits gets a finite exponent.
  for (size_t block = 0; block < static_cast<size_t>(count); ++block) {
    uint8_t* b = bytes.data() + block * static_cast<size_t>(dtype_info(type).block_bytes);
    for (const int64_t high_byte : {1, 3, 81, 83, 109, 209}) {
      if (high_byte < dtype_info(type).block_bytes) b[high_byte] &= 0xBF;
    }
  }
  return bytes;
}

TEST(GgmlBlocks, EveryTypeDecodesAsItsDescriptionSays) {
  constexpr int kBlocks = 50;
  for (const DType type : kBlockTypes) {
    SCOPED_TRACE(std::string(dtype_info(type).name));
    const std::vector<uint8_t> bytes = random_blocks(type, kBlocks, 17);
    const std::vector<float> values = decode(type, bytes);
    const auto elems = static_cast<int>(dtype_info(type).block_elems);
    for (int block = 0; block < kBlocks; ++block) {
      const Block reference(bytes.data() + block * dtype_info(type).block_bytes);
      for (int e = 0; e < elems; ++e) {
        const float found = values[static_cast<size_t>(block * elems + e)];
        const float expected = reference.element(type, e);
        ASSERT_EQ(std::bit_cast<uint32_t>(found), std::bit_cast<uint32_t>(expected))
            << "block " << block << " element " << e << ": " << found << " for " << expected;
      }
    }
  }
}

TEST(GgmlBlocks, ShortTypesByHand) {
  // Q4_0, d = 0.5: codes 8 and 15 in the first byte, all others 0.
  std::vector<uint8_t> q4_0(18, 0);
  q4_0[1] = 0x38;
  q4_0[2] = 0xF8;
  std::vector<float> values = decode(DType::kQ4_0, q4_0);
  EXPECT_EQ(values[0], 0.0F);
  EXPECT_EQ(values[16], 3.5F);
  EXPECT_EQ(values[1], -4.0F);

  // Q4_1, d = 2, m = -1: code 3 for element 0, 5 for element 16.
  std::vector<uint8_t> q4_1(20, 0);
  q4_1[1] = 0x40;
  q4_1[3] = 0xBC;
  q4_1[4] = 0x53;
  values = decode(DType::kQ4_1, q4_1);
  EXPECT_EQ(values[0], 5.0F);
  EXPECT_EQ(values[16], 9.0F);
  EXPECT_EQ(values[31], -1.0F);

  // Q8_0, d = -0.25: codes -128, 127, 0. Zero times a negative scale is -0.
  std::vector<uint8_t> q8_0(34, 0);
  q8_0[1] = 0xB4;
  q8_0[2] = 0x80;
  q8_0[3] = 0x7F;
  values = decode(DType::kQ8_0, q8_0);
  EXPECT_EQ(values[0], 32.0F);
  EXPECT_EQ(values[1], -31.75F);
  EXPECT_EQ(std::bit_cast<uint32_t>(values[2]), 0x80000000U);
}

TEST(GgmlBlocks, KTypesByHand) {
  // Q4_K, d = 1, dmin = 0.5; sub-block 5: scale 37 = 2 * 16 + 5, min 18 = 1 * 16 + 2.
  std::vector<uint8_t> q4_k(144, 0);
  q4_k[1] = 0x3C;
  q4_k[3] = 0x38;
  q4_k[4 + 9] = 0x25;     // low nibbles of scale and min
  q4_k[4 + 1] = 2U << 6;  // scale's upper bits, beside scale 1
  q4_k[4 + 5] = 1U << 6;  // min's upper bits, beside min 1
  q4_k[16 + 64] = 0x30;   // element 160 = 32 * 5: high nibble of byte 32 * 2
  const std::vector<float> k4 = decode(DType::kQ4_K, q4_k);
  EXPECT_EQ(k4[160], 37.0F * 3.0F - 9.0F);
  EXPECT_EQ(k4[161], -9.0F);
  EXPECT_EQ(k4[0], 0.0F);

  // Q6_K, d = 1, scale of sub-block 15 = -2; last element's code 63 - 32.
  std::vector<uint8_t> q6_k(210, 0);
  q6_k[209] = 0x3C;
  q6_k[192 + 15] = 0xFE;
  q6_k[127] = 0xF0;
  q6_k[128 + 63] = 0xC0;
  EXPECT_EQ(decode(DType::kQ6_K, q6_k)[255], -62.0F);

  // Q3_K, d = 1: scales are stored + 32, so zero bytes mean -32, and codes - 4.
  std::vector<uint8_t> q3_k(110, 0);
  q3_k[109] = 0x3C;
  EXPECT_EQ(decode(DType::kQ3_K, q3_k)[100], 128.0F);
}

TEST(GgmlBlocks, SizesThatDoNotFitAreBugsOfTheCaller) {
  std::vector<std::byte> bytes(18 * 2);
  std::vector<float> out(64);
  EXPECT_NO_THROW(decode_ggml_blocks(DType::kQ4_0, bytes, out));
  EXPECT_NO_THROW(decode_ggml_blocks(DType::kQ4_0, {}, {}));
  EXPECT_THROW(decode_ggml_blocks(DType::kQ4_0, std::span(bytes).first(35), out), Error);
  EXPECT_THROW(decode_ggml_blocks(DType::kQ4_0, bytes, std::span(out).first(63)), Error);
  EXPECT_THROW(decode_ggml_blocks(DType::kF32, std::span(bytes).first(4), std::span(out).first(1)),
               Error);
}

}  // namespace
}  // namespace lpcd
