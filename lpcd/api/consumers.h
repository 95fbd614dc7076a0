#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lpcd/format/output_format.h"
#include "lpcd/pipeline/plan.h"

namespace lpcd::api {

/// Programs whose limits are known: --for.
[[nodiscard]] const std::vector<std::string_view>& consumers();

/// kBadOption, with the format that would do, if a consumer does not load what the plan makes.
/// docs/formats.md says where each limit was read.
void check_consumer(const std::string& consumer, const arch::Model& model,
                    const pipeline::Plan& plan,
                    const std::vector<std::unique_ptr<format::OutputFormat>>& formats);

}  // namespace lpcd::api
