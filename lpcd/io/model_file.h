#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace lpcd::io {

/// A file of a model directory, in it or in a folder of it: the path with all links resolved.
/// Nothing if there is no such file, or a link to nowhere.
///
/// What is read of a model ends up in outputs that are passed on, so a link that leads out of the
/// directory is refused, except into the blobs of a Hugging Face cache: MODEL/snapshots/REVISION
/// links to MODEL/blobs, directories that huggingface-cli filled before its version 0.23 to
/// models--OWNER--NAME/blobs wherever the cache is.
/// Errors    kBadFile for such a link, kReadFailed where it cannot be followed.
[[nodiscard]] std::optional<std::string> resolve_model_file(const std::string& directory,
                                                            std::string_view name);

/// True if there is such a file.   Errors as above.
[[nodiscard]] bool has_model_file(const std::string& directory, std::string_view name);

}  // namespace lpcd::io
