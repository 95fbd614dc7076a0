#include <fmt/ranges.h>

#include <algorithm>

#include "lpcd/arch/arch.h"
#include "lpcd/base/raise.h"

namespace lpcd::arch {

std::span<const Architecture* const> architectures() {
  // The one list to extend.
  static const std::array<const Architecture*, 3> kAll = {
      &llama_architecture(), &qwen2_architecture(), &qwen3_architecture()};
  return kAll;
}

const Architecture& find_architecture(std::string_view name) {
  std::vector<std::string_view> known;
  for (const Architecture* architecture : architectures()) {
    if (architecture->name() == name) return *architecture;
    known.push_back(architecture->name());
  }
  raise(ErrorCode::kUnsupportedModel, "architecture \"{}\" is not supported; supported are: {}",
        name, fmt::join(known, ", "));
}

}  // namespace lpcd::arch
