#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace lpcd::testing {

/// The folder of shared test data (models/, golden/): LPCD_SHARED_DIR of the environment, or
/// `shared` beside the source tree. Nothing if there is none; tests that need it are then skipped.
[[nodiscard]] std::optional<std::string> shared_dir();

/// Files ending in `extension` in the folder that LPCD_TEST_MODELS of the environment names: models
/// too large to ship, for checks on real files. Sorted.
[[nodiscard]] std::vector<std::string> test_model_files(std::string_view extension);

/// A new folder below the system's temporary one, removed with all it holds in the end.
class TemporaryDirectory {
 public:
  TemporaryDirectory();
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory();

  [[nodiscard]] std::string path() const { return path_.string(); }
  /// Path of a file in it.
  [[nodiscard]] std::string operator/(std::string_view name) const {
    return (path_ / name).string();
  }
  /// Names of all entries, sorted; hidden ones too.
  [[nodiscard]] std::vector<std::string> entries() const;

 private:
  std::filesystem::path path_;
};

}  // namespace lpcd::testing
