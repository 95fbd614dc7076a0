#include "lpcd/io/gguf.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "lpcd/io/gguf_header.h"
#include "lpcd/io/names.h"
#include "tests/support/errors.h"
#include "tests/support/mutate.h"
#include "tests/support/paths.h"
#include "tests/support/tensor_sources.h"

namespace lpcd::io {
namespace {

using testing::BadFile;
using testing::expect_error;
using testing::kBad;
using testing::put_file;
using testing::TemporaryDirectory;
using testing::use;

// ---- a writer of small GGUF files, right or wrong ----------------------------------------------

template <typename T>
std::string number(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

std::string text(std::string_view value) { return number<uint64_t>(value.size()).append(value); }

/// One metadata record; `type` and `value` as they stand in the file.
std::string key(std::string_view name, uint32_t type, std::string_view value) {
  return text(name).append(number(type)).append(value);
}

std::string array(uint32_t type, uint64_t count, std::string_view elements) {
  return number(type).append(number(count)).append(elements);
}

/// One tensor record; dimensions innermost first.
std::string tensor(std::string_view name, const std::vector<uint64_t>& dims, uint32_t type,
                   uint64_t offset) {
  std::string record = text(name).append(number(static_cast<uint32_t>(dims.size())));
  for (const uint64_t extent : dims) record += number(extent);
  return record.append(number(type)).append(number(offset));
}

struct File {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::vector<std::string> keys;
  std::vector<std::string> tensors;
  std::string data;
  size_t alignment = 32;
  std::optional<uint64_t> key_count;  // what the file claims; by default the truth
  std::optional<uint64_t> tensor_count;

  [[nodiscard]] std::string bytes() const {
    std::string file = magic;
    file += number(version);
    file += number<uint64_t>(tensor_count.value_or(tensors.size()));
    file += number<uint64_t>(key_count.value_or(keys.size()));
    for (const std::string& record : keys) file += record;
    for (const std::string& record : tensors) file += record;
    if (!data.empty()) file.resize((file.size() + alignment - 1) / alignment * alignment);
    return file.append(data);
  }
};

/// w F32 [2, 3] at 0 and b Q4_0 [1, 32] at 32, with a key of each value type.
File good_file() {
  File file;
  file.keys = {key("u8", 0, number<uint8_t>(200)),
               key("i8", 1, number<int8_t>(-7)),
               key("u16", 2, number<uint16_t>(60000)),
               key("i16", 3, number<int16_t>(-300)),
               key("u32", 4, number<uint32_t>(4000000000U)),
               key("i32", 5, number<int32_t>(-70000)),
               key("f32", 6, number(0.25F)),
               key("bool", 7, number<uint8_t>(1)),
               key("string", 8, text("some text")),
               key("u64", 10, number(~uint64_t{0})),
               key("i64", 11, number(std::numeric_limits<int64_t>::min())),
               key("f64", 12, number(0.1)),
               key("a.i32", 9, array(5, 2, number<int32_t>(-1) + number<int32_t>(5))),
               key("a.u8", 9, array(0, 2, "\x01\xFF")),
               key("a.f32", 9, array(6, 1, number(1.5F))),
               key("a.bool", 9, array(7, 2, std::string_view("\x00\x01", 2))),
               key("a.string", 9, array(8, 2, text("a") + text(""))),
               key("a.empty", 9, array(8, 0, ""))};
  file.tensors = {tensor("w", {3, 2}, 0, 0), tensor("b", {32, 1}, 2, 32)};
  for (const float value : {1.0F, 2.0F, 3.0F, 4.0F, 5.0F, 6.0F}) file.data += number(value);
  file.data.resize(32);
  file.data += std::string("\x00\x3C", 2) + std::string(16, '\x77');  // d = 1, codes 7: -1
  return file;
}

File with_key(const std::string& record) {
  File file = good_file();
  file.keys.push_back(record);
  return file;
}

File with_tensors(const std::vector<std::string>& records) {
  File file = good_file();
  file.tensors = records;
  return file;
}

// ---- reading -----------------------------------------------------------------------------------

TEST(Gguf, ReadsTensorsWithTheirShapesOutermostFirst) {
  const TemporaryDirectory dir;
  for (const uint32_t version : {2U, 3U}) {
    File good = good_file();
    good.version = version;
    put_file(dir / "m.gguf", good.bytes());
    const GgufFile file(dir / "m.gguf");
    ASSERT_EQ(file.tensors().size(), 2U);
    EXPECT_EQ(file.at("w").shape, (std::vector<int64_t>{2, 3}));
    EXPECT_EQ(file.at("b").dtype, DType::kQ4_0);
    std::vector<float> values(6);
    file.read_f32("w", values);
    EXPECT_EQ(values, (std::vector<float>{1, 2, 3, 4, 5, 6}));
    values.resize(32);
    file.read_f32("b", values);
    EXPECT_EQ(values, std::vector<float>(32, -1.0F));
    EXPECT_EQ(file.location("w"), "m.gguf");
    EXPECT_EQ(file.path(), dir / "m.gguf");
    expect_error([&] { (void)file.raw("x"); }, ErrorCode::kMissingTensor,
                 "m.gguf: no tensor \"x\"");
    use(file);
  }
}

TEST(Gguf, WidensMetadataAndKeepsItTyped) {
  const TemporaryDirectory dir;
  put_file(dir / "m.gguf", good_file().bytes());
  const GgufFile file(dir / "m.gguf");
  EXPECT_EQ(file.metadata().size(), 18U);
  EXPECT_EQ(file.int_at("u8"), 200);
  EXPECT_EQ(file.int_at("i8"), -7);
  EXPECT_EQ(file.int_at("u16"), 60000);
  EXPECT_EQ(file.int_at("i16"), -300);
  EXPECT_EQ(file.int_at("u32"), 4000000000);
  EXPECT_EQ(file.int_at("i32"), -70000);
  EXPECT_EQ(file.int_at("i64"), std::numeric_limits<int64_t>::min());
  EXPECT_EQ(std::get<uint64_t>(*file.find_key("u64")), ~uint64_t{0});
  EXPECT_EQ(file.number_at("f32"), 0.25);
  EXPECT_EQ(file.number_at("f64"), 0.1);
  EXPECT_EQ(file.number_at("i8"), -7.0);
  EXPECT_EQ(file.number_at("u64"), 0x1p64);
  EXPECT_TRUE(file.bool_or("bool", false));
  EXPECT_EQ(file.string_at("string"), "some text");
  const auto at = [&](std::string_view name) { return *file.find_key(name); };
  EXPECT_EQ(at("a.i32"), GgufValue(std::vector<int64_t>{-1, 5}));
  EXPECT_EQ(at("a.u8"), GgufValue(std::vector<uint64_t>{1, 255}));
  EXPECT_EQ(at("a.f32"), GgufValue(std::vector<double>{1.5}));
  EXPECT_EQ(at("a.bool"), GgufValue(std::vector<bool>{false, true}));
  EXPECT_EQ(at("a.string"), GgufValue(std::vector<std::string>{"a", ""}));
  EXPECT_EQ(at("a.empty"), GgufValue(std::vector<std::string>{}));

  EXPECT_EQ(file.find_key("none"), nullptr);
  EXPECT_EQ(file.int_or("none", 3), 3);
  EXPECT_EQ(file.number_or("none", 0.5), 0.5);
  EXPECT_TRUE(file.bool_or("none", true));
  EXPECT_EQ(file.string_or("none", "x"), "x");
}

TEST(Gguf, TypedAccessNamesTheKey) {
  const TemporaryDirectory dir;
  put_file(dir / "m.gguf", with_key(key("nan", 6, number(std::nanf("")))).bytes());
  const GgufFile file(dir / "m.gguf");
  constexpr ErrorCode kModel = ErrorCode::kBadModel;
  expect_error([&] { (void)file.int_at("none"); }, kModel, "m.gguf: missing key \"none\"");
  expect_error([&] { (void)file.number_at("none"); }, kModel, "missing key \"none\"");
  expect_error([&] { (void)file.string_at("none"); }, kModel, "missing key \"none\"");
  expect_error([&] { (void)file.int_at("string"); }, kModel, "key \"string\" must be an integer");
  expect_error([&] { (void)file.int_or("f32", 1); }, kModel, "key \"f32\" must be an integer");
  expect_error([&] { (void)file.int_at("u64"); }, kModel, "key \"u64\" must be an integer below");
  expect_error([&] { (void)file.int_at("bool"); }, kModel, "key \"bool\" must be an integer");
  expect_error([&] { (void)file.int_at("a.i32"); }, kModel, "key \"a.i32\" must be an integer");
  expect_error([&] { (void)file.number_at("nan"); }, kModel, "key \"nan\" must be a finite number");
  expect_error([&] { (void)file.number_or("bool", 1); }, kModel, "key \"bool\" must be a finite");
  expect_error([&] { (void)file.bool_or("u8", true); }, kModel, "key \"u8\" must be true or false");
  expect_error([&] { (void)file.string_or("u8", ""); }, kModel, "key \"u8\" must be a string");
}

TEST(Gguf, HonoursTheAlignment) {
  const TemporaryDirectory dir;
  for (const uint32_t alignment : {1U, 8U, 64U, 4096U}) {
    File file;
    file.keys = {key("general.alignment", 4, number(alignment))};
    file.tensors = {tensor("w", {1}, 0, 0), tensor("v", {1}, 0, 4096)};
    file.data = number(1.5F);
    file.data.resize(4096);
    file.data += number(2.5F);
    file.alignment = alignment;
    put_file(dir / "m.gguf", file.bytes());
    const GgufFile gguf(dir / "m.gguf");
    float value = 0;
    gguf.read_f32("w", {&value, 1});
    EXPECT_EQ(value, 1.5F);
    gguf.read_f32("v", {&value, 1});
    EXPECT_EQ(value, 2.5F);
  }
}

TEST(Gguf, AFileMayHoldTheVocabularyAlone) {
  const TemporaryDirectory dir;
  File file = good_file();
  file.tensors.clear();
  file.data.clear();
  put_file(dir / "m.gguf", file.bytes());
  EXPECT_TRUE(GgufFile(dir / "m.gguf").tensors().empty());
  put_file(dir / "m.gguf", File{}.bytes());
  EXPECT_TRUE(GgufFile(dir / "m.gguf").metadata().empty());
}

TEST(Gguf, IsRecognisedByItsMagic) {
  const TemporaryDirectory dir;
  put_file(dir / "m", good_file().bytes());
  put_file(dir / "short", "GGU");
  put_file(dir / "empty", "");
  EXPECT_TRUE(is_gguf_file(dir / "m"));
  EXPECT_FALSE(is_gguf_file(dir / "short"));
  EXPECT_FALSE(is_gguf_file(dir / "empty"));
  EXPECT_FALSE(is_gguf_file(dir.path()));
  expect_error([&] { (void)is_gguf_file(dir / "gone"); }, ErrorCode::kFileNotFound, "gone");
}

TEST(Gguf, ReadsALargeVocabularyInAMoment) {
  const TemporaryDirectory dir;
  constexpr int kTokens = 150'000;
  std::string tokens;
  std::string types;
  for (int i = 0; i < kTokens; ++i) {
    tokens += text(fmt::format("token{}", i));
    types += number<int32_t>(1);
  }
  File file;
  file.keys = {key("tokenizer.ggml.tokens", 9, array(8, kTokens, tokens)),
               key("tokenizer.ggml.token_type", 9, array(5, kTokens, types))};
  put_file(dir / "m.gguf", file.bytes());
  const auto begin = std::chrono::steady_clock::now();
  const GgufFile gguf(dir / "m.gguf");
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
  const auto& read = std::get<std::vector<std::string>>(*gguf.find_key("tokenizer.ggml.tokens"));
  EXPECT_EQ(read.at(kTokens - 1), "token149999");
  EXPECT_LT(elapsed.count(), 2.0);  // takes about 10 ms; generous for sanitizers and busy machines
}

// ---- malformed files ---------------------------------------------------------------------------

constexpr ErrorCode kOther = ErrorCode::kUnsupportedModel;
constexpr uint64_t kHuge = ~uint64_t{0};

std::string cut(std::string bytes, size_t size) {
  bytes.resize(size);
  return bytes;
}

std::vector<BadFile> bad_headers() {
  const auto version = [](uint32_t v) {
    File file = good_file();
    file.version = v;
    return file.bytes();
  };
  const auto counts = [](std::optional<uint64_t> keys, std::optional<uint64_t> tensors) {
    File file = good_file();
    file.key_count = keys;
    file.tensor_count = tensors;
    return file.bytes();
  };
  File magic = good_file();
  magic.magic = "FUGG";
  const std::string good = good_file().bytes();
  return {
      {"magic", magic.bytes(), kBad, "begins with \"FUGG\", not with \"GGUF\""},
      {"binary magic", cut("\x01\x02\xFF\x7F" + good, 60), kBad, "begins with \"\\x01\\x02\\xff"},
      {"three bytes", "GGU", kBad, "magic goes beyond the end of the file (3 bytes)"},
      {"no version", "GGUF", kBad, "version goes beyond the end"},
      {"version 0", version(0), kBad, "version is 0"},
      {"version 1", version(1), kOther, "version 1 of GGUF is not supported; convert"},
      {"version 4", version(4), kOther, "version 4 of GGUF is newer than 3"},
      {"version huge", version(0xFFFFFFFF), kOther, "newer than 3"},
      {"big endian 3", version(0x03000000), kOther, "is a big-endian GGUF file"},
      {"big endian 2", version(0x02000000), kOther, "is a big-endian GGUF file"},
      {"no counts", cut(good, 8), kBad, "tensor count goes beyond the end"},
      {"half a count", cut(good, 20), kBad, "key count goes beyond the end"},
      {"key count 2^64 - 1", counts(kHuge, {}), kBad, "key count is 18446744073709551615"},
      {"key count too large", counts(1000, {}), kBad,
       "key count is 1000, more than the file has room"},
      {"key count one more", counts(19, {}), kBad, "length 562949953421312 is above the limit"},
      {"key count one less", counts(17, {}), kBad, "the file is damaged"},
      {"tensor count 2^64 - 1", counts({}, kHuge), kBad, "tensor count is 18446744073709551615"},
      {"tensor count 2^63", counts({}, 1ULL << 63), kBad, "tensor count is 9223372036854775808"},
      {"tensor count too large", counts({}, 100), kBad, "tensor count is 100, more than"},
      {"tensor count one more", counts({}, 3), kBad, "tensor 3 of 3"},
      {"cut in the keys", cut(good, 100), kBad, "key count is 18, more than the file has room for"},
      {"cut in the tensors", cut(good, 540), kBad, "goes beyond the end of the file"},
      {"cut in the data", cut(good, good.size() - 1), kBad, "but the file has only"},
      {"split", with_key(key("split.count", 2, number<uint16_t>(3))).bytes(), kOther,
       "is one of 3 parts of a split model; merge them first"},
  };
}

std::vector<BadFile> bad_keys() {
  const auto only = [](const std::string& record) {
    File file;
    file.keys = {record};
    return file.bytes();
  };
  const auto alignment = [](uint32_t type, const std::string& value) {
    return with_key(key("general.alignment", type, value)).bytes();
  };
  const auto list = [&](uint32_t type, uint64_t count, std::string_view elements) {
    return only(key("list", 9, array(type, count, elements)));
  };
  const std::string zeros(64, '\0');
  return {
      {"name beyond the file", only(number<uint64_t>(1000) + zeros), kBad,
       "name of key 1 of 1 goes beyond the end"},
      {"name of 2^64 - 1 bytes", only(number(kHuge) + zeros), kBad,
       "name of key 1 of 1: length 18446744073709551615 is above the limit of 65535"},
      {"empty name", only(key("", 4, zeros)), kBad, "name of key 1 of 1 is empty"},
      {"name with a NUL", only(key(std::string_view("a\0b", 3), 4, zeros)), kBad,
       "\"a\\x00b\" is not printable UTF-8"},
      {"name not UTF-8", only(key("a\xFF", 4, zeros)), kBad, "is not printable UTF-8"},
      {"unknown type", only(key("k", 13, zeros)), kBad, "key \"k\" has the unknown value type 13"},
      {"type 2^32 - 1", only(key("k", 0xFFFFFFFF, zeros)), kBad, "unknown value type 4294967295"},
      {"no value", only(key("k", 10, "1234")), kBad, "key \"k\" goes beyond the end"},
      {"bool of 2", only(key("k", 7, "\x02")), kBad, "key \"k\" is a bool with the value 2"},
      {"string beyond the file", only(key("k", 8, number<uint64_t>(65) + zeros)), kBad,
       "key \"k\" goes beyond the end"},
      {"string of 2^64 - 1", only(key("k", 8, number(kHuge) + zeros)), kBad,
       "key \"k\": length 18446744073709551615 is above the limit of 67108864"},
      {"string of 2^63", only(key("k", 8, number(1ULL << 63) + zeros)), kBad, "above the limit"},
      {"duplicate", with_key(key("u8", 4, number<uint32_t>(1))).bytes(), kBad,
       "key \"u8\" appears twice"},
      {"array without a count", only(key("list", 9, number<uint32_t>(5) + "12345")), kBad,
       "goes beyond the end"},
      {"array of unknown type", list(99, 1, zeros), kBad, "is an array of the unknown type 99"},
      {"array of arrays", list(9, 1, zeros), kBad, "key \"list\" is an array of arrays"},
      {"array count 2^64 - 1", list(0, kHuge, zeros), kBad,
       "has 18446744073709551615 elements, at most"},
      {"array bytes wrap", list(10, 1ULL << 61, zeros), kBad, "elements, at most 16777216"},
      {"array longer than the file", list(4, 17, zeros), kBad,
       "has 17 elements, more than the file has room for"},
      {"strings without room", list(8, 9, zeros), kBad, "has 9 elements, more than"},
      {"string in an array", list(8, 2, text("a") + number<uint64_t>(50)), kBad,
       "key \"list\" goes beyond the end"},
      {"bools of 3", list(7, 2, "\x01\x03"), kBad, "is a bool with the value 3"},
      {"bools without room", list(7, 65, zeros), kBad, "has 65 elements, more than"},
      {"alignment 0", alignment(4, number<uint32_t>(0)), kBad,
       "general.alignment is 0, not a power of two"},
      {"alignment 24", alignment(4, number<uint32_t>(24)), kBad, "is 24, not a power of two"},
      {"alignment u64", alignment(10, number<uint64_t>(32)), kBad,
       "key \"general.alignment\" must be a u32, found value type 10"},
      {"alignment text", alignment(8, text("32")), kBad, "must be a u32, found value type 8"},
      {"alignment 2^31", alignment(4, number(0x80000000U)), kBad,
       "tensor \"w\" ends at byte 2147483672, but the file has only"},
  };
}

std::vector<BadFile> bad_tensors() {
  const auto one = [](const std::vector<uint64_t>& dims, uint32_t type, uint64_t offset) {
    return with_tensors({tensor("w", dims, type, offset)}).bytes();
  };
  const auto head = [](uint32_t n_dims) {
    return with_tensors({text("w") + number(n_dims) + std::string(100, '\1')}).bytes();
  };
  constexpr const char* kSize = "w: size out of range";
  return {
      {"empty name", with_tensors({tensor("", {1}, 0, 0)}).bytes(), kBad,
       "tensor 1 of 1 has no name"},
      {"name of 257 bytes", with_tensors({tensor(std::string(257, 'w'), {1}, 0, 0)}).bytes(), kBad,
       "tensor 1 of 1: length 257 is above the limit of 256"},
      {"name of 2^64 - 1", with_tensors({number(kHuge) + std::string(50, 'w')}).bytes(), kBad,
       "length 18446744073709551615 is above the limit"},
      {"name with escape", with_tensors({tensor("\x1B[2J", {1}, 0, 0)}).bytes(), kBad,
       "\"\\x1b[2J\" is not printable"},
      {"duplicate", with_tensors({tensor("w", {1}, 0, 0), tensor("w", {1}, 0, 32)}).bytes(), kBad,
       "tensor \"w\" appears twice"},
      {"5 dimensions", head(5), kBad, "tensor \"w\" has 5 dimensions, at most 4"},
      {"2^32 - 1 dimensions", head(0xFFFFFFFF), kBad, "has 4294967295 dimensions"},
      {"zero dimension", one({3, 0}, 0, 0), kBad, "has dimension 1 of size 0"},
      {"negative dimension", one({kHuge, 2}, 0, 0), kBad, "has dimension 0 of size -1"},
      {"dimension 2^63", one({1ULL << 63}, 0, 0), kBad, "dimension 0 of size -9223372036854775808"},
      {"product wraps to 0", one({1ULL << 32, 1ULL << 32}, 0, 0), kBad, kSize},
      {"product wraps to 4", one({(1ULL << 62) + 1, 4}, 24, 0), kBad, kSize},
      {"four times 2^16", one({65536, 65536, 65536, 65536}, 24, 0), kBad, kSize},
      {"bytes wrap", one({(1ULL << 61) + 1}, 28, 0), kBad, kSize},
      {"2^63 - 1 bytes", one({(1ULL << 63) - 1}, 24, 0), kBad, "but the file has only"},
      {"half a block", one({48}, 2, 0), kBad, "do not fill whole Q4_0 blocks of 32"},
      {"half a K block", one({32, 8}, 12, 0), kBad, "do not fill whole Q4_K blocks of 256"},
      {"type IQ4_XS", one({256}, 23, 0), kOther, "tensor \"w\" has type IQ4_XS, which is not"},
      {"type MXFP4", one({32}, 39, 0), kOther, "has type MXFP4"},
      {"type of old times", one({32}, 4, 0), kOther, "has type Q4_2"},
      {"type 1000", one({32}, 1000, 0), kOther, "has the unknown type 1000"},
      {"type 2^32 - 1", one({32}, 0xFFFFFFFF, 0), kOther, "has the unknown type 4294967295"},
      {"offset not aligned", one({1}, 0, 4), kBad,
       "has offset 4, not a multiple of the alignment 32"},
      {"offset beyond the file", one({1}, 0, 1024), kBad, "but the file has only"},
      {"offset 2^64 - 32", one({1}, 0, kHuge - 31), kBad,
       "tensor \"w\": offset: size out of range"},
      {"end wraps", one({(1ULL << 62) - 8}, 26, kHuge - 4095), kBad, kSize},
      {"end beyond the file", one({3, 3, 3}, 0, 0), kBad, "tensor \"w\" ends at byte"},
      {"overlap", with_tensors({tensor("w", {10}, 0, 0), tensor("v", {1}, 0, 32)}).bytes(), kBad,
       "tensor \"w\" overlaps tensor \"v\""},
      {"same place", with_tensors({tensor("w", {1}, 0, 0), tensor("v", {1}, 0, 0)}).bytes(), kBad,
       "overlaps tensor"},
      {"no room for the padding", with_tensors({tensor("w", {1}, 0, 0)}).bytes().substr(0, 400),
       kBad, "beyond the end"},
  };
}

TEST(Gguf, RefusesMalformedFiles) {
  const TemporaryDirectory dir;
  const std::string path = dir / "bad.gguf";
  for (const auto& table : {bad_headers(), bad_keys(), bad_tensors()}) {
    for (const BadFile& bad : table) {
      SCOPED_TRACE(bad.name);
      put_file(path, bad.bytes);
      expect_error([&] { GgufFile file(path); }, bad.code, bad.part);
      expect_error([&] { GgufFile file(path); }, bad.code, "bad.gguf: ");
    }
  }
  put_file(path, "");
  expect_error([&] { GgufFile file(path); }, kBad, "the file is empty");
  expect_error([&] { GgufFile file(dir.path()); }, ErrorCode::kReadFailed, "is a directory");
}

TEST(GgufMutations, FilesAreReadOrRefused) {
  const TemporaryDirectory dir;
  std::vector<std::string> seeds = {
      good_file().bytes(), with_key(key("general.alignment", 4, number<uint32_t>(16))).bytes(),
      with_tensors({tensor("w", {3, 2}, 0, 0), tensor("i", {4}, 24, 32)}).bytes()};
  File keyless = good_file();
  keyless.keys.clear();
  seeds.push_back(keyless.bytes());
  constexpr int kMutations = 20'000;
  std::mt19937 random(20240504);
  const size_t before = testing::peak_resident_bytes();
  int accepted = 0;
  for (int i = 0; i < kMutations; ++i) {
    const std::string& seed = seeds[static_cast<size_t>(i) % seeds.size()];
    const std::string bytes = testing::mutate(seed, 24, random);
    try {
      // On the heap, where the sanitizers see each byte read too far; then as a file.
      const auto view = std::as_bytes(std::span(bytes));
      const std::vector<std::byte> heap(view.begin(), view.end());
      for (const GgufTensor& t : parse_gguf(heap, "m.gguf").tensors) {
        ASSERT_LE(t.begin, heap.size());
        ASSERT_LE(static_cast<uint64_t>(t.info.bytes()), heap.size() - t.begin);
      }
      put_file(dir / "m.gguf", bytes);
      use(GgufFile(dir / "m.gguf"));
      ++accepted;
    } catch (const Error& error) {
      EXPECT_NE(error.code(), ErrorCode::kInternal) << error.what();
      EXPECT_TRUE(is_printable_utf8(error.what())) << error.what();
    }
    if (HasFailure()) FAIL() << "mutation " << i;
  }
  EXPECT_GT(accepted, kMutations / 20);
  EXPECT_LT(accepted, kMutations / 2);
  testing::expect_modest_growth(before);
}

// ---- real files --------------------------------------------------------------------------------

TEST(GgufReal, ModelsAreReadAndFinite) {
  const std::vector<std::string> files = testing::test_model_files(".gguf");
  if (files.empty()) GTEST_SKIP() << "LPCD_TEST_MODELS names no folder with *.gguf";
  for (const std::string& path : files) {
    SCOPED_TRACE(path);
    const GgufFile file(path);
    EXPECT_FALSE(file.string_at("general.architecture").empty());
    const auto* tokens =
        std::get_if<std::vector<std::string>>(file.find_key("tokenizer.ggml.tokens"));
    ASSERT_NE(tokens, nullptr);
    const TensorInfo& embedding = file.at("token_embd.weight");
    ASSERT_EQ(embedding.shape.size(), 2U);
    EXPECT_EQ(embedding.shape[0], static_cast<int64_t>(tokens->size()));
    EXPECT_EQ(embedding.shape[1],
              file.int_at(file.string_at("general.architecture") + ".embedding_length"));
    std::vector<float> values;
    for (const TensorInfo& info : file.tensors()) {
      values.resize(static_cast<size_t>(info.elements()));
      file.read_f32(info.name, values);
      check_finite(values, info.name, file.location(info.name));
      file.release(info.name);
    }
  }
}

}  // namespace
}  // namespace lpcd::io
