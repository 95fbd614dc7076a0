#include "lpcd/text/model_file.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include "lpcd/base/raise.h"
#include "lpcd/io/system_error.h"

namespace lpcd::text {
namespace {

namespace fs = std::filesystem;

bool is_below(const fs::path& path, const fs::path& root) {
  return std::mismatch(root.begin(), root.end(), path.begin(), path.end()).first == root.end();
}

// MODEL/snapshots/REVISION links to MODEL/blobs, directories that huggingface-cli filled before its
// version 0.23 to models--OWNER--NAME/blobs wherever the cache is.
bool is_blob_of_cache(const fs::path& target, const fs::path& root) {
  const fs::path blobs = target.parent_path();
  if (blobs.filename() == "blobs" &&
      blobs.parent_path().filename().string().starts_with("models--")) {
    return true;
  }
  const fs::path snapshots = root.parent_path();
  return snapshots.filename() == "snapshots" && is_below(target, snapshots.parent_path() / "blobs");
}

// The path with all links resolved; empty if there is nothing.
fs::path resolved(const fs::path& path) {
  std::error_code error;
  fs::path target = fs::canonical(path, error);
  if (!error) return target;
  if (error != std::errc::no_such_file_or_directory && error != std::errc::not_a_directory) {
    io::raise_read_error(path.string(), "open", error.value());
  }
  return {};
}

}  // namespace

bool has_model_file(const std::string& directory, std::string_view name) {
  const fs::path root = resolved(directory);
  const fs::path path = fs::path(directory) / name;
  const fs::path target = resolved(path);
  if (target.empty()) return false;
  if (!is_below(target, root) && !is_blob_of_cache(target, root)) {
    raise(ErrorCode::kBadFile,
          "{}: is a link that leads out of the directory, to {}; put a copy in its place",
          path.string(), target.string());
  }
  return true;
}

}  // namespace lpcd::text
