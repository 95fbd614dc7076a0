#include "tests/support/paths.h"

#include <stdlib.h>  // NOLINT(modernize-deprecated-headers): mkdtemp is POSIX

#include <algorithm>
#include <stdexcept>

namespace lpcd::testing {

namespace fs = std::filesystem;

std::optional<std::string> shared_dir() {
  const char* const chosen = std::getenv("LPCD_SHARED_DIR");
  const fs::path path = chosen != nullptr ? chosen : fs::path(LPCD_SOURCE_DIR) / ".." / "shared";
  if (!fs::is_directory(path)) return std::nullopt;
  return fs::canonical(path).string();
}

std::vector<std::string> test_model_files(std::string_view extension) {
  std::vector<std::string> files;
  const char* const folder = std::getenv("LPCD_TEST_MODELS");
  if (folder == nullptr || !fs::is_directory(folder)) return files;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() == extension) files.push_back(entry.path().string());
  }
  std::ranges::sort(files);
  return files;
}

TemporaryDirectory::TemporaryDirectory() {
  std::string name = (fs::temp_directory_path() / "lpcd-test-XXXXXX").string();
  if (::mkdtemp(name.data()) == nullptr) throw std::runtime_error("cannot create " + name);
  path_ = name;
}

TemporaryDirectory::~TemporaryDirectory() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::vector<std::string> TemporaryDirectory::entries() const {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(path_)) {
    names.push_back(entry.path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

}  // namespace lpcd::testing
