#include "lpcd/io/model_file.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "lpcd/io/file.h"
#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace lpcd::io {
namespace {

namespace fs = std::filesystem;
using lpcd::testing::TemporaryDirectory;

constexpr std::string_view kLeadsOut = "is a link that leads out of the directory";

TEST(ModelFile, LinksStayInTheDirectory) {
  const TemporaryDirectory dir;
  const std::string model = dir / "model";
  make_directories(model + "/files");
  write_file(model + "/files/real", "text");
  write_file(dir / "secret", "key");
  fs::create_symlink("files/real", model + "/inside");
  fs::create_symlink("../secret", model + "/outside");
  fs::create_symlink("nowhere", model + "/dangling");
  fs::create_symlink("loop", model + "/loop");
  fs::create_directory_symlink("..", model + "/folder");
  EXPECT_TRUE(has_model_file(model, "inside"));
  EXPECT_TRUE(has_model_file(model, "files/real"));
  EXPECT_FALSE(has_model_file(model, "dangling"));
  EXPECT_FALSE(has_model_file(model, "absent"));
  EXPECT_FALSE(has_model_file(model, "inside/file"));
  EXPECT_FALSE(has_model_file(dir / "nowhere", "file"));
  for (const char* name : {"outside", "folder/secret"}) {
    lpcd::testing::expect_error([&] { (void)has_model_file(model, name); }, ErrorCode::kBadFile,
                                kLeadsOut);
  }
  lpcd::testing::expect_error([&] { (void)has_model_file(model, "loop"); }, ErrorCode::kReadFailed,
                              "loop");
  // The directory itself may be a link.
  fs::create_directory_symlink("model", dir / "link");
  EXPECT_TRUE(has_model_file(dir / "link", "inside"));
}

TEST(ModelFile, SnapshotsOfTheCacheLinkToItsBlobs) {
  const TemporaryDirectory dir;
  const std::string cache = dir / "models--a--b";
  make_directories(cache + "/blobs");
  make_directories(cache + "/snapshots/0123");
  make_directories(dir / "local");
  write_file(cache + "/blobs/f00d", "text");
  write_file(cache + "/secret", "key");
  fs::create_symlink("../../blobs/f00d", cache + "/snapshots/0123/README.md");
  fs::create_symlink("../models--a--b/blobs/f00d", dir / "local/README.md");
  fs::create_symlink("../../secret", cache + "/snapshots/0123/merges.txt");
  EXPECT_TRUE(has_model_file(cache + "/snapshots/0123", "README.md"));
  EXPECT_TRUE(has_model_file(dir / "local", "README.md"));
  lpcd::testing::expect_error(
      [&] { (void)has_model_file(cache + "/snapshots/0123", "merges.txt"); }, ErrorCode::kBadFile,
      kLeadsOut);
}

}  // namespace
}  // namespace lpcd::io
