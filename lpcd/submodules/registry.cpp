#include <array>

#include "lpcd/submodules/coupled.h"
#include "lpcd/submodules/submodule.h"

namespace lpcd::submodules {

using arch::Role;

// The two lists to extend.

std::span<const Submodule* const> lpcd_submodules() {
  static const std::array<const Submodule*, 1> kAll = {&residual_submodule()};
  return kAll;
}

std::span<const CoupledInfo> coupled_submodules() {
  static const std::array<CoupledInfo, 4> kAll = {
      CoupledInfo{.name = "qk",
                  .half = Half::kAttention,
                  .relaxed = {Role::kQ, Role::kK},
                  .closing = {},
                  .owns_closing = false,
                  .make = &make_query_key,
                  .make_reference = &make_reference_query_key},
      CoupledInfo{.name = "vo",
                  .half = Half::kAttention,
                  .relaxed = {Role::kV},
                  .closing = Role::kO,
                  .owns_closing = true,
                  .make = &make_value_output,
                  .make_reference = &make_value_output},
      CoupledInfo{.name = "gate",
                  .half = Half::kFfn,
                  .relaxed = {Role::kGate},
                  .closing = Role::kDown,
                  .owns_closing = false,
                  .make = &make_feed_forward,
                  .make_reference = nullptr},
      CoupledInfo{.name = "ud",
                  .half = Half::kFfn,
                  .relaxed = {Role::kUp},
                  .closing = Role::kDown,
                  .owns_closing = true,
                  .make = &make_feed_forward,
                  .make_reference = &make_feed_forward},
  };
  return kAll;
}

}  // namespace lpcd::submodules
