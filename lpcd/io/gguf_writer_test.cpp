#include "lpcd/io/gguf_writer.h"

#include <gtest/gtest.h>

#include "lpcd/base/error.h"
#include "lpcd/io/gguf.h"
#include "tests/support/errors.h"
#include "tests/support/paths.h"

namespace lpcd::io {
namespace {

using lpcd::testing::expect_error;
using lpcd::testing::TemporaryDirectory;

TensorProducer producer(const std::string& name, DType type, std::vector<int64_t> shape) {
  TensorInfo info{name, type, std::move(shape)};
  std::vector<std::byte> bytes(static_cast<size_t>(info.bytes()));
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7 + name.size());
  return {info, [bytes] { return bytes; }};
}

GgufMetadata some_metadata() {
  GgufMetadata m;
  m.set_string("general.architecture", "llama");
  m.set_u32("llama.block_count", 30);
  m.set_f32("llama.rope.freq_base", 10000.0);
  m.set_bool("tokenizer.ggml.add_bos_token", false);
  const std::vector<std::string> tokens = {"a", "", "\u0120b"};
  m.set_strings("tokenizer.ggml.tokens", tokens);
  const std::vector<int64_t> types = {1, 3, -1};
  m.set_i32s("tokenizer.ggml.token_type", types);
  const std::vector<double> scores = {0.5, -2.0};
  m.set_f32s("tokenizer.ggml.scores", scores);
  return m;
}

TEST(GgufWriter, WhatIsWrittenIsReadBack) {
  const TemporaryDirectory dir;
  const std::string path = dir / "m.gguf";
  std::vector<TensorProducer> tensors = {producer("odd", DType::kF16, {3}),
                                         producer("blocks", DType::kQ4_K, {2, 512}),
                                         producer("matrix", DType::kF32, {5, 3})};
  const auto expected = tensors;
  const GgufSizes sizes = gguf_sizes(some_metadata(), tensors);
  PendingFiles pending;
  write_gguf(path, some_metadata(), std::move(tensors), pending);
  EXPECT_EQ(pending.total_bytes(), sizes.file);
  pending.commit();
  const GgufFile file(path);
  EXPECT_EQ(file.string_at("general.architecture"), "llama");
  EXPECT_EQ(file.int_at("llama.block_count"), 30);
  EXPECT_EQ(file.number_at("llama.rope.freq_base"), 10000.0);
  EXPECT_FALSE(file.bool_or("tokenizer.ggml.add_bos_token", true));
  EXPECT_EQ(std::get<std::vector<std::string>>(*file.find_key("tokenizer.ggml.tokens"))[2],
            "\u0120b");
  EXPECT_EQ(std::get<std::vector<int64_t>>(*file.find_key("tokenizer.ggml.token_type"))[2], -1);
  EXPECT_EQ(std::get<std::vector<double>>(*file.find_key("tokenizer.ggml.scores"))[1], -2.0);
  for (const TensorProducer& t : expected) {
    EXPECT_EQ(file.at(t.info.name).shape, t.info.shape);
    EXPECT_EQ(file.at(t.info.name).dtype, t.info.dtype);
    const auto raw = file.raw(t.info.name);
    EXPECT_EQ(std::vector(raw.begin(), raw.end()), t.bytes());
  }
}

TEST(GgufWriter, ValuesAreCarriedOverWithTheirTypes) {
  const TemporaryDirectory dir;
  PendingFiles pending;
  write_gguf(dir / "a.gguf", some_metadata(), {producer("t", DType::kF32, {2})}, pending);
  pending.commit();
  const GgufFile a(dir / "a.gguf");
  GgufMetadata copy;
  for (const auto& [key, value] : a.metadata()) copy.set_raw(key, a.raw_value(key));
  EXPECT_EQ(copy.values(), some_metadata().values());
  EXPECT_TRUE(a.raw_value("no.such.key").empty());
}

TEST(GgufWriter, RefusesWhatReadersWouldRefuse) {
  const TemporaryDirectory dir;
  const auto write = [&](std::vector<TensorProducer> tensors) {
    PendingFiles pending;
    write_gguf(dir / "x.gguf", {}, std::move(tensors), pending);
  };
  const auto refused = [&](std::vector<TensorProducer> tensors) {
    expect_error([&] { write(std::move(tensors)); }, ErrorCode::kInternal, "");
  };
  refused({producer("a", DType::kF32, {2}), producer("a", DType::kF32, {2})});
  refused({producer(std::string(64, 'n'), DType::kF32, {2})});
  refused({producer("a", DType::kF32, {1, 1, 1, 1, 2})});
  refused({producer("a", DType::kU8, {2})});
  refused({{{"a", DType::kF32, {2}}, [] { return std::vector<std::byte>(4); }}});
  EXPECT_EQ(dir.entries(), std::vector<std::string>{});
}

}  // namespace
}  // namespace lpcd::io
