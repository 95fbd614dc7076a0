#pragma once

#include <string>

namespace lpcd::linalg {

/// Vector instruction sets of the running CPU, as far as the operating system enables them.
[[nodiscard]] bool cpu_has_avx2();
[[nodiscard]] bool cpu_has_avx512();

/// The widest of them that our kernels use: "AVX-512", "AVX2" or "baseline".
[[nodiscard]] std::string simd_name();

/// Model name of the CPU, "" where the system does not tell.
[[nodiscard]] std::string cpu_name();

}  // namespace lpcd::linalg
