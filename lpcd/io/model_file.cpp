#include "lpcd/io/model_file.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "lpcd/base/raise.h"
#include "lpcd/io/system_error.h"

namespace lpcd::io {
namespace {

namespace fs = std::filesystem;

bool is_below(const fs::path& path, const fs::path& root) {
  return std::mismatch(root.begin(), root.end(), path.begin(), path.end()).first == root.end();
}

bool is_blob_of_cache(const fs::path& target, const fs::path& root) {
  const fs::path blobs = target.parent_path();
  if (blobs.filename() == "blobs" &&
      blobs.parent_path().filename().string().starts_with("models--")) {
    return true;
  }
  const fs::path snapshots = root.parent_path();
  return snapshots.filename() == "snapshots" && is_below(target, snapshots.parent_path() / "blobs");
}

// Empty if there is nothing.
fs::path with_links_resolved(const fs::path& path) {
  std::error_code error;
  fs::path target = fs::canonical(path, error);
  if (!error) return target;
  if (error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory) {
    raise_read_error(path.string(), "open", error.value());
  }
  return {};
}

}  // namespace

std::optional<std::string> resolve_model_file(const std::string& directory, std::string_view name) {
  const fs::path root = with_links_resolved(directory);
  const fs::path path = fs::path(directory) / name;
  const fs::path target = with_links_resolved(path);
  if (target.empty()) return std::nullopt;
  if (!is_below(target, root) && !is_blob_of_cache(target, root)) {
    raise(ErrorCode::kBadFile,
          "{}: is a link that leads out of the directory, to {}; put a copy in its place",
          path.string(), target.string());
  }
  return target.string();
}

bool has_model_file(const std::string& directory, std::string_view name) {
  return resolve_model_file(directory, name).has_value();
}

}  // namespace lpcd::io
