#include "lpcd/tensor/ggml_blocks.h"

#include <array>
#include <cstdint>
#include <cstring>

#include "lpcd/base/checked.h"
#include "lpcd/tensor/half.h"

// Each decoder works in two steps that both vectorise: unpack the codes of a block into bytes, then
// turn runs of codes that share a scale into floats.

namespace lpcd {
namespace {

constexpr size_t kShort = 32;   // elements of a Q4_0 .. Q8_0 block
constexpr size_t kLong = 256;   // elements of a K block
constexpr size_t kSub16 = 16;   // elements per scale in Q2_K, Q3_K, Q6_K
constexpr size_t kSub32 = 32;   // elements per scale in Q4_K, Q5_K
constexpr size_t kScales = 12;  // bytes of packed 6-bit scales

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

}  // namespace lpcd
