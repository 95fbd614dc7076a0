#include "lpcd/tensor/ggml_blocks.h"

#include <array>
#include <cstdint>
#include <cstring>
#include <utility>

#include "lpcd/base/checked.h"
#include "lpcd/tensor/half.h"

// Each decoder works in two steps that both vectorise: unpack the codes of a block into bytes, then
// turn runs of codes that share a scale into floats.

namespace lpcd {
namespace {

constexpr size_t kQuarters = 64;  // elements of a Q2_0 block
constexpr size_t kShort = 32;     // elements of a Q4_0 .. Q8_0 block
constexpr size_t kLong = 256;     // elements of a K block
constexpr size_t kSub16 = 16;     // elements per scale in Q2_K, Q3_K, Q6_K
constexpr size_t kSub32 = 32;     // elements per scale in Q4_K, Q5_K
constexpr size_t kScales = 12;    // bytes of packed 6-bit scales

float load_f16(const uint8_t* p) {
  uint16_t bits;
  std::memcpy(&bits, p, sizeof(bits));
  return f16_to_f32(bits);
}

/// out[i] = scale * q[i]
template <size_t kCount, typename Code>
void scale_codes(const Code* q, float scale, float* out) {
  for (size_t i = 0; i < kCount; ++i) out[i] = scale * static_cast<float>(q[i]);
}

/// out[i] = scale * q[i] + offset. x + -y has the bits of x - y, signs of zeros included.
template <size_t kCount>
void scale_and_add(const uint8_t* q, float scale, float offset, float* out) {
  for (size_t i = 0; i < kCount; ++i) out[i] = scale * static_cast<float>(q[i]) + offset;
}

/// Low nibbles of kHalf bytes, then their high nibbles.
template <size_t kHalf>
void unpack_nibbles(const uint8_t* packed, uint8_t* q) {
  for (size_t i = 0; i < kHalf; ++i) q[i] = packed[i] & 0x0FU;
  for (size_t i = 0; i < kHalf; ++i) q[i + kHalf] = static_cast<uint8_t>(packed[i] >> 4);
}

/// The plane of 2-bit codes of a K block: four runs of 32 elements share 32 bytes.
void unpack_pairs(const uint8_t* packed, uint8_t* q) {
  for (size_t half = 0; half < 2; ++half) {
    for (size_t run = 0; run < 4; ++run) {
      for (size_t i = 0; i < 32; ++i) {
        q[128 * half + 32 * run + i] = (packed[32 * half + i] >> (2 * run)) & 3U;
      }
    }
  }
}

/// q |= 16 where the element's bit of the little-endian word at `high` is set.
void add_fifth_bits(const uint8_t* high, uint8_t* q) {
  uint32_t bits;
  std::memcpy(&bits, high, sizeof(bits));
  for (size_t i = 0; i < kShort; ++i) q[i] |= static_cast<uint8_t>((bits >> i & 1U) << 4);
}

void decode_q4_0(const uint8_t* block, float* out) {
  std::array<uint8_t, kShort> q;
  unpack_nibbles<kShort / 2>(block + 2, q.data());
  std::array<int8_t, kShort> centred;
  for (size_t i = 0; i < kShort; ++i) centred[i] = static_cast<int8_t>(q[i] - 8);
  scale_codes<kShort>(centred.data(), load_f16(block), out);
}

void decode_q4_1(const uint8_t* block, float* out) {
  std::array<uint8_t, kShort> q;
  unpack_nibbles<kShort / 2>(block + 4, q.data());
  scale_and_add<kShort>(q.data(), load_f16(block), load_f16(block + 2), out);
}

void decode_q5_0(const uint8_t* block, float* out) {
  std::array<uint8_t, kShort> q;
  unpack_nibbles<kShort / 2>(block + 6, q.data());
  add_fifth_bits(block + 2, q.data());
  std::array<int8_t, kShort> centred;
  for (size_t i = 0; i < kShort; ++i) centred[i] = static_cast<int8_t>(q[i] - 16);
  scale_codes<kShort>(centred.data(), load_f16(block), out);
}

void decode_q5_1(const uint8_t* block, float* out) {
  std::array<uint8_t, kShort> q;
  unpack_nibbles<kShort / 2>(block + 8, q.data());
  add_fifth_bits(block + 4, q.data());
  scale_and_add<kShort>(q.data(), load_f16(block), load_f16(block + 2), out);
}

void decode_q8_0(const uint8_t* block, float* out) {
  std::array<int8_t, kShort> q;
  std::memcpy(q.data(), block + 2, kShort);
  scale_codes<kShort>(q.data(), load_f16(block), out);
}

void unpack_quarters(const uint8_t* packed, uint8_t* q) {
  for (size_t i = 0; i < kQuarters; ++i) q[i] = packed[i / 4] >> (2 * (i % 4)) & 3U;
}

void decode_q2_0(const uint8_t* block, float* out) {
  std::array<uint8_t, kQuarters> q;
  unpack_quarters(block + 2, q.data());
  std::array<int8_t, kQuarters> centred;
  for (size_t i = 0; i < kQuarters; ++i) centred[i] = static_cast<int8_t>(q[i] - 1);
  scale_codes<kQuarters>(centred.data(), load_f16(block), out);
}

void decode_q2_k(const uint8_t* block, float* out) {
  const uint8_t* scales = block;
  const uint8_t* pairs = block + 16;
  const float d = load_f16(block + 80);
  const float dmin = load_f16(block + 82);
  std::array<uint8_t, kLong> q;
  unpack_pairs(pairs, q.data());
  for (size_t j = 0; j < kLong / kSub16; ++j) {
    const float scale = d * static_cast<float>(scales[j] & 0x0FU);
    const float offset = dmin * static_cast<float>(scales[j] >> 4);
    scale_and_add<kSub16>(q.data() + kSub16 * j, scale, -offset, out + kSub16 * j);
  }
}

void decode_q3_k(const uint8_t* block, float* out) {
  const uint8_t* high = block;
  const uint8_t* pairs = block + 32;
  const uint8_t* scales = block + 96;
  const float d = load_f16(block + 108);
  std::array<uint8_t, kLong> low;
  unpack_pairs(pairs, low.data());
  std::array<int8_t, kLong> q;
  for (size_t run = 0; run < 8; ++run) {
    for (size_t i = 0; i < 32; ++i) {
      const int borrow = 4 - (high[i] >> run & 1) * 4;  // bit set: do not subtract 4
      q[32 * run + i] = static_cast<int8_t>(low[32 * run + i] - borrow);
    }
  }
  for (size_t j = 0; j < kLong / kSub16; ++j) {
    const uint32_t low_bits = scales[j % 8] >> (j < 8 ? 0 : 4) & 0x0FU;
    const uint32_t high_bits = scales[8 + j % 4] >> (2 * (j / 4)) & 3U;
    const float scale = d * static_cast<float>(static_cast<int>(low_bits | high_bits << 4) - 32);
    scale_codes<kSub16>(q.data() + kSub16 * j, scale, out + kSub16 * j);
  }
}

struct ScaleAndMin {
  uint32_t scale;
  uint32_t min;
};

/// 6-bit scale and min of sub-block j of Q4_K and Q5_K: the first four have whole bytes, the others
/// are made of nibbles and the bits that those bytes leave over.
ScaleAndMin scale_and_min(const uint8_t* packed, size_t j) {
  if (j < 4) return {packed[j] & 63U, packed[j + 4] & 63U};
  return {(packed[j + 4] & 15U) | (packed[j - 4] >> 6 << 4),
          static_cast<uint32_t>(packed[j + 4] >> 4) | (packed[j] >> 6 << 4)};
}

/// The shared tail of Q4_K and Q5_K; the head of a block is fp16 d, fp16 dmin, packed scales.
void scale_by_sub_blocks(const uint8_t* block, const uint8_t* q, float* out) {
  const float d = load_f16(block);
  const float dmin = load_f16(block + 2);
  for (size_t j = 0; j < kLong / kSub32; ++j) {
    const auto [scale, min] = scale_and_min(block + 4, j);
    scale_and_add<kSub32>(q + kSub32 * j, d * static_cast<float>(scale),
                          -dmin * static_cast<float>(min), out + kSub32 * j);
  }
}

void unpack_long_nibbles(const uint8_t* packed, uint8_t* q) {
  for (size_t pair = 0; pair < 4; ++pair) unpack_nibbles<32>(packed + 32 * pair, q + 64 * pair);
}

void decode_q4_k(const uint8_t* block, float* out) {
  std::array<uint8_t, kLong> q;
  unpack_long_nibbles(block + 4 + kScales, q.data());
  scale_by_sub_blocks(block, q.data(), out);
}

void decode_q5_k(const uint8_t* block, float* out) {
  const uint8_t* high = block + 4 + kScales;
  std::array<uint8_t, kLong> q;
  unpack_long_nibbles(high + 32, q.data());
  for (size_t run = 0; run < 8; ++run) {
    for (size_t i = 0; i < 32; ++i) {
      q[32 * run + i] |= static_cast<uint8_t>((high[i] >> run & 1) << 4);
    }
  }
  scale_by_sub_blocks(block, q.data(), out);
}

void decode_q6_k(const uint8_t* block, float* out) {
  const uint8_t* low = block;
  const uint8_t* high = block + 128;
  const uint8_t* scales = block + 192;
  const float d = load_f16(block + 208);
  std::array<uint8_t, kLong> q;
  unpack_pairs(high, q.data());
  std::array<uint8_t, kLong> nibbles;
  unpack_nibbles<64>(low, nibbles.data());
  unpack_nibbles<64>(low + 64, nibbles.data() + 128);
  std::array<int8_t, kLong> centred;
  for (size_t i = 0; i < kLong; ++i) {
    centred[i] = static_cast<int8_t>((nibbles[i] | q[i] << 4) - 32);
  }
  for (size_t j = 0; j < kLong / kSub16; ++j) {
    const float scale = d * static_cast<float>(static_cast<int8_t>(scales[j]));
    scale_codes<kSub16>(centred.data() + kSub16 * j, scale, out + kSub16 * j);
  }
}

using BlockDecoder = void (*)(const uint8_t*, float*);

BlockDecoder decoder_of(DType type) {
  switch (type) {
    case DType::kQ4_0:
      return decode_q4_0;
    case DType::kQ4_1:
      return decode_q4_1;
    case DType::kQ5_0:
      return decode_q5_0;
    case DType::kQ5_1:
      return decode_q5_1;
    case DType::kQ8_0:
      return decode_q8_0;
    case DType::kQ2_K:
      return decode_q2_k;
    case DType::kQ3_K:
      return decode_q3_k;
    case DType::kQ4_K:
      return decode_q4_k;
    case DType::kQ5_K:
      return decode_q5_k;
    case DType::kQ6_K:
      return decode_q6_k;
    case DType::kQ2_0:
      return decode_q2_0;
    default:
      return nullptr;
  }
}

}  // namespace

void decode_ggml_blocks(DType type, std::span<const std::byte> blocks, std::span<float> out) {
  const BlockDecoder decode = decoder_of(type);
  LPCD_CHECK(decode != nullptr);
  const auto elems = static_cast<size_t>(dtype_info(type).block_elems);
  const auto bytes = static_cast<size_t>(dtype_info(type).block_bytes);
  const size_t count = out.size() / elems;
  LPCD_CHECK(count * elems == out.size() && count * bytes == blocks.size());
  const auto* p = reinterpret_cast<const uint8_t*>(blocks.data());
  for (size_t i = 0; i < count; ++i) decode(p + i * bytes, out.data() + i * elems);
}

// ---- packing: the inverse of the above, block by block ------------------------------------------

namespace {

void store_u16(uint8_t* p, uint16_t value) { std::memcpy(p, &value, sizeof(value)); }

uint16_t load_u16(const uint8_t* p) {
  uint16_t value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}

// Inverse of unpack_nibbles.
void pack_nibbles(const uint8_t* q, size_t half, uint8_t* packed) {
  for (size_t i = 0; i < half; ++i) {
    packed[i] = static_cast<uint8_t>((q[i] & 15U) | (q[i + half] & 15U) << 4);
  }
}

// Inverse of unpack_pairs: bits [shift, shift + 2) of each code.
void pack_pairs(const uint8_t* q, int shift, uint8_t* packed) {
  for (size_t half = 0; half < 2; ++half) {
    for (size_t i = 0; i < 32; ++i) {
      unsigned byte = 0;
      for (size_t run = 0; run < 4; ++run) {
        byte |= (q[128 * half + 32 * run + i] >> shift & 3U) << (2 * run);
      }
      packed[32 * half + i] = static_cast<uint8_t>(byte);
    }
  }
}

// Bit `bit` of each code of a K block, one bit plane of 32 bytes.
void pack_high_bits(const uint8_t* q, int bit, uint8_t* high) {
  for (size_t i = 0; i < 32; ++i) {
    unsigned byte = 0;
    for (size_t run = 0; run < 8; ++run) byte |= (q[32 * run + i] >> bit & 1U) << run;
    high[i] = static_cast<uint8_t>(byte);
  }
}

void pack_fifth_bits(const uint8_t* q, uint8_t* high) {
  uint32_t bits = 0;
  for (size_t i = 0; i < kShort; ++i) bits |= (q[i] >> 4 & 1U) << i;
  std::memcpy(high, &bits, sizeof(bits));
}

// Inverse of scale_and_min.
void pack_scales_and_mins(const GgmlBlockFields& f, uint8_t* packed) {
  const auto scale = [&](size_t j) { return static_cast<unsigned>(f.scales[j]); };
  const auto min = [&](size_t j) { return static_cast<unsigned>(f.mins[j]); };
  for (size_t j = 0; j < 4; ++j) {
    packed[j] = static_cast<uint8_t>((scale(j) & 63U) | scale(j + 4) >> 4 << 6);
    packed[j + 4] = static_cast<uint8_t>((min(j) & 63U) | min(j + 4) >> 4 << 6);
    packed[j + 8] = static_cast<uint8_t>((scale(j + 4) & 15U) | (min(j + 4) & 15U) << 4);
  }
}

constexpr size_t kFirstBlockType = static_cast<size_t>(DType::kQ4_0);
// In the order of the enumerators.
constexpr std::array<GgmlGrid, 11> kGrids = {{
    {32, 32, 15, 8, false, 0, 0},         // Q4_0
    {32, 32, 15, 0, true, 0, 0},          // Q4_1
    {32, 32, 31, 16, false, 0, 0},        // Q5_0
    {32, 32, 31, 0, true, 0, 0},          // Q5_1
    {32, 32, 255, 128, false, 0, 0},      // Q8_0
    {256, 16, 3, 0, true, 0, 15},         // Q2_K
    {256, 16, 7, 4, false, -32, 31},      // Q3_K
    {256, 32, 15, 0, true, 0, 63},        // Q4_K
    {256, 32, 31, 0, true, 0, 63},        // Q5_K
    {256, 16, 63, 32, false, -128, 127},  // Q6_K
    {64, 64, 3, 1, false, 0, 0},          // Q2_0
}};

}  // namespace

const GgmlGrid& ggml_grid(DType type) {
  LPCD_CHECK(is_block_quantized(type));
  return kGrids.at(static_cast<size_t>(type) - kFirstBlockType);
}

void encode_ggml_block(DType type, const GgmlBlockFields& f, std::span<const uint8_t> codes,
                       std::span<std::byte> block) {
  LPCD_CHECK(std::cmp_equal(codes.size(), ggml_grid(type).length) &&
             std::cmp_equal(block.size(), dtype_info(type).block_bytes));
  auto* p = reinterpret_cast<uint8_t*>(block.data());
  const uint8_t* q = codes.data();
  switch (type) {
    case DType::kQ4_0:
      store_u16(p, f.d);
      pack_nibbles(q, kShort / 2, p + 2);
      break;
    case DType::kQ4_1:
      store_u16(p, f.d);
      store_u16(p + 2, f.m);
      pack_nibbles(q, kShort / 2, p + 4);
      break;
    case DType::kQ5_0:
      store_u16(p, f.d);
      pack_fifth_bits(q, p + 2);
      pack_nibbles(q, kShort / 2, p + 6);
      break;
    case DType::kQ5_1:
      store_u16(p, f.d);
      store_u16(p + 2, f.m);
      pack_fifth_bits(q, p + 4);
      pack_nibbles(q, kShort / 2, p + 8);
      break;
    case DType::kQ8_0:
      store_u16(p, f.d);
      for (size_t i = 0; i < kShort; ++i) p[2 + i] = static_cast<uint8_t>(q[i] - 128);
      break;
    case DType::kQ2_K:
      for (size_t j = 0; j < 16; ++j) {
        p[j] = static_cast<uint8_t>(static_cast<unsigned>(f.scales[j]) | f.mins[j] << 4);
      }
      pack_pairs(q, 0, p + 16);
      store_u16(p + 80, f.d);
      store_u16(p + 82, f.m);
      break;
    case DType::kQ3_K: {
      pack_high_bits(q, 2, p);
      pack_pairs(q, 0, p + 32);
      std::array<uint8_t, 16> s;
      for (size_t j = 0; j < 16; ++j) s[j] = static_cast<uint8_t>(f.scales[j] + 32);
      for (size_t j = 0; j < 8; ++j) {
        p[96 + j] = static_cast<uint8_t>((s[j] & 15U) | (s[j + 8] & 15U) << 4);
      }
      for (size_t j = 0; j < 4; ++j) {
        p[104 + j] = static_cast<uint8_t>(s[j] >> 4 | s[j + 4] >> 4 << 2 | s[j + 8] >> 4 << 4 |
                                          s[j + 12] >> 4 << 6);
      }
      store_u16(p + 108, f.d);
      break;
    }
    case DType::kQ4_K:
    case DType::kQ5_K: {
      store_u16(p, f.d);
      store_u16(p + 2, f.m);
      pack_scales_and_mins(f, p + 4);
      uint8_t* low = p + 4 + kScales;
      if (type == DType::kQ5_K) {
        pack_high_bits(q, 4, low);
        low += 32;
      }
      for (size_t pair = 0; pair < 4; ++pair) pack_nibbles(q + 64 * pair, 32, low + 32 * pair);
      break;
    }
    case DType::kQ6_K:
      pack_nibbles(q, 64, p);
      pack_nibbles(q + 128, 64, p + 64);
      pack_pairs(q, 4, p + 128);
      std::memcpy(p + 192, f.scales.data(), 16);
      store_u16(p + 208, f.d);
      break;
    case DType::kQ2_0:
      store_u16(p, f.d);
      for (size_t i = 0; i < kQuarters; i += 4) {
        p[2 + i / 4] = static_cast<uint8_t>(q[i] | q[i + 1] << 2 | q[i + 2] << 4 | q[i + 3] << 6);
      }
      break;
    default:
      LPCD_CHECK(false);
  }
}

void unpack_ggml_block(DType type, std::span<const std::byte> block, GgmlBlockFields& f,
                       std::span<uint8_t> codes) {
  LPCD_CHECK(std::cmp_equal(codes.size(), ggml_grid(type).length) &&
             std::cmp_equal(block.size(), dtype_info(type).block_bytes));
  const auto* p = reinterpret_cast<const uint8_t*>(block.data());
  uint8_t* q = codes.data();
  f = {};
  switch (type) {
    case DType::kQ4_0:
      f.d = load_u16(p);
      unpack_nibbles<kShort / 2>(p + 2, q);
      break;
    case DType::kQ4_1:
      f.d = load_u16(p);
      f.m = load_u16(p + 2);
      unpack_nibbles<kShort / 2>(p + 4, q);
      break;
    case DType::kQ5_0:
      f.d = load_u16(p);
      unpack_nibbles<kShort / 2>(p + 6, q);
      add_fifth_bits(p + 2, q);
      break;
    case DType::kQ5_1:
      f.d = load_u16(p);
      f.m = load_u16(p + 2);
      unpack_nibbles<kShort / 2>(p + 8, q);
      add_fifth_bits(p + 4, q);
      break;
    case DType::kQ8_0:
      f.d = load_u16(p);
      for (size_t i = 0; i < kShort; ++i) q[i] = static_cast<uint8_t>(p[2 + i] + 128);
      break;
    case DType::kQ2_K:
      for (size_t j = 0; j < 16; ++j) {
        f.scales[j] = static_cast<int8_t>(p[j] & 15U);
        f.mins[j] = static_cast<uint8_t>(p[j] >> 4);
      }
      unpack_pairs(p + 16, q);
      f.d = load_u16(p + 80);
      f.m = load_u16(p + 82);
      break;
    case DType::kQ3_K:
      unpack_pairs(p + 32, q);
      for (size_t run = 0; run < 8; ++run) {
        for (size_t i = 0; i < 32; ++i) {
          q[32 * run + i] |= static_cast<uint8_t>((p[i] >> run & 1U) << 2);
        }
      }
      for (size_t j = 0; j < 16; ++j) {
        const uint32_t low = p[96 + j % 8] >> (j < 8 ? 0 : 4) & 15U;
        const uint32_t high = p[104 + j % 4] >> (2 * (j / 4)) & 3U;
        f.scales[j] = static_cast<int8_t>(static_cast<int>(low | high << 4) - 32);
      }
      f.d = load_u16(p + 108);
      break;
    case DType::kQ4_K:
    case DType::kQ5_K: {
      f.d = load_u16(p);
      f.m = load_u16(p + 2);
      for (size_t j = 0; j < 8; ++j) {
        const auto [scale, min] = scale_and_min(p + 4, j);
        f.scales[j] = static_cast<int8_t>(scale);
        f.mins[j] = static_cast<uint8_t>(min);
      }
      const uint8_t* low = p + 4 + kScales;
      const uint8_t* high = low;
      if (type == DType::kQ5_K) low += 32;
      unpack_long_nibbles(low, q);
      for (size_t run = 0; type == DType::kQ5_K && run < 8; ++run) {
        for (size_t i = 0; i < 32; ++i) {
          q[32 * run + i] |= static_cast<uint8_t>((high[i] >> run & 1U) << 4);
        }
      }
      break;
    }
    case DType::kQ6_K: {
      unpack_nibbles<64>(p, q);
      unpack_nibbles<64>(p + 64, q + 128);
      std::array<uint8_t, kLong> high;
      unpack_pairs(p + 128, high.data());
      for (size_t i = 0; i < kLong; ++i) q[i] |= static_cast<uint8_t>(high[i] << 4);
      std::memcpy(f.scales.data(), p + 192, 16);
      f.d = load_u16(p + 208);
      break;
    }
    case DType::kQ2_0:
      f.d = load_u16(p);
      unpack_quarters(p + 2, q);
      break;
    default:
      LPCD_CHECK(false);
  }
}

}  // namespace lpcd
