#pragma once

#include <bit>
#include <cstdint>
#include <span>

namespace lpcd {

/// IEEE binary16 bits to float, exact. NaN payloads are kept.
[[nodiscard]] constexpr float f16_to_f32(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000U) << 16;
  const auto magnitude = static_cast<int32_t>(bits & 0x7FFFU);
  // No branches and no subnormal floats on the way: loops over this vectorise and never trap.
  const float subnormal = static_cast<float>(magnitude) * 0x1.0p-24F;
  const uint32_t rebias = magnitude >= 0x7C00 ? 0x70000000U : 0x38000000U;  // Inf and NaN: to 255
  const uint32_t normal = (static_cast<uint32_t>(magnitude) << 13) + rebias;
  return std::bit_cast<float>((magnitude < 0x400 ? std::bit_cast<uint32_t>(subnormal) : normal) |
                              sign);
}

/// float to IEEE binary16 bits, to nearest, ties to even; overflow gives Inf.
[[nodiscard]] constexpr uint16_t f32_to_f16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000U);
  const uint32_t magnitude = bits & 0x7FFFFFFFU;
  if (magnitude > 0x7F800000U) {  // NaN stays NaN and keeps the upper payload bits
    return static_cast<uint16_t>(sign | 0x7E00U | ((magnitude >> 13) & 0x1FFU));
  }
  if (magnitude >= 0x47800000U) return static_cast<uint16_t>(sign | 0x7C00U);  // >= 65536
  if (magnitude < 0x38800000U) {  // below 2^-14: the addition rounds at the subnormal spacing
    const float shifted = std::bit_cast<float>(magnitude) + 0.5F;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3F000000U));
  }
  const uint32_t odd = (magnitude >> 13) & 1U;
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000U + 0xFFFU + odd) >> 13));
}

[[nodiscard]] constexpr float bf16_to_f32(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

/// float to bfloat16 bits, to nearest, ties to even.
[[nodiscard]] constexpr uint16_t f32_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7FFFFFFFU) > 0x7F800000U) return static_cast<uint16_t>((bits >> 16) | 0x40U);
  return static_cast<uint16_t>((bits + 0x7FFFU + ((bits >> 16) & 1U)) >> 16);
}

/// `value` rounded to the nearest binary16 and widened again.
[[nodiscard]] constexpr float round_to_f16(float value) { return f16_to_f32(f32_to_f16(value)); }

}  // namespace lpcd
