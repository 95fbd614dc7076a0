#include "lpcd/linalg/cpu.h"

#include <hwy/targets.h>

#include <fstream>

namespace lpcd::linalg {
namespace {

bool supports(int64_t target) { return (hwy::SupportedTargets() & target) != 0; }

}  // namespace

std::string simd_name() {
  return cpu_has_avx512() ? "AVX-512" : cpu_has_avx2() ? "AVX2" : "baseline";
}

bool cpu_has_avx2() { return supports(HWY_AVX2 | HWY_AVX3); }
bool cpu_has_avx512() { return supports(HWY_AVX3); }

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) {
      const size_t colon = line.find(": ");
      if (colon != std::string::npos) return line.substr(colon + 2);
    }
  }
  return "";
}

}  // namespace lpcd::linalg
