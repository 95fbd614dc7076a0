#include "lpcd/text/model_file.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "lpcd/io/file.h"
#include "lpcd/text/gguf_export.h"
#include "lpcd/text/tokenizer.h"
#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace lpcd::text {
namespace {

namespace fs = std::filesystem;
using lpcd::testing::TemporaryDirectory;

constexpr std::string_view kLeadsOut = "is a link that leads out of the directory";

TEST(ModelFile, LinksStayInTheDirectory) {
  const TemporaryDirectory dir;
  const std::string model = dir / "model";
  io::make_directories(model + "/files");
  io::write_file(model + "/files/real", "text");
  io::write_file(dir / "secret", "key");
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
  io::make_directories(cache + "/blobs");
  io::make_directories(cache + "/snapshots/0123");
  io::make_directories(dir / "local");
  io::write_file(cache + "/blobs/f00d", "text");
  io::write_file(cache + "/secret", "key");
  fs::create_symlink("../../blobs/f00d", cache + "/snapshots/0123/README.md");
  fs::create_symlink("../models--a--b/blobs/f00d", dir / "local/README.md");
  fs::create_symlink("../../secret", cache + "/snapshots/0123/merges.txt");
  EXPECT_TRUE(has_model_file(cache + "/snapshots/0123", "README.md"));
  EXPECT_TRUE(has_model_file(dir / "local", "README.md"));
  lpcd::testing::expect_error(
      [&] { (void)has_model_file(cache + "/snapshots/0123", "merges.txt"); }, ErrorCode::kBadFile,
      kLeadsOut);
}

TEST(ModelFile, TokenizersAreNotReadThroughSuchLinks) {
  const TemporaryDirectory dir;
  io::make_directories(dir / "model");
  const auto refused = [&](std::string_view name, std::string_view text) {
    const std::string link = (dir / "model/") + std::string(name);
    io::write_file(dir / "outside", text);
    fs::create_symlink("../outside", link);
    lpcd::testing::expect_error([&] { (void)export_vocabulary(dir / "model", 3); },
                                ErrorCode::kBadFile, kLeadsOut);
    if (!name.starts_with("chat")) {
      lpcd::testing::expect_error([&] { (void)Tokenizer::from_directory(dir / "model"); },
                                  ErrorCode::kBadFile, kLeadsOut);
    }
    fs::remove(link);
  };
  const std::string json =
      R"({"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}})";
  refused("tokenizer.json", json);
  io::write_file(dir / "model/tokenizer.json", json);
  for (const char* name : {"tokenizer_config.json", "generation_config.json", "chat_template.jinja",
                           "chat_template.json"}) {
    refused(name, "{}");
  }
  EXPECT_TRUE(export_vocabulary(dir / "model", 3));
}

}  // namespace
}  // namespace lpcd::text
