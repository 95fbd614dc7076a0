#include "lpcd/io/tensor_source.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "lpcd/io/names.h"
#include "lpcd/tensor/half.h"
#include "tests/support/errors.h"

namespace lpcd::io {
namespace {

using testing::expect_error;

template <typename T>
NamedTensor tensor(std::string name, DType dtype, std::vector<int64_t> shape,
                   const std::vector<T>& values) {
  NamedTensor result{{std::move(name), dtype, std::move(shape)}, {}};
  const auto bytes = std::as_bytes(std::span(values));
  result.data.assign(bytes.begin(), bytes.end());
  return result;
}

std::vector<float> read(const TensorSource& source, std::string_view name) {
  std::vector<float> values(static_cast<size_t>(source.at(name).elements()));
  source.read_f32(name, values);
  return values;
}

MemoryTensorSource sample() {
  std::vector<NamedTensor> tensors;
  tensors.push_back(tensor<float>("w.f32", DType::kF32, {2, 1}, {1.5F, -2.0F}));
  tensors.push_back(tensor<double>("b.f64", DType::kF64, {1}, {0.1}));
  tensors.push_back(tensor<uint16_t>("a.f16", DType::kF16, {3}, {0x3C00, 0x8001, 0x7C00}));
  tensors.push_back(tensor<uint16_t>("a.bf16", DType::kBF16, {}, {0xBF80}));
  tensors.push_back(tensor<int32_t>("ids", DType::kI32, {2}, {1, 2}));
  tensors.push_back(tensor<float>("empty", DType::kF32, {0, 3}, {}));
  std::vector<uint8_t> blocks(18 * 2, 0);
  blocks[1] = blocks[19] = 0x3C;  // d = 1, all codes 0: -8
  tensors.push_back(tensor<uint8_t>("q4", DType::kQ4_0, {1, 64}, blocks));
  return MemoryTensorSource(std::move(tensors));
}

TEST(TensorSource, ListsByNameAndDecodesEveryFloatType) {
  const MemoryTensorSource source = sample();
  std::vector<std::string> names;
  for (const TensorInfo& info : source.tensors()) names.push_back(info.name);
  EXPECT_EQ(names,
            (std::vector<std::string>{"a.bf16", "a.f16", "b.f64", "empty", "ids", "q4", "w.f32"}));
  EXPECT_EQ(read(source, "w.f32"), (std::vector<float>{1.5F, -2.0F}));
  EXPECT_EQ(read(source, "b.f64"), (std::vector<float>{0.1F}));
  const std::vector<float> half = read(source, "a.f16");
  EXPECT_EQ(half[0], 1.0F);
  EXPECT_EQ(half[1], -0x1.0p-24F);
  EXPECT_TRUE(std::isinf(half[2]));
  EXPECT_EQ(read(source, "a.bf16"), (std::vector<float>{-1.0F}));
  EXPECT_EQ(read(source, "q4"), std::vector<float>(64, -8.0F));
  EXPECT_TRUE(read(source, "empty").empty());
  EXPECT_EQ(source.raw("ids").size(), 8U);
  EXPECT_EQ(source.location("ids"), "memory");
  source.release("ids");
}

TEST(TensorSource, SaysWhatIsMissingOrOfTheWrongType) {
  const MemoryTensorSource source = sample();
  EXPECT_EQ(source.find("nothing"), nullptr);
  EXPECT_EQ(source.find(""), nullptr);
  expect_error([&] { (void)source.at("w"); }, ErrorCode::kMissingTensor, "memory: no tensor \"w\"");
  expect_error([&] { (void)source.raw("w"); }, ErrorCode::kMissingTensor, "\"w\"");
  expect_error([&] { (void)read(source, "ids"); }, ErrorCode::kUnsupportedModel,
               "memory: ids: holds integers (I32)");
  std::vector<float> wrong(1);
  expect_error([&] { source.read_f32("w.f32", wrong); }, ErrorCode::kInternal, "out.size()");
}

TEST(TensorSource, RefusesEqualNamesAndWrongSizes) {
  std::vector<NamedTensor> twice;
  twice.push_back(tensor<float>("w", DType::kF32, {1}, {1}));
  twice.push_back(tensor<float>("w", DType::kF32, {1}, {2}));
  expect_error([&] { MemoryTensorSource source(std::move(twice)); }, ErrorCode::kBadFile,
               "tensor \"w\" appears twice");
  std::vector<NamedTensor> small;
  small.push_back(tensor<float>("w", DType::kF32, {2}, {1}));
  expect_error([&] { MemoryTensorSource source(std::move(small)); }, ErrorCode::kShapeMismatch,
               "4 bytes given for shape [2]");
}

TEST(CheckFinite, NamesTheFirstBadElement) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  constexpr float kInf = std::numeric_limits<float>::infinity();
  std::vector<float> values(10000, std::numeric_limits<float>::max());
  values[1] = -0.0F;
  values[2] = std::numeric_limits<float>::denorm_min();
  EXPECT_NO_THROW(check_finite(values, "w", "f"));
  EXPECT_NO_THROW(check_finite({}, "w", "f"));
  for (const size_t place : {size_t{0}, size_t{4095}, size_t{4096}, size_t{9999}}) {
    std::vector<float> bad = values;
    bad[9999] = kNaN;
    bad[place] = -kInf;
    expect_error([&] { check_finite(bad, "w", "model.safetensors"); }, ErrorCode::kNonFinite,
                 "model.safetensors: w: element " + std::to_string(place) + " is Inf");
  }
  values[5] = kNaN;
  expect_error([&] { check_finite(values, "w", "f"); }, ErrorCode::kNonFinite, "element 5 is NaN");
}

TEST(Names, PrintableUtf8) {
  for (const char* good : {"", "model.layers.0", "\xC3\xBC", "\xE2\x82\xAC", "\xF0\x9F\x98\x80"}) {
    EXPECT_TRUE(is_printable_utf8(good)) << good;
  }
  for (const char* bad :
       {"a\n", "\x7F", "\x1B[2J", "\xC2\x80", "\x80", "\xC0\xAF", "\xE0\x80\x80", "\xED\xA0\x80",
        "\xF4\x90\x80\x80", "\xF8\x88\x80\x80\x80", "\xE2\x82", "\xFF"}) {
    EXPECT_FALSE(is_printable_utf8(bad)) << in_quotes(bad);
  }
  EXPECT_FALSE(is_printable_utf8(std::string_view("a\0b", 3)));
  EXPECT_EQ(in_quotes("a\n\xFF\xC3\xBC"), "\"a\\x0a\\xff\xC3\xBC\"");
  EXPECT_LT(in_quotes(std::string(1000, 'a')).size(), 110U);
}

TEST(Names, ListsAreCutShort) {
  EXPECT_EQ(listed({"a"}), "a");
  EXPECT_EQ(listed({"a", "b", "c"}), "a, b and c");
  EXPECT_EQ(listed(std::vector<std::string>(20, "x")), "x, x, x, x, x, x, x, x and 12 more");
}

}  // namespace
}  // namespace lpcd::io
