#include "tests/support/mutate.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <stdexcept>

namespace lpcd::testing {
namespace {

/// Overwrites up to `size` bytes at `place` with a number that parsers stumble over.
void put_number(std::string& bytes, size_t place, size_t size, uint32_t choice) {
  constexpr std::array<uint64_t, 12> kNumbers = {
      0,          1,          7,           0x7F,       0xFF,       0x7FFFFFFF,
      0x80000000, 0xFFFFFFFF, 0x100000000, UINT64_MAX, 1ULL << 63, (1ULL << 63) - 1};
  const uint64_t number = kNumbers[choice % kNumbers.size()];
  std::memcpy(bytes.data() + place, &number, std::min(size, bytes.size() - place));
}

}  // namespace

std::string mutate(const std::string& seed, size_t hot_bytes, std::mt19937& random) {
  const auto below = [&random](size_t n) { return n == 0 ? 0 : random() % n; };
  std::string bytes = seed;
  const size_t changes = 1 + below(4);
  for (size_t i = 0; i < changes && !bytes.empty(); ++i) {
    const size_t range = below(2) == 0 ? std::min(hot_bytes, bytes.size()) : bytes.size();
    const size_t place = below(range);
    switch (below(9)) {
      case 0:
        bytes[place] = static_cast<char>(bytes[place] ^ (1U << below(8)));
        break;
      case 1:
        bytes[place] = static_cast<char>(random());
        break;
      case 2:
        bytes[place] = "0123456789-+.eE[]{}\",:\\/ \n"[below(26)];
        break;
      case 3:
        put_number(bytes, place, 4, static_cast<uint32_t>(random()));
        break;
      case 4:
        put_number(bytes, place, 8, static_cast<uint32_t>(random()));
        break;
      case 5:
        bytes.resize(place);
        break;
      case 6:
        bytes.append(1 + below(64), static_cast<char>(random()));
        break;
      case 7:
        bytes.erase(place, 1 + below(16));
        break;
      default: {  // repeat a piece: duplicate keys, records out of step
        const std::string piece = bytes.substr(place, 1 + below(48));
        bytes.insert(below(bytes.size()), piece);
      }
    }
  }
  return bytes;
}

void put_file(const std::string& path, std::string_view bytes) {
  std::filesystem::remove(path);  // some file systems sync a file that is truncated and rewritten
  std::ofstream file(path, std::ios::binary);
  file << bytes;
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

size_t peak_resident_bytes() {
  struct rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  return static_cast<size_t>(usage.ru_maxrss) * 1024;
}

void expect_modest_growth([[maybe_unused]] size_t before) {
#ifndef __SANITIZE_ADDRESS__
  constexpr size_t kMaxGrowth = 64 << 20;
  EXPECT_LT(peak_resident_bytes(), before + kMaxGrowth);
#endif
}

}  // namespace lpcd::testing
