#include "lpcd/tensor/dtype.h"

#include <algorithm>
#include <array>

namespace lpcd {
namespace {

// In the order of the enumerators.
constexpr std::array<DTypeInfo, 24> kInfo = {{
    {"F64", 1, 8},      {"F32", 1, 4},      {"F16", 1, 2},      {"BF16", 1, 2},
    {"I64", 1, 8},      {"I32", 1, 4},      {"I16", 1, 2},      {"I8", 1, 1},
    {"U64", 1, 8},      {"U32", 1, 4},      {"U16", 1, 2},      {"U8", 1, 1},
    {"BOOL", 1, 1},     {"Q4_0", 32, 18},   {"Q4_1", 32, 20},   {"Q5_0", 32, 22},
    {"Q5_1", 32, 24},   {"Q8_0", 32, 34},   {"Q2_K", 256, 84},  {"Q3_K", 256, 110},
    {"Q4_K", 256, 144}, {"Q5_K", 256, 176}, {"Q6_K", 256, 210}, {"Q2_0", 64, 18},
}};

}  // namespace

const DTypeInfo& dtype_info(DType type) { return kInfo.at(static_cast<size_t>(type)); }

bool is_block_quantized(DType type) { return dtype_info(type).block_elems > 1; }

std::optional<DType> ggml_type_from_name(std::string_view name) {
  const auto same = [](char a, char b) {
    return a == b || (b >= 'a' && b <= 'z' && a == b - 'a' + 'A');
  };
  for (size_t i = 0; i < kInfo.size(); ++i) {
    if (kInfo[i].block_elems > 1 && std::ranges::equal(kInfo[i].name, name, same)) {
      return static_cast<DType>(i);
    }
  }
  return std::nullopt;
}

std::optional<DType> dtype_from_name(std::string_view name) {
  for (size_t i = 0; i < kInfo.size(); ++i) {
    if (kInfo[i].name == name && kInfo[i].block_elems == 1) return static_cast<DType>(i);
  }
  return std::nullopt;
}

}  // namespace lpcd
