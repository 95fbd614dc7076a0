#pragma once

#include <string>
#include <string_view>

namespace lpcd::text {

/// True if a model directory has that file, which may stand in a folder of it.
///
/// What is read of such files ends up in outputs that are passed on: a link that leads out of the
/// directory is refused, as it is for weights (open_safetensors_directory), with the same exception
/// for the layout of the Hugging Face cache. A link to nowhere is no file.
/// Errors    kBadFile for such a link, kReadFailed where it cannot be followed.
[[nodiscard]] bool has_model_file(const std::string& directory, std::string_view name);

}  // namespace lpcd::text
