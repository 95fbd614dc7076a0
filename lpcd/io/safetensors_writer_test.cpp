#include <gtest/gtest.h>

#include <filesystem>
#include <limits>
#include <memory>
#include <vector>

#include "lpcd/base/json.h"
#include "lpcd/io/safetensors.h"
#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace lpcd::io {
namespace {

using testing::expect_error;
using testing::TemporaryDirectory;

constexpr uint64_t kUnlimited = std::numeric_limits<uint64_t>::max();
constexpr uint64_t kMaxText = 1 << 20;

/// A tensor whose bytes are all `fill`; notes its name in `order` when it is asked for them.
TensorProducer producer(std::string name, DType dtype, std::vector<int64_t> shape, char fill,
                        std::vector<std::string>* order = nullptr) {
  TensorInfo info{name, dtype, std::move(shape)};
  const auto bytes = static_cast<size_t>(info.bytes());
  return {std::move(info), [name, bytes, fill, order] {
            if (order != nullptr) order->push_back(name);
            return std::vector<std::byte>(bytes, static_cast<std::byte>(fill));
          }};
}

void write(const TemporaryDirectory& dir, std::vector<TensorProducer> tensors,
           uint64_t max_shard_bytes) {
  PendingFiles pending;
  write_safetensors(dir.path(), "model", std::move(tensors), max_shard_bytes, pending);
  EXPECT_GT(pending.total_bytes(), 0U);
  pending.commit();
}

TEST(SafetensorsWriter, WritesTheBytesOfTheReference) {
  const TemporaryDirectory dir;
  std::vector<std::string> order;
  write(dir,
        {producer("a", DType::kU8, {1}, 'a', &order), producer("c", DType::kF16, {}, 'c', &order),
         producer("b", DType::kF16, {2, 1}, 'b', &order),
         producer("z\"", DType::kF32, {1}, 'z', &order)},
        kUnlimited);
  // Wide types first, then by name; the header is padded to 8.
  EXPECT_EQ(order, (std::vector<std::string>{"z\"", "b", "c", "a"}));
  std::string header = R"({"__metadata__":{"format":"pt"},)"
                       R"("z\"":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                       R"("b":{"dtype":"F16","shape":[2,1],"data_offsets":[4,8]},)"
                       R"("c":{"dtype":"F16","shape":[],"data_offsets":[8,10]},)"
                       R"("a":{"dtype":"U8","shape":[1],"data_offsets":[10,11]}})";
  EXPECT_EQ(header.size(), 249U);
  const std::string expected =
      std::string("\x00\x01\0\0\0\0\0\0", 8) + header + "       " + "zzzz" + "bbbb" + "cc" + "a";
  EXPECT_EQ(read_text_file(dir / "model.safetensors", kMaxText), expected);
  EXPECT_EQ(dir.entries(), std::vector<std::string>{"model.safetensors"});
  EXPECT_EQ(open_safetensors_directory(dir.path())->tensors().size(), 4U);
}

TEST(SafetensorsWriter, SplitsGreedilyAndWritesAnIndex) {
  const TemporaryDirectory dir;
  // 4 + 4 fit; the large one goes ahead of the shard that is being filled.
  write(dir,
        {producer("a", DType::kU8, {4}, 1), producer("b", DType::kU8, {4}, 2),
         producer("c", DType::kU8, {1}, 3), producer("huge", DType::kU8, {9}, 4),
         producer("d", DType::kU8, {7}, 5), producer("e", DType::kU8, {8}, 6)},
        8);
  EXPECT_EQ(dir.entries(),
            (std::vector<std::string>{
                "model-00001-of-00004.safetensors", "model-00002-of-00004.safetensors",
                "model-00003-of-00004.safetensors", "model-00004-of-00004.safetensors",
                "model.safetensors.index.json"}));
  EXPECT_EQ(read_text_file(dir / "model.safetensors.index.json", kMaxText), R"({
  "metadata": {
    "total_size": 33
  },
  "weight_map": {
    "a": "model-00001-of-00004.safetensors",
    "b": "model-00001-of-00004.safetensors",
    "c": "model-00003-of-00004.safetensors",
    "d": "model-00003-of-00004.safetensors",
    "e": "model-00004-of-00004.safetensors",
    "huge": "model-00002-of-00004.safetensors"
  }
}
)");
  const auto source = open_safetensors_directory(dir.path());
  EXPECT_EQ(source->location("huge"), "model-00002-of-00004.safetensors");
  EXPECT_EQ(static_cast<int>(source->raw("d")[6]), 5);
}

TEST(SafetensorsWriter, OneShardHasNoIndexWhateverTheLimit) {
  for (const uint64_t limit : {uint64_t{3}, uint64_t{4}, kUnlimited}) {
    const TemporaryDirectory dir;
    write(dir, {producer("a", DType::kU8, {4}, 1)}, limit);
    EXPECT_EQ(dir.entries(), std::vector<std::string>{"model.safetensors"});
  }
  const TemporaryDirectory dir;
  write(dir, {}, 1);
  EXPECT_TRUE(open_safetensors_directory(dir.path())->tensors().empty());
}

TEST(SafetensorsWriter, NothingIsVisibleBeforeCommit) {
  const TemporaryDirectory dir;
  {
    PendingFiles pending;
    write_safetensors(dir.path(), "model",
                      {producer("a", DType::kU8, {4}, 1), producer("b", DType::kU8, {4}, 2)}, 4,
                      pending);
    for (const std::string& name : dir.entries()) EXPECT_TRUE(name.starts_with('.')) << name;
    EXPECT_EQ(dir.entries().size(), 3U);
  }
  EXPECT_TRUE(dir.entries().empty());
}

TEST(SafetensorsWriter, BugsOfTheCallerLeaveNothingBehind) {
  const TemporaryDirectory dir;
  PendingFiles pending;
  const auto attempt = [&](std::vector<TensorProducer> tensors) {
    write_safetensors(dir.path(), "model", std::move(tensors), kUnlimited, pending);
  };
  TensorProducer wrong = producer("a", DType::kF32, {2}, 1);
  wrong.bytes = [] { return std::vector<std::byte>(7); };
  expect_error([&] { attempt({wrong}); }, ErrorCode::kInternal,
               "a: 7 bytes produced for shape [2] of F32");
  expect_error(
      [&] { attempt({producer("a", DType::kU8, {1}, 1), producer("a", DType::kU8, {1}, 1)}); },
      ErrorCode::kInternal, "names.insert");
  expect_error([&] { attempt({producer("q", DType::kQ4_0, {32}, 1)}); }, ErrorCode::kInternal,
               "kOrder");
  TensorProducer failing = producer("a", DType::kU8, {1}, 1);
  failing.bytes = []() -> std::vector<std::byte> { throw Error(ErrorCode::kCancelled, "stop"); };
  expect_error([&] { attempt({failing}); }, ErrorCode::kCancelled, "stop");
  EXPECT_TRUE(dir.entries().empty());
  expect_error(
      [&] {
        write_safetensors(dir / "gone", "model", {producer("a", DType::kU8, {1}, 1)}, kUnlimited,
                          pending);
      },
      ErrorCode::kWriteFailed, "gone/model.safetensors: cannot create");
}

TEST(PendingFiles, CommitInOrderAndTakeTheOldLastFileAwayFirst) {
  const TemporaryDirectory dir;
  write_file(dir / "shard", "old");
  write_file(dir / "index", "old");
  make_directories(dir / "blocked/x");
  PendingFiles pending;
  for (const char* name : {"shard", "blocked", "index"}) {
    AtomicFile file(dir / name);
    file.write("new");
    pending.add(std::move(file));
  }
  EXPECT_EQ(pending.total_bytes(), 9U);
  // "blocked" cannot be replaced: the shard is new, and no index vouches for the mixture.
  expect_error([&] { pending.commit(); }, ErrorCode::kWriteFailed, "blocked");
  EXPECT_EQ(read_text_file(dir / "shard", 10), "new");
  EXPECT_FALSE(std::filesystem::exists(dir / "index"));
}

TEST(PendingFiles, ASingleFileIsReplacedInOneStep) {
  const TemporaryDirectory dir;
  write_file(dir / "f", "old");
  PendingFiles pending;
  AtomicFile file(dir / "f");
  file.write("new");
  pending.add(std::move(file));
  pending.commit();
  EXPECT_EQ(read_text_file(dir / "f", 10), "new");
  pending.commit();  // nothing left
}

}  // namespace
}  // namespace lpcd::io
