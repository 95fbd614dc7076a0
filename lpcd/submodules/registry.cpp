#include <array>

#include "lpcd/submodules/submodule.h"

namespace lpcd::submodules {

std::span<const Submodule* const> lpcd_submodules() {
  // The one list to extend.
  static const std::array<const Submodule*, 1> kAll = {&residual_submodule()};
  return kAll;
}

}  // namespace lpcd::submodules
