#include "lpcd/io/safetensors.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <optional>
#include <vector>

#include "lpcd/base/json.h"
#include "lpcd/io/safetensors_header.h"
#include "tests/support/errors.h"
#include "tests/support/mutate.h"
#include "tests/support/paths.h"
#include "tests/support/tensor_sources.h"

namespace lpcd::io {
namespace {

namespace fs = std::filesystem;
using testing::BadFile;
using testing::expect_error;
using testing::kBad;
using testing::put_file;
using testing::TemporaryDirectory;
using testing::use;

std::string with_length(const std::string& header) {
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), 8) + header;
}

/// A file with that header and so many bytes of data (0, 1, 2, ...).
std::string file_of(const std::string& header, size_t data_bytes) {
  std::string file = with_length(header);
  for (size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return file;
}

std::string entry(std::string_view name, std::string_view dtype, std::string_view shape,
                  std::string_view offsets) {
  return fmt::format(R"("{}":{{"dtype":"{}","shape":{},"data_offsets":{}}})", name, dtype, shape,
                     offsets);
}

std::string object(const std::vector<std::string>& members) {
  return fmt::format("{{{}}}", fmt::join(members, ","));
}

/// w F32 [2, 2] and b U8 [4].
std::string good_header() {
  return object({entry("w", "F32", "[2,2]", "[0,16]"), entry("b", "U8", "[4]", "[16,20]")});
}

std::string replaced(std::string text, const std::string& old, const std::string& with) {
  const size_t at = text.find(old);
  EXPECT_NE(at, std::string::npos) << old;
  return text.replace(at, old.size(), with);
}

TEST(Safetensors, ReadsEveryDtypeAtAnyAlignment) {
  const TemporaryDirectory dir;
  std::string file = with_length(
      object({entry("f16", "F16", "[1]", "[0,2]"), entry("bf16", "BF16", "[]", "[2,4]"),
              entry("f32", "F32", "[2]", "[4,12]"), entry("f64", "F64", "[1,1]", "[12,20]"),
              entry("i32", "I32", "[1]", "[20,24]"), entry("none", "F32", "[0,7]", "[24,24]"),
              R"("__metadata__":{"format":"pt"})"}) +
      "   ");
  EXPECT_NE(file.size() % 4, 0U);
  file += std::string("\x00\x3C\x00\xC0", 4);
  for (const float value : {1.25F, -3.0F}) file.append(reinterpret_cast<const char*>(&value), 4);
  const double wide = 0.5;
  file.append(reinterpret_cast<const char*>(&wide), 8);
  file += std::string("\x2A\x00\x00\x00", 4);
  put_file(dir / "x.safetensors", file);

  const auto source = open_safetensors(dir / "x.safetensors");
  const auto read = [&](std::string_view name) {
    std::vector<float> values(static_cast<size_t>(source->at(name).elements()));
    source->read_f32(name, values);
    return values;
  };
  EXPECT_EQ(read("f16"), std::vector<float>{1.0F});
  EXPECT_EQ(read("bf16"), std::vector<float>{-2.0F});
  EXPECT_EQ(read("f32"), (std::vector<float>{1.25F, -3.0F}));
  EXPECT_EQ(read("f64"), std::vector<float>{0.5F});
  EXPECT_TRUE(read("none").empty());
  EXPECT_EQ(source->at("none").shape, (std::vector<int64_t>{0, 7}));
  EXPECT_TRUE(source->at("bf16").shape.empty());
  EXPECT_EQ(static_cast<int>(source->raw("i32")[0]), 42);
  EXPECT_EQ(source->location("i32"), "x.safetensors");
  expect_error([&] { (void)read("i32"); }, ErrorCode::kUnsupportedModel,
               "x.safetensors: i32: holds integers (I32)");
  expect_error([&] { (void)source->raw("w"); }, ErrorCode::kMissingTensor,
               dir / "x.safetensors" + ": no tensor \"w\"");
  use(*source);
}

std::vector<BadFile> bad_files() {
  const std::string good = good_header();
  const auto edited = [&](const char* old, const std::string& with) {
    return file_of(replaced(good, old, with), 20);
  };
  const auto length = [](uint64_t n) { return std::string(reinterpret_cast<const char*>(&n), 8); };
  constexpr const char* kSize = "size out of range";
  return {
      // header length
      {"too short", "1234567", kBad, "7 bytes are too few"},
      {"length 0", length(0) + good, kBad, "does not begin with \"{\""},
      {"length beyond the file", length(good.size() + 21) + good + std::string(20, 0), kBad,
       "goes beyond the end of the file"},
      {"length at the end of the file", length(9) + "{}", kBad, "goes beyond the end of the file"},
      {"length above the cap", length(100'000'001) + good, kBad, "above the limit of 100000000"},
      {"length 2^63", length(1ULL << 63) + good, kBad, "above the limit"},
      {"length 2^64 - 1", length(~0ULL) + good, kBad, "above the limit"},
      {"length cuts the header", length(good.size() - 1) + good, kBad, "header: not valid JSON"},
      {"text file", "import torch\nprint(1)\n", kBad, "above the limit"},
      // header text
      {"not UTF-8", edited("\"w\"", "\"\xff\""), kBad, "header: not valid JSON"},
      {"blank before the brace", file_of(fmt::format(" {}", good), 20), kBad,
       "does not begin with"},
      {"array", file_of(fmt::format("[{}]", good), 20), kBad, "does not begin with"},
      {"NUL padding", file_of(good + std::string(4, '\0'), 20), kBad, "NUL byte"},
      {"trailing junk", file_of(good + "x", 20), kBad, "header: not valid JSON"},
      {"two objects", file_of(good + "{}", 20), kBad, "header: not valid JSON"},
      {"deep nesting", file_of(fmt::format("{{\"a\":{:[>5000}", ""), 20), kBad, "nested deeper"},
      // keys
      {"duplicate tensor", edited("\"b\"", "\"w\""), kBad, "key \"w\" appears twice"},
      {"duplicate, escaped", edited("\"b\"", "\"\\u0077\""), kBad, "key \"w\" appears twice"},
      {"duplicate metadata", edited("\"w\"", R"("__metadata__":{},"__metadata__":{},"w")"), kBad,
       "key \"__metadata__\" appears twice"},
      {"duplicate field", edited("\"shape\"", R"("dtype":"F32","shape")"), kBad,
       "key \"dtype\" appears twice"},
      {"metadata number", edited("\"w\"", R"("__metadata__":{"a":1},"w")"), kBad,
       "__metadata__: \"a\" must be a string"},
      {"metadata null value", edited("\"w\"", R"("__metadata__":{"a":null},"w")"), kBad,
       "__metadata__: \"a\" must be a string"},
      {"metadata text", edited("\"w\"", R"("__metadata__":"pt","w")"), kBad,
       "__metadata__ must be an object"},
      {"control character in a name", edited("\"w\"", "\"\\u001b[2J\""), kBad,
       "is not printable UTF-8"},
      {"endless name", edited("\"w\"", fmt::format("\"{:w>2000}\"", "")), kBad,
       "tensor name of 2000 bytes"},
      // fields
      {"tensor as array", file_of(R"({"w":["F32",[2,2],[0,16]]})", 16), kBad,
       "tensor \"w\": must be a JSON object"},
      {"no dtype", edited(R"("dtype":"F32",)", ""), kBad, "tensor \"w\": missing \"dtype\""},
      {"no shape", edited(R"("shape":[2,2],)", ""), kBad, "tensor \"w\": missing \"shape\""},
      {"no offsets", edited(R"(,"data_offsets":[0,16])", ""), kBad,
       "tensor \"w\": missing \"data_offsets\""},
      {"dtype number", edited("\"F32\"", "7"), kBad, "dtype must be a string"},
      {"dtype unknown", edited("F32", "F33"), kBad, "unknown dtype \"F33\""},
      {"dtype lower case", edited("F32", "f32"), kBad, "unknown dtype \"f32\""},
      {"dtype of ggml", edited("F32", "Q4_0"), kBad, "unknown dtype \"Q4_0\""},
      {"dtype FP8", edited("U8", "F8_E4M3"), ErrorCode::kUnsupportedModel,
       "tensor \"b\": dtype F8_E4M3 is not supported; use a checkpoint in BF16"},
      {"dtype below a byte", edited("U8", "F4"), ErrorCode::kUnsupportedModel,
       "dtype F4 is not supported"},
      {"shape object", edited("[2,2]", "{\"a\":2}"), kBad, "shape must be an array"},
      {"shape negative", edited("[2,2]", "[-2,-2]"), kBad, "shape must hold integers >= 0"},
      {"shape float", edited("[2,2]", "[2.0,2]"), kBad, "shape must hold integers >= 0"},
      {"shape 4e0", edited("[2,2]", "[4e0]"), kBad, "shape must hold integers >= 0"},
      {"shape text", edited("[2,2]", R"(["2",2])"), kBad, "found \"\"2\"\""},
      {"shape 2^63", edited("[2,2]", "[9223372036854775808]"), kBad, kSize},
      {"shape 2^64", edited("[2,2]", "[18446744073709551616]"), kBad, "must hold integers >= 0"},
      {"shape product wraps to 4", edited("[2,2]", "[4294967296,4294967296,4]"), kBad, kSize},
      {"shape times dtype wraps", edited("[2,2]", "[2305843009213693956]"), kBad, kSize},
      {"rank 65",
       edited("[2,2]", fmt::format("[4{}]", fmt::join(std::vector<std::string>(64, ",1"), ""))),
       kBad, "shape has 65 dimensions"},
      {"shape too large for the data", edited("[2,2]", "[2,3]"), kBad,
       "hold 16 bytes, but shape [2, 3] of F32 takes 24"},
      {"dtype too small for the data", edited("F32", "F16"), kBad, "of F16 takes 8"},
      // offsets
      {"offsets of three", edited("[0,16]", "[0,8,16]"), kBad, "must be [begin, end]"},
      {"offsets negative", edited("[0,16]", "[-16,0]"), kBad, "data_offsets must hold integers"},
      {"offsets float", edited("[0,16]", "[0.0,16]"), kBad, "data_offsets must hold integers"},
      {"offsets 1e1", edited("[0,16]", "[0,1.6e1]"), kBad, "data_offsets must hold integers"},
      {"offsets above 2^53", edited("[16,20]", "[9007199254740993,9007199254740997]"), kBad,
       "begin at 9007199254740993 and leave a hole"},
      {"offsets at 2^64", edited("[0,16]", "[18446744073709551600,18446744073709551615]"), kBad,
       "hold 15 bytes"},
      {"offsets reversed", edited("[0,16]", "[16,0]"), kBad, "[16, 0] are reversed"},
      {"offsets overlap", edited("[16,20]", "[12,16]"), kBad, "overlap a tensor that ends at 16"},
      {"offsets alias",
       file_of(object({entry("a", "U8", "[4]", "[0,4]"), entry("b", "U8", "[4]", "[0,4]")}), 4),
       kBad, "overlap"},
      {"hole at the begin", file_of(object({entry("a", "U8", "[4]", "[4,8]")}), 8), kBad,
       "leave a hole after byte 0"},
      {"hole between", edited("[16,20]", "[20,24]"), kBad, "leave a hole after byte 16"},
      {"truncated data", file_of(good, 19), kBad,
       "tensor \"b\" ends at byte 20 of the data, but the file has only 19"},
      {"no data", file_of(good, 0), kBad, "the download is incomplete"},
      {"trailing bytes", file_of(good, 21), kBad, "1 bytes follow the last tensor"},
      {"data without tensors", file_of("{}", 3), kBad, "3 bytes follow the last tensor"},
  };
}

TEST(Safetensors, RefusesMalformedFiles) {
  const TemporaryDirectory dir;
  const std::string path = dir / "bad.safetensors";
  for (const BadFile& bad : bad_files()) {
    SCOPED_TRACE(bad.name);
    put_file(path, bad.bytes);
    expect_error([&] { (void)open_safetensors(path); }, bad.code, bad.part);
    expect_error([&] { (void)open_safetensors(path); }, bad.code, "bad.safetensors: ");
  }
}

TEST(Safetensors, AcceptsWhatOnlyLooksOdd) {
  const TemporaryDirectory dir;
  const std::string path = dir / "odd.safetensors";
  const std::string good = good_header();
  for (const std::string& header :
       {good, good + "     ", good + "\n\t ", replaced(good, "\"w\"", R"("__metadata__":null,"w")"),
        replaced(good, "\"w\"", R"("__metadata__":{},"w")"),
        replaced(good, "\"shape\"", R"("note":{"deep":[1]},"shape")"),
        object({entry("b", "U8", "[4]", "[16,20]"), entry("w", "F32", "[2,2]", "[0,16]")})}) {
    put_file(path, file_of(header, 20));
    EXPECT_EQ(open_safetensors(path)->tensors().size(), 2U) << header;
  }
  put_file(path, file_of("{}", 0));
  EXPECT_TRUE(open_safetensors(path)->tensors().empty());
  expect_error([&] { (void)open_safetensors(dir.path()); }, ErrorCode::kReadFailed, "directory");
}

// ---- directories -------------------------------------------------------------------------------

constexpr const char* kFirst = "model-00001-of-00002.safetensors";
constexpr const char* kSecond = "model-00002-of-00002.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

std::string shard_with(const std::string& name) {
  return file_of(object({entry(name, "U8", "[2]", "[0,2]")}), 2);
}

using WeightMap = std::map<std::string, std::string>;

std::string index_of(const WeightMap& map) {
  return dump_json({{"metadata", {{"total_size", 4}}}, {"weight_map", map}}, 2);
}

/// A directory with "a" in the first shard and "b" in the second.
void make_sharded(const TemporaryDirectory& dir) {
  put_file(dir / kFirst, shard_with("a"));
  put_file(dir / kSecond, shard_with("b"));
  put_file(dir / kIndex, index_of({{"a", kFirst}, {"b", kSecond}}));
}

TEST(SafetensorsDirectory, FindsTheFilesInEveryLayout) {
  const TemporaryDirectory dir;
  expect_error([&] { (void)open_safetensors_directory(dir.path()); }, ErrorCode::kFileNotFound,
               "no model.safetensors and no other .safetensors file");
  put_file(dir / "weights.safetensors", shard_with("only"));
  put_file(dir / ".hidden.safetensors", "no file");
  EXPECT_EQ(open_safetensors_directory(dir.path())->location("only"), "weights.safetensors");
  put_file(dir / "other.safetensors", shard_with("only"));
  expect_error([&] { (void)open_safetensors_directory(dir.path()); }, ErrorCode::kBadModel,
               "2 .safetensors files (other.safetensors and weights.safetensors) without "
               "model.safetensors.index.json");
  put_file(dir / "model.safetensors", shard_with("single"));
  EXPECT_EQ(open_safetensors_directory(dir.path())->location("single"), "model.safetensors");
  // An index goes first; files that it does not name are none of our business.
  put_file(dir / kIndex, index_of({{"single", "model.safetensors"}}));
  EXPECT_EQ(open_safetensors_directory(dir.path() + "/")->tensors().size(), 1U);
  make_sharded(dir);
  expect_error([&] { (void)open_safetensors_directory(dir.path()); }, ErrorCode::kBadModel,
               "holds model.safetensors and an index of other files");
  fs::remove(dir / "model.safetensors");
  const auto source = open_safetensors_directory(dir.path());
  EXPECT_EQ(source->tensors().size(), 2U);
  EXPECT_EQ(source->location("b"), kSecond);
  use(*source);
  expect_error([&] { (void)open_safetensors_directory(dir / "gone"); }, ErrorCode::kFileNotFound,
               "gone");
  expect_error([&] { (void)open_safetensors_directory(dir / kIndex); }, ErrorCode::kReadFailed,
               "is not a directory");
}

struct BadIndex {
  const char* name;
  std::string index;
  ErrorCode code;
  const char* part;
};

std::vector<BadIndex> bad_indices() {
  const auto naming = [](const char* shard) { return index_of({{"a", kFirst}, {"b", shard}}); };
  constexpr const char* kNotPlain = "is not the plain name of a .safetensors file";
  return {
      {"empty", "", kBad, "index.json: not valid JSON"},
      {"not JSON", "{", kBad, "index.json: not valid JSON"},
      {"array", "[]", kBad, "must be a JSON object"},
      {"no map", "{}", kBad, "missing \"weight_map\""},
      {"map as text", R"({"weight_map":"a"})", kBad, "weight_map must be an object"},
      {"map as array", R"({"weight_map":["a"]})", kBad, "weight_map must be an object"},
      {"empty map", R"({"weight_map":{}})", kBad, "weight_map is empty"},
      {"number for a file", R"({"weight_map":{"a":1}})", kBad,
       "weight_map: \"a\" must be a file name, found \"1\""},
      {"duplicate tensor", R"({"weight_map":{"a":"x.safetensors","a":"y.safetensors"}})", kBad,
       "key \"a\" appears twice"},
      {"deep", fmt::format("{{\"weight_map\":{:[>100}", ""), kBad, "nested deeper"},
      {"parent", naming("../up.safetensors"), kBad, kNotPlain},
      {"parent inside", naming("x/../model-00002-of-00002.safetensors"), kBad, kNotPlain},
      {"absolute", naming("/etc/shadow.safetensors"), kBad, kNotPlain},
      {"folder", naming("sub/b.safetensors"), kBad, kNotPlain},
      {"backslash", naming("..\\b.safetensors"), kBad, kNotPlain},
      {"drive", naming("C:b.safetensors"), kBad, kNotPlain},
      {"other extension", naming("config.json"), kBad, kNotPlain},
      {"nothing", naming(""), kBad, kNotPlain},
      {"dots", naming(".."), kBad, kNotPlain},
      {"control character", naming("b\n.safetensors"), kBad, "is not printable UTF-8"},
      {"long name", naming((std::string(300, 'b') + ".safetensors").c_str()), kBad,
       "shard name of 312 bytes"},
      {"missing shard", naming("model-00003-of-00003.safetensors"), ErrorCode::kFileNotFound,
       "1 of 2 shards are not there: model-00003-of-00003.safetensors"},
      {"all missing", index_of({{"a", "x.safetensors"}, {"b", "y.safetensors"}}),
       ErrorCode::kFileNotFound, "2 of 2 shards are not there: x.safetensors and y.safetensors"},
      {"tensor in no shard", index_of({{"a", kFirst}, {"b", kSecond}, {"c", kFirst}}),
       ErrorCode::kMissingTensor, "in no shard: \"c\" (model-00001-of-00002.safetensors)"},
      {"tensor not in the index", index_of({{"b", kSecond}, {"c", kFirst}}),
       ErrorCode::kMissingTensor, "in a shard but not in the index: \"a\" (model-00001"},
      {"tensor elsewhere", index_of({{"a", kSecond}, {"b", kFirst}}), kBad,
       "in another shard than the index says: \"a\" (model-00001-of-00002.safetensors, not "
       "model-00002"},
      {"tensor in two shards", index_of({{"a", kFirst}, {"b", "copy.safetensors"}, {"x", kSecond}}),
       ErrorCode::kMissingTensor,
       "in more than one shard: \"b\" (copy.safetensors and model-00002-of-00002.safetensors)"},
      {"link out", naming("out.safetensors"), kBad, "is a link that leads out of the directory"},
      {"link to nowhere", naming("dangling.safetensors"), ErrorCode::kFileNotFound,
       "dangling.safetensors"},
      {"link to itself", naming("loop.safetensors"), ErrorCode::kReadFailed, "loop.safetensors"},
      {"a folder as shard", naming("folder.safetensors"), ErrorCode::kReadFailed, "is a directory"},
      {"a broken shard", naming("broken.safetensors"), kBad, "broken.safetensors: 3 bytes"},
  };
}

TEST(SafetensorsDirectory, RefusesBadIndices) {
  const TemporaryDirectory outside;
  put_file(outside / "b.safetensors", shard_with("b"));
  const TemporaryDirectory dir;
  make_sharded(dir);
  put_file(dir / "copy.safetensors", shard_with("b"));
  put_file(dir / "broken.safetensors", "abc");
  make_directories(dir / "folder.safetensors");
  fs::create_symlink(outside / "b.safetensors", dir / "out.safetensors");
  fs::create_symlink("nowhere", dir / "dangling.safetensors");
  fs::create_symlink("loop.safetensors", dir / "loop.safetensors");
  for (const BadIndex& bad : bad_indices()) {
    SCOPED_TRACE(bad.name);
    put_file(dir / kIndex, bad.index);
    expect_error([&] { (void)open_safetensors_directory(dir.path()); }, bad.code, bad.part);
  }
}

TEST(SafetensorsDirectory, ReportsEveryMismatchAtOnce) {
  const TemporaryDirectory dir;
  make_sharded(dir);
  put_file(dir / kIndex, index_of({{"b", kSecond}, {"c", kFirst}, {"d", kSecond}}));
  expect_error([&] { (void)open_safetensors_directory(dir.path()); }, ErrorCode::kMissingTensor,
               "in no shard: \"c\" (model-00001-of-00002.safetensors) and \"d\" "
               "(model-00002-of-00002.safetensors); in a shard but not in the index: \"a\"");
}

TEST(SafetensorsDirectory, FollowsLinksInsideTheDirectoryOnly) {
  const TemporaryDirectory outside;
  put_file(outside / "model.safetensors", shard_with("a"));
  put_file(outside / kIndex, index_of({{"a", "model.safetensors"}}));
  const TemporaryDirectory dir;
  const auto opened = [&] { return open_safetensors_directory(dir.path())->tensors().size(); };

  fs::create_symlink(outside / "model.safetensors", dir / "model.safetensors");
  expect_error([&] { (void)opened(); }, ErrorCode::kBadFile, "leads out of the directory");
  fs::remove(dir / "model.safetensors");

  fs::create_symlink(outside / kIndex, dir / kIndex);
  expect_error([&] { (void)opened(); }, ErrorCode::kBadFile, "leads out of the directory");
  fs::remove(dir / kIndex);

  make_directories(dir / "files");
  put_file(dir / "files/real", shard_with("a"));
  fs::create_symlink("files/real", dir / "model.safetensors");
  EXPECT_EQ(opened(), 1U);

  // The directory itself may be a link.
  fs::create_directory_symlink(dir.path(), outside / "here");
  EXPECT_EQ(open_safetensors_directory(outside / "here")->tensors().size(), 1U);
}

TEST(SafetensorsDirectory, ReadsSnapshotsOfTheHuggingFaceCache) {
  const TemporaryDirectory cache;
  make_directories(cache / "models--a--b/blobs");
  make_directories(cache / "models--a--b/snapshots/0123abcd");
  make_directories(cache / "models--a--b/elsewhere");
  put_file(cache / "models--a--b/blobs/f00d", shard_with("a"));
  put_file(cache / "models--a--b/elsewhere/f00d", shard_with("a"));
  const std::string snapshot = cache / "models--a--b/snapshots/0123abcd";
  const std::string model = snapshot + "/model.safetensors";
  fs::create_symlink("../../blobs/f00d", model);
  const auto source = open_safetensors_directory(snapshot);
  EXPECT_EQ(source->location("a"), "model.safetensors");

  fs::remove(model);
  fs::create_symlink("../../elsewhere/f00d", model);
  expect_error([&] { (void)open_safetensors_directory(snapshot); }, ErrorCode::kBadFile,
               "leads out of the directory");

  // huggingface-cli download --local-dir, until its version 0.23.
  make_directories(cache / "elsewhere");
  const std::string local = cache / "elsewhere/model.safetensors";
  fs::create_symlink("../models--a--b/blobs/f00d", local);
  EXPECT_EQ(open_safetensors_directory(cache / "elsewhere")->location("a"), "model.safetensors");
  // Only blobs of a cache have that right.
  make_directories(cache / "models/blobs");
  put_file(cache / "models/blobs/f00d", shard_with("a"));
  fs::remove(local);
  fs::create_symlink("../models/blobs/f00d", local);
  expect_error([&] { (void)open_safetensors_directory(cache / "elsewhere"); }, ErrorCode::kBadFile,
               "leads out of the directory");

  fs::remove(model);
  fs::create_symlink("../../blobs/lost", model);
  expect_error([&] { (void)open_safetensors_directory(snapshot); }, ErrorCode::kFileNotFound,
               "model.safetensors: no such file, or a link to nowhere");
}

// ---- damaged files, at random ------------------------------------------------------------------

constexpr int kMutations = 20'000;

/// Opens and uses; success and lpcd::Error are the only outcomes allowed.
template <typename Open>
bool survives(Open&& open) {
  try {
    use(*open());
    return true;
  } catch (const Error& error) {
    EXPECT_NE(error.code(), ErrorCode::kInternal) << error.what();
    return false;
  }
}

TEST(SafetensorsMutations, FilesAreReadOrRefused) {
  const TemporaryDirectory dir;
  const std::string good = good_header();
  const std::vector<std::string> seeds = {
      file_of(good, 20), file_of(replaced(good, "\"w\"", R"("__metadata__":{"a":"b"},"w")"), 20),
      file_of(
          object({entry("h", "F16", "[1,2,3]", "[0,12]"), entry("e", "BF16", "[0]", "[12,12]")}) +
              "   ",
          12),
      bad_files()[30].bytes};
  std::mt19937 random(20240502);
  const size_t before = testing::peak_resident_bytes();
  int accepted = 0;
  for (int i = 0; i < kMutations; ++i) {
    const std::string& seed = seeds[static_cast<size_t>(i) % seeds.size()];
    const std::string bytes = testing::mutate(seed, 24, random);
    accepted += survives([&] {
      // On the heap, where the sanitizers see each byte read too far.
      const auto view = std::as_bytes(std::span(bytes));
      const std::vector<std::byte> heap(view.begin(), view.end());
      std::vector<NamedTensor> tensors;
      for (const SafetensorsEntry& e : parse_safetensors(heap, "m")) {
        const auto data = std::span(heap).subspan(e.begin, static_cast<size_t>(e.info.bytes()));
        tensors.push_back({e.info, {data.begin(), data.end()}});
      }
      return std::make_unique<MemoryTensorSource>(std::move(tensors));
    });
    if (i % 10 == 0 && !bytes.empty()) {
      put_file(dir / "m.safetensors", bytes);
      survives([&] { return open_safetensors(dir / "m.safetensors"); });
    }
    if (HasFailure()) FAIL() << "mutation " << i;
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, kMutations / 2);
  testing::expect_modest_growth(before);
}

TEST(SafetensorsMutations, IndicesAreReadOrRefused) {
  const TemporaryDirectory dir;
  make_sharded(dir);
  const std::string seed = index_of({{"a", kFirst}, {"b", kSecond}});
  std::mt19937 random(20240503);
  const size_t before = testing::peak_resident_bytes();
  int accepted = 0;
  for (int i = 0; i < kMutations; ++i) {
    const std::string bytes = testing::mutate(seed, seed.size(), random);
    put_file(dir / kIndex, bytes);
    accepted += survives([&] { return open_safetensors_directory(dir.path()); });
    if (HasFailure()) FAIL() << "mutation " << i << ":\n" << bytes;
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, kMutations / 2);
  testing::expect_modest_growth(before);
}

// ---- real files --------------------------------------------------------------------------------

TEST(SafetensorsReal, SharedModelsAreReadAndFinite) {
  const std::optional<std::string> shared = testing::shared_dir();
  if (!shared || !fs::is_directory(*shared + "/models")) GTEST_SKIP() << "no shared models";
  int models = 0;
  for (const auto& folder : fs::directory_iterator(*shared + "/models")) {
    if (!fs::exists(folder.path() / "model.safetensors")) continue;
    SCOPED_TRACE(folder.path().string());
    const auto source = open_safetensors_directory(folder.path().string());
    EXPECT_GT(source->tensors().size(), 5U);
    for (const TensorInfo& info : source->tensors()) {
      std::vector<float> values(static_cast<size_t>(info.elements()));
      source->read_f32(info.name, values);
      check_finite(values, info.name, source->location(info.name));
    }
    ++models;
  }
  EXPECT_GT(models, 0);
}

}  // namespace
}  // namespace lpcd::io
