#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

// The one way in which codes are packed: a little-endian stream of fields of `bits` each, field i
// at bits [i bits, i bits + bits) of the stream. The gptq and compressed-tensors layouts and the
// journal differ only in the axis along which the stream runs.

namespace lpcd::format {

constexpr int64_t kWordBits = 32;

/// 32-bit words that `count` fields fill, the last of them perhaps in part.
[[nodiscard]] constexpr int64_t stream_words(int64_t count, int bits) {
  return (count * bits + kWordBits - 1) / kWordBits;
}

/// Adds `value` as field i to a stream whose words are `stride` apart and were 0.
inline void put_field(uint32_t* words, int64_t stride, int bits, int64_t i, uint32_t value) {
  const int64_t bit = i * bits;
  const int64_t word = bit / kWordBits;
  const auto shift = static_cast<int>(bit % kWordBits);
  words[word * stride] |= value << shift;
  if (shift + bits > kWordBits)
    words[(word + 1) * stride] |= value >> ((kWordBits - shift) % kWordBits);
}

[[nodiscard]] inline uint32_t get_field(const uint32_t* words, int64_t stride, int bits,
                                        int64_t i) {
  const int64_t bit = i * bits;
  const int64_t word = bit / kWordBits;
  const auto shift = static_cast<int>(bit % kWordBits);
  uint32_t value = words[word * stride] >> shift;
  if (shift + bits > kWordBits)
    value |= words[(word + 1) * stride] << ((kWordBits - shift) % kWordBits);
  return value & ((1U << bits) - 1U);
}

/// A stream that ends at a whole byte.
[[nodiscard]] inline std::vector<std::byte> pack_bytes(std::span<const uint8_t> codes, int bits) {
  std::vector<std::byte> packed((codes.size() * static_cast<size_t>(bits) + 7) / 8);
  size_t at = 0;
  for (const uint8_t code : codes) {
    const auto shifted = static_cast<uint32_t>(code) << (at % 8);
    packed[at / 8] |= static_cast<std::byte>(shifted & 0xFFU);
    if (shifted > 0xFFU) packed[at / 8 + 1] |= static_cast<std::byte>(shifted >> 8);
    at += static_cast<size_t>(bits);
  }
  return packed;
}

/// Shapes    `packed` has at least the bytes that pack_bytes gives for codes.size() fields.
inline void unpack_bytes(std::span<const std::byte> packed, int bits, std::span<uint8_t> codes) {
  const auto mask = static_cast<uint32_t>((1 << bits) - 1);
  size_t at = 0;
  for (uint8_t& code : codes) {
    const size_t byte = at / 8;
    auto word = std::to_integer<uint32_t>(packed[byte]);
    if (byte + 1 < packed.size()) word |= std::to_integer<uint32_t>(packed[byte + 1]) << 8;
    code = static_cast<uint8_t>((word >> (at % 8)) & mask);
    at += static_cast<size_t>(bits);
  }
}

/// The bytes of numbers, for a tensor.
template <typename T>
[[nodiscard]] std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  std::vector<std::byte> bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

}  // namespace lpcd::format
