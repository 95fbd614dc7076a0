#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <set>

#include "lpcd/calib/activations.h"
#include "lpcd/calib/dataset.h"
#include "lpcd/calib/self_sample.h"
#include "lpcd/calib/statistics.h"
#include "lpcd/io/file.h"
#include "lpcd/io/safetensors.h"
#include "tests/support/errors.h"
#include "tests/support/paths.h"
#include "tests/support/tiny_model.h"

namespace lpcd::calib {
namespace {

using testing::expect_error;
using testing::TemporaryDirectory;

text::Tokenizer bytes_tokenizer() {
  return text::Tokenizer::from_json(testing::byte_tokenizer_json(), "tokenizer.json");
}

TEST(ActivationStore, MemoryAndFileHoldTheSame) {
  const TemporaryDirectory dir;
  for (const std::string& where : {std::string(), dir.path()}) {
    ActivationStore store(10, 3, where);
    Mat buffer;
    for (int64_t r0 = 0; r0 < 10; r0 += 4) {
      const FloatView rows = store.target(r0, std::min<int64_t>(4, 10 - r0), buffer);
      for (int64_t r = 0; r < rows.rows(); ++r) {
        for (int64_t c = 0; c < 3; ++c) rows(r, c) = static_cast<float>(10 * (r0 + r) + c);
      }
      store.write(r0, rows);
    }
    Mat other;
    const ConstView back = store.read(3, 5, other);
    EXPECT_EQ(back(0, 0), 30.0F);
    EXPECT_EQ(back(4, 2), 72.0F);
    ActivationStore moved = std::move(store);
    EXPECT_EQ(moved.read(9, 1, other)(0, 1), 91.0F);
  }
  EXPECT_TRUE(dir.entries().empty());  // the file has no name
}

TEST(ActivationStore, SaysWhenThePlaceCannotBeWritten) {
  expect_error([] { ActivationStore(10, 3, "/proc/none"); }, ErrorCode::kWriteFailed, "/proc/none");
}

TEST(Dataset, DrawsWindowsWithoutRepeatingAndBySeed) {
  std::vector<int32_t> tokens(1000);
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i);
  const Dataset a = sample_windows(tokens, "t", {.samples = 40, .seq_len = 25, .seed = 1});
  std::set<int32_t> starts;
  for (int64_t w = 0; w < 40; ++w) {
    const int32_t start = a.ids[static_cast<size_t>(w * 25)];
    EXPECT_EQ(start % 25, 0);
    for (int64_t i = 0; i < 25; ++i) EXPECT_EQ(a.ids[static_cast<size_t>(w * 25 + i)], start + i);
    starts.insert(start);
  }
  EXPECT_EQ(starts.size(), 40U);
  EXPECT_EQ(a.ids, sample_windows(tokens, "t", {.samples = 40, .seq_len = 25, .seed = 1}).ids);
  EXPECT_NE(a.ids, sample_windows(tokens, "t", {.samples = 40, .seq_len = 25, .seed = 2}).ids);
  // The draw itself is pinned: it must be the same on every platform.
  EXPECT_EQ(a.ids[0], 200);  // MT19937-64 with seed 1 gives 2469588189546311528 first, 8 modulo 40
  EXPECT_EQ(a.ids[25], 25);
  EXPECT_EQ(a.ids[50], 850);
  EXPECT_EQ(a.sources[0].available, 1000);
  expect_error([&] { (void)sample_windows(tokens, "t", {.samples = 41, .seq_len = 25}); },
               ErrorCode::kBadText, "lower --samples to 40");
}

TEST(Dataset, ReadsTextJsonlAndIds) {
  const TemporaryDirectory dir;
  const text::Tokenizer tokenizer = bytes_tokenizer();
  const DatasetOptions two{.samples = 2, .seq_len = 4};
  io::write_file(dir / "a.txt", "abcdefgh");
  Dataset text = load_dataset(dir / "a.txt", &tokenizer, two);
  std::ranges::sort(text.ids);
  EXPECT_EQ(text.ids, (std::vector<int32_t>{'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'}));
  EXPECT_EQ(text.sources[0].name, "a.txt");

  io::write_file(dir / "a.jsonl", "{\"text\": \"abc\"}\n\n{\"text\": \"defgh\", \"id\": 1}\n");
  Dataset lines = load_dataset(dir / "a.jsonl", &tokenizer, two);
  std::ranges::sort(lines.ids);
  EXPECT_EQ(lines.ids, text.ids);
  expect_error(
      [&] {
        (void)load_dataset(dir / "a.jsonl", &tokenizer,
                           {.samples = 1, .seq_len = 2, .text_key = "body"});
      },
      ErrorCode::kBadText, "line 1: no field \"body\"");
  for (const char* name : {"a.json", "a.ndjson"}) {  // C4's own files are called .json
    std::filesystem::copy_file(dir / "a.jsonl", dir / name);
    EXPECT_EQ(load_dataset(dir / name, &tokenizer, two).hash(), lines.hash()) << name;
  }
  io::write_file(dir / "list.json", "[{\"text\": \"abc\"}]");
  expect_error([&] { (void)load_dataset(dir / "list.json", &tokenizer, two); }, ErrorCode::kBadText,
               "an object in every line");
  for (const std::string_view start : {"PAR1", "\x1f\x8b\x08", "text and then \x01"}) {
    std::string bytes(start);
    bytes.back() = bytes.back() == '\x01' ? '\0' : bytes.back();
    io::write_file(dir / "c.txt", bytes + std::string(100, 'a'));
    expect_error([&] { (void)load_dataset(dir / "c.txt", &tokenizer, two); }, ErrorCode::kBadText,
                 "is not text");
  }
  io::write_file(dir / "b.jsonl", "{\"text\": \"abc\"}\nnot json\n");
  expect_error([&] { (void)load_dataset(dir / "b.jsonl", &tokenizer, two); }, ErrorCode::kBadFile,
               "line 2");

  io::PendingFiles pending;
  const std::vector<int32_t> ids = {5, 6, 7, 8, 9, 10};
  std::vector<std::byte> bytes(24);
  std::memcpy(bytes.data(), ids.data(), 24);
  std::vector<io::TensorProducer> tensors;
  tensors.push_back({{"input_ids", DType::kI32, {3, 2}}, [&] { return bytes; }});
  io::write_safetensors(dir.path(), "ids", std::move(tensors), 1 << 20, pending);
  pending.commit();
  const Dataset stored = load_dataset(dir / "ids.safetensors", nullptr, two);
  EXPECT_EQ(stored.seq_len, 2);
  EXPECT_EQ(stored.ids, (std::vector<int32_t>{5, 6, 7, 8}));
  expect_error([&] { check_ids(stored.ids, 8, "ids"); }, ErrorCode::kBadModel, "token id 8");

  io::write_file(dir / "empty.txt", "");
  expect_error([&] { (void)load_dataset(dir / "empty.txt", &tokenizer, two); }, ErrorCode::kBadText,
               "empty");
  expect_error([&] { (void)load_dataset(dir / "none.txt", &tokenizer, two); },
               ErrorCode::kFileNotFound, "none.txt");
  expect_error([&] { (void)load_dataset(dir / "a.txt", nullptr, two); }, ErrorCode::kBadModel,
               "no tokenizer");
}

TEST(DrawToken, FollowsTheDistribution) {
  const std::vector<float> logits = {0.0F, std::log(3.0F), -1e30F};
  std::vector<int> counts(3);
  for (int i = 0; i < 1000; ++i) {
    std::vector<float> copy = logits;
    ++counts[static_cast<size_t>(draw_token(copy, 1.0, (i + 0.5) / 1000))];
  }
  EXPECT_NEAR(counts[0], 250, 1);
  EXPECT_NEAR(counts[1], 750, 1);
  EXPECT_EQ(counts[2], 0);
  std::vector<float> copy = logits;
  EXPECT_EQ(draw_token(copy, 0.0, 0.999), 1);
}

// Half of the rows of the embedding stand for no token.
TEST(SelfSample, TextsBeginWithOrdinaryTokens) {
  const RunContext ctx;
  const arch::Model model = testing::TinyModel{.vocab = 512}.open();
  const text::Tokenizer tokenizer = bytes_tokenizer();
  EXPECT_TRUE(tokenizer.is_ordinary(255));
  EXPECT_FALSE(tokenizer.is_ordinary(256));
  const DatasetOptions options{.samples = 40, .seq_len = 2};
  const auto beyond = [&](const text::Tokenizer* known) {
    const Dataset data = sample_from_model(ctx, model, known, options, 1.0, 1ULL << 30);
    int64_t count = 0;
    for (size_t i = 0; i < data.ids.size(); i += 2) count += data.ids[i] >= 256;
    return count;
  };
  EXPECT_EQ(beyond(&tokenizer), 0);
  EXPECT_GT(beyond(nullptr), 5);
}

TEST(SelfSample, DependsOnTheSeedOnly) {
  const arch::Model model = testing::TinyModel{}.open();
  const DatasetOptions options{.samples = 70, .seq_len = 6, .seed = 4};  // two batches
  RunContext one;
  RunContext three;
  three.threads = 3;
  const Dataset a = sample_from_model(one, model, nullptr, options, 1.0, 1ULL << 30);
  const Dataset b = sample_from_model(three, model, nullptr, options, 1.0, 0);
  EXPECT_EQ(a.ids, b.ids);
  EXPECT_EQ(a.sequences(), 70);
  std::set<int32_t> firsts;
  for (int64_t s = 0; s < 70; ++s) firsts.insert(a.ids[static_cast<size_t>(s * 6)]);
  EXPECT_GT(firsts.size(), 30U);
}

// Tensors in memory that tell when one is read.
class ObservedSource final : public io::MemoryTensorSource {
 public:
  ObservedSource(std::vector<NamedTensor> tensors, std::function<void(std::string_view)> on_read)
      : MemoryTensorSource(std::move(tensors)), on_read_(std::move(on_read)) {}
  void release(std::string_view name) const override { on_read_(name); }

 private:
  std::function<void(std::string_view)> on_read_;
};

TEST(SelfSample, AModelThatFitsIsReadOnce) {
  const testing::TinyModel tiny;
  std::map<std::string, int> reads;
  const auto source = std::make_shared<ObservedSource>(
      tiny.tensors(), [&](std::string_view name) { ++reads[std::string(name)]; });
  const arch::Model model = arch::Model::from_hf(source, tiny.config(), "tiny");
  const DatasetOptions options{.samples = 130, .seq_len = 3};  // three batches
  (void)sample_from_model(RunContext(), model, nullptr, options, 1.0, 1ULL << 30);
  EXPECT_EQ(reads.size(), source->tensors().size());
  for (const auto& [name, count] : reads) EXPECT_EQ(count, 1) << name;
}

// Reading a large model takes minutes.
TEST(SelfSample, StopsWhileTheModelIsRead) {
  const testing::TinyModel tiny;
  std::atomic<bool> cancel{false};
  const auto on_read = [&](std::string_view name) {
    cancel = cancel || name.find("layers.0") != std::string_view::npos;
    EXPECT_EQ(name.find("layers.1"), std::string_view::npos);
  };
  const arch::Model model = arch::Model::from_hf(
      std::make_shared<ObservedSource>(tiny.tensors(), on_read), tiny.config(), "tiny");
  RunContext ctx;
  ctx.cancel = &cancel;
  const DatasetOptions options{.samples = 2, .seq_len = 3};
  expect_error([&] { (void)sample_from_model(ctx, model, nullptr, options, 1.0, 1ULL << 30); },
               ErrorCode::kCancelled, "stopped");
}

// Streams in chunks must sum to the moments of the whole, with the factor 2 / T.
TEST(Statistics, AreScaledToThePerTokenMoment) {
  Mat x(64, 3);
  Mat y(64, 2);
  for (int64_t i = 0; i < x.size(); ++i) x.data()[i] = std::sin(static_cast<float>(i));
  for (int64_t i = 0; i < y.size(); ++i) y.data()[i] = std::cos(static_cast<float>(i));
  const RunContext ctx;
  GramAccumulator gram(3);
  CrossAccumulator cross(2, 3);
  for (int64_t r0 = 0; r0 < 64; r0 += 32) {
    gram.add(ctx, ConstView(x).rows_range(r0, 32), 16);
    cross.add(ctx, ConstView(y).rows_range(r0, 32), ConstView(x).rows_range(r0, 32), 16);
  }
  const Mat h = std::move(gram).finish(ctx);
  const Mat c = std::move(cross).finish(ctx);
  double hh = 0;
  double cc = 0;
  for (int64_t t = 0; t < 64; ++t) {
    hh += 2.0 / 64 * double{x(t, 0)} * x(t, 2);
    cc += 2.0 / 64 * double{y(t, 1)} * x(t, 2);
  }
  EXPECT_NEAR(h(0, 2), hh, 1e-6);
  EXPECT_EQ(h(0, 2), h(2, 0));
  EXPECT_NEAR(c(1, 2), cc, 1e-6);
}

}  // namespace
}  // namespace lpcd::calib
