#include "lpcd/format/recipe.h"

#include <algorithm>
#include <array>

namespace lpcd::format {
namespace {

using Kind = TensorPlace::Kind;

struct Mix {
  std::string_view name;
  DType type;         // of what no rule names
  int64_t file_type;  // llama.cpp's LLAMA_FTYPE_MOSTLY_...
};

constexpr std::array<Mix, 15> kMixes = {{
    {"q2_0", DType::kQ2_0, 41},
    {"q4_0", DType::kQ4_0, 2},
    {"q4_1", DType::kQ4_1, 3},
    {"q5_0", DType::kQ5_0, 8},
    {"q5_1", DType::kQ5_1, 9},
    {"q8_0", DType::kQ8_0, 7},
    {"q2_k", DType::kQ2_K, 10},
    {"q3_k_s", DType::kQ3_K, 11},
    {"q3_k_m", DType::kQ3_K, 12},
    {"q3_k_l", DType::kQ3_K, 13},
    {"q4_k_s", DType::kQ4_K, 14},
    {"q4_k_m", DType::kQ4_K, 15},
    {"q5_k_s", DType::kQ5_K, 16},
    {"q5_k_m", DType::kQ5_K, 17},
    {"q6_k", DType::kQ6_K, 18},
}};

const Mix& mix_of(std::string_view name) { return *std::ranges::find(kMixes, name, &Mix::name); }

// The blocks to which the _M mixes give more bits: the first and last eighth, and every third.
bool more_bits(int64_t i, int64_t n) { return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2; }

DType mixed(std::string_view name, const TensorPlace& p) {
  const DType base = mix_of(name).type;
  const int64_t i = p.block;
  const int64_t n = p.blocks;
  const bool medium = name == "q4_k_m" || name == "q5_k_m";
  switch (p.kind) {
    case Kind::kHead:
      return base == DType::kQ8_0 ? base : DType::kQ6_K;
    case Kind::kValue: {
      DType type = base;
      if (name == "q2_k") type = p.queries_per_key >= 4 ? DType::kQ4_K : DType::kQ3_K;
      if (name == "q3_k_m") type = i < 2 ? DType::kQ5_K : DType::kQ4_K;
      if (name == "q3_k_l") type = DType::kQ5_K;
      if (name == "q4_k_s" && i < 4) type = DType::kQ5_K;
      if (medium && more_bits(i, n)) type = DType::kQ6_K;
      if (p.seventy_b && (type == DType::kQ3_K || type == DType::kQ4_K)) type = DType::kQ5_K;
      return type;
    }
    case Kind::kAttentionOutput:
      if (name == "q2_k") return DType::kQ3_K;
      if (name == "q3_k_m") return DType::kQ4_K;
      if (name == "q3_k_l") return DType::kQ5_K;
      return base;
    case Kind::kDown:
      if (name == "q2_k") return DType::kQ3_K;
      if (name == "q3_k_m") return i < n / 16 ? DType::kQ5_K : DType::kQ4_K;
      if (name == "q3_k_l") return DType::kQ5_K;
      if (name == "q4_k_s" && i < n / 8) return DType::kQ5_K;
      if (medium && more_bits(i, n)) return DType::kQ6_K;
      return base;
    case Kind::kEmbedding:
      return name == "q2_0" ? DType::kQ4_K : base;
    default:
      return base;
  }
}

}  // namespace

std::span<const std::string_view> Recipe::names() {
  static constexpr auto kNames = [] {
    std::array<std::string_view, kMixes.size()> names;
    for (size_t i = 0; i < names.size(); ++i) names[i] = kMixes[i].name;
    return names;
  }();
  return kNames;
}

std::optional<Recipe> Recipe::parse(std::string_view text) {
  Recipe recipe;
  constexpr std::string_view kPure = ",pure";
  if (text.ends_with(kPure)) {
    recipe.pure_ = true;
    text.remove_suffix(kPure.size());
  }
  for (const auto& [short_name, name] :
       {std::pair<std::string_view, std::string_view>{"q3_k", "q3_k_m"},
        {"q4_k", "q4_k_m"},
        {"q5_k", "q5_k_m"}}) {
    if (text == short_name) text = name;
  }
  const auto* const mix = std::ranges::find(kMixes, text, &Mix::name);
  if (mix == kMixes.end()) return std::nullopt;
  recipe.name_ = mix->name;
  return recipe;
}

std::string Recipe::text() const {
  std::string text(name_);
  if (!pure_) return text;
  if (text.size() > 4) text.resize(4);  // q4_k_m and q4_k_s are the same when pure
  return text + ",pure";
}

DType Recipe::type(const TensorPlace& place) const {
  const DType base = mix_of(name_).type;
  if (pure_) return fallback(base, place.cols);
  // A head whose rows do not hold blocks of the mix's own type goes to Q8_0.
  if (place.kind == Kind::kHead && place.cols % dtype_info(base).block_elems != 0) {
    return fallback(DType::kQ8_0, place.cols);
  }
  return fallback(mixed(name_, place), place.cols);
}

int64_t Recipe::file_type() const { return mix_of(name_).file_type; }

DType Recipe::fallback(DType type, int64_t cols) {
  const auto holds = [&](DType t) { return cols % dtype_info(t).block_elems == 0; };
  if (holds(type)) return type;
  DType next = DType::kF16;
  switch (type) {
    case DType::kQ2_0:
    case DType::kQ2_K:
    case DType::kQ3_K:
      next = DType::kQ4_0;
      break;
    case DType::kQ4_K:
      next = DType::kQ5_0;
      break;
    case DType::kQ5_K:
      next = DType::kQ5_1;
      break;
    case DType::kQ6_K:
      next = DType::kQ8_0;
      break;
    default:
      break;
  }
  return holds(next) ? next : DType::kF16;
}

}  // namespace lpcd::format
