#include <fmt/format.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <random>

#include "lpcd/base/json.h"
#include "lpcd/bundle/open_model.h"
#include "lpcd/io/file.h"
#include "lpcd/lpcd.h"
#include "lpcd/pipeline/journal.h"
#include "tests/support/errors.h"
#include "tests/support/paths.h"
#include "tests/support/tiny_model.h"

// Whole runs on random models of every registered architecture, through the public API.

namespace lpcd {
namespace {

using testing::expect_error;
using testing::TemporaryDirectory;
using testing::TinyModel;

std::string file_bytes(const std::string& path) { return io::read_text_file(path, 1ULL << 30); }

class QuantizeTest : public ::testing::Test {
 protected:
  void SetUp() override {
    TinyModel{}.write(model_);
    io::write_file(text_, testing::random_text(60000, 7));
  }

  QuantizeOptions options(const std::string& out) const {
    QuantizeOptions o;
    o.model = model_;
    o.out = dir_ / out;
    o.bits = 3;
    o.group_size = 32;
    o.calib = text_;
    o.samples = 24;
    o.seq_len = 48;
    o.threads = 2;
    return o;
  }

  std::string weights(const std::string& out) const {
    return file_bytes((dir_ / out) + "/model.safetensors");
  }

  TemporaryDirectory dir_;
  std::string model_ = dir_ / "model";
  std::string text_ = dir_ / "text.txt";
  RunContext ctx_;
};

// What was chosen for a layer of a submodule is better on held-out sequences than the layer-wise
// solution, and keeps the tokens with massive activations.
void expect_allowed(const Json& record, int& chosen) {
  for (const Json& block : record.at("blocks")) {
    for (const Json& layer : block.at("layers")) {
      for (const Json& relaxation : layer.value("relaxations", Json::array())) {
        for (const Json& candidate : relaxation.at("candidates")) {
          if (!candidate.at("chosen").get<bool>()) continue;
          const auto held_out = candidate.at("held_out").get<double>();
          EXPECT_LT(held_out, relaxation.at("baseline").get<double>());
          EXPECT_EQ(held_out, relaxation.at("projected").get<double>());
          if (!candidate.contains("held_out_face_value")) continue;  // attention logits
          ++chosen;
          const auto face_value = candidate.at("held_out_face_value").get<double>();
          const double limit = 1.01 * relaxation.at("baseline_face_value").get<double>();
          EXPECT_LE(face_value, std::max(limit, held_out)) << layer.at("name");
        }
      }
    }
  }
}

// The promise of the guard: on sequences that no solve has seen the model with LPCD is at least as
// close to the original as the same run without, whatever the setting.
TEST_F(QuantizeTest, LpcdIsNeverWorseThanItsOwnBaseline) {
  const std::vector<std::string> families = {"llama", "qwen2", "qwen3"};
  std::mt19937 rng(20);
  const auto pick = [&](auto... values) {
    const std::array list{values...};
    return list[rng() % list.size()];
  };
  double sum = 0;
  int chosen = 0;
  for (int i = 0; i < 20; ++i) {
    TinyModel tiny{.architecture = families[rng() % families.size()], .seed = rng()};
    tiny.blocks = pick(2, 3);
    const std::string model = dir_ / fmt::format("m{}", i);
    tiny.write(model);
    QuantizeOptions o = options(fmt::format("b{}", i));
    o.model = model;
    o.bits = pick(2, 3, 4);
    o.group_size = pick(-1, 16, 32, 64);
    o.symmetric = pick(true, true, false);
    o.seed = rng();
    o.samples = pick(32, 64);
    o.formats = {"dense:fp32"};
    const auto error = [&](const std::string& lpcd, const std::string& out) {
      o.lpcd = {lpcd};
      o.out = dir_ / out;
      const Json record = parse_json(quantize(o, ctx_).record_json, "record");
      expect_allowed(record, chosen);
      return record.at("blocks").back().at("held_out_error").get<double>();
    };
    const double baseline = error("none", fmt::format("none{}", i));
    const double lpcd = error("all", fmt::format("all{}", i));
    EXPECT_LE(lpcd, baseline) << tiny.architecture << " " << o.bits << " bits, groups of "
                              << o.group_size << ", seed " << o.seed;
    sum += lpcd / baseline;
  }
  EXPECT_GT(chosen, 20);
  fmt::print("held-out error of the last block, LPCD over baseline: mean {:.3f}\n", sum / 20);
}

// What the file decodes to must be what was computed, for every family, method and format.
TEST_F(QuantizeTest, WritesWhatItComputedForEveryFamilyAndMethod) {
  struct Method_ {
    const char* name;
    Method method;
    bool qep;
    const char* lpcd;
  };
  const std::vector<Method_> methods = {{"rtn", Method::kRtn, false, "none"},
                                        {"gptq", Method::kGptq, false, "none"},
                                        {"qep", Method::kGptq, true, "none"},
                                        {"residual", Method::kGptq, true, "residual"},
                                        {"rtn-residual", Method::kRtn, true, "residual"},
                                        {"all", Method::kGptq, true, "all"},
                                        {"rtn-all", Method::kRtn, false, "all"}};
  for (const arch::Architecture* family : arch::architectures()) {
    const std::string architecture(family->name());
    const std::string model = dir_ / architecture;
    TinyModel{.architecture = architecture, .tied = false, .dtype = DType::kBF16}.write(model);
    for (const Method_& m : methods) {
      SCOPED_TRACE(architecture + " " + m.name);
      QuantizeOptions o = options(architecture + "-" + m.name);
      o.model = model;
      o.method = m.method;
      o.qep = m.qep;
      o.lpcd = {m.lpcd};
      o.formats = {"gptq:3,g32", "dense:fp32", "ct:3,g32"};
      const QuantizeResult result = quantize(o, ctx_);
      ASSERT_EQ(result.outputs.size(), 3U);
      const arch::Model gptq = bundle::open_model(result.outputs[0]);
      const arch::Model dense = bundle::open_model(result.outputs[1]);
      const arch::Model packed = bundle::open_model(result.outputs[2]);
      const pipeline::Journal journal(o.out);
      const arch::Model original = bundle::open_model(model);
      EXPECT_EQ(gptq.parameters(), original.parameters());
      for (int64_t b = 0; b < 2; ++b) {
        for (const arch::RoleNames& names : family->names()) {  // norms and biases are kept
          const arch::Role role = names.role;
          if (!arch::is_block_role(role) || arch::is_linear_role(role)) continue;
          const Mat expected = original.read(role, b);
          const Mat from_gptq = gptq.read(role, b);
          const Mat from_dense = dense.read(role, b);
          ASSERT_EQ(from_gptq.size(), expected.size());
          for (int64_t i = 0; i < expected.size(); ++i) {
            ASSERT_EQ(from_gptq.data()[i], expected.data()[i]);
            ASSERT_EQ(from_dense.data()[i], expected.data()[i]);
          }
        }
        for (const auto& [role, q] : journal.read_block(b)) {
          const Mat expected = q.decode();
          const Mat from_gptq = gptq.read(role, b);
          const Mat from_dense = dense.read(role, b);
          const Mat from_packed = packed.read(role, b);
          for (int64_t i = 0; i < expected.size(); ++i) {
            ASSERT_EQ(from_gptq.data()[i], expected.data()[i]);
            ASSERT_EQ(from_dense.data()[i], expected.data()[i]);
            ASSERT_EQ(from_packed.data()[i], expected.data()[i]);
          }
        }
      }
      const Json record = parse_json(result.record_json, "record");
      EXPECT_EQ(record["blocks"].size(), 2U);
      EXPECT_EQ(record["blocks"][1]["layers"].size(), 7U);
      EvaluateOptions e;
      e.ppl = text_;
      e.seq_len = 48;
      e.max_tokens = 1000;
      e.reference = model;
      e.model = result.outputs[0];
      const EvaluateResult a = evaluate(e, ctx_);
      e.model = result.outputs[1];
      const EvaluateResult b = evaluate(e, ctx_);
      EXPECT_EQ(a.perplexity, b.perplexity);
      EXPECT_GT(a.reference->kl_mean, 0.0);
      EXPECT_LT(a.reference->kl_mean, 1.0);
      EXPECT_EQ(a.reference->kl_mean, b.reference->kl_mean);
    }
  }
}

// Error propagation must do its job: the block outputs end up closer to the original's.
TEST_F(QuantizeTest, CorrectionsLowerTheOutputErrorOnTheCalibrationText) {
  const auto last_error = [&](const char* out, bool qep, const char* lpcd) {
    QuantizeOptions o = options(out);
    o.samples = 96;
    o.qep = qep;
    o.lpcd = {lpcd};
    if (!qep) o.qep_strength = "0";
    if (!qep && o.lpcd[0] == "none") {  // carries the original along, to measure against
      o.qep = true;
      o.qep_exclude = {"none"};
      o.qep_strength = "1e-9";
    }
    const Json record = parse_json(quantize(o, ctx_).record_json, "record");
    return record["blocks"].back()["output_error"].get<double>();
  };
  const double gptq = last_error("gptq", false, "none");
  const double qep = last_error("qep", true, "none");
  const double residual = last_error("residual", true, "residual");
  EXPECT_LT(qep, gptq);
  EXPECT_LT(residual, qep);
}

TEST_F(QuantizeTest, DoesNotDependOnThreads) {
  for (const int threads : {1, 3}) {
    QuantizeOptions o = options("threads" + std::to_string(threads));
    o.threads = threads;
    quantize(o, ctx_);
  }
  EXPECT_EQ(weights("threads1"), weights("threads3"));
}

TEST_F(QuantizeTest, GivesTheSameBytesTwiceAndOthersWithAnotherSeed) {
  quantize(options("one"), ctx_);
  quantize(options("two"), ctx_);
  QuantizeOptions o = options("three");
  o.seed = 9;
  quantize(o, ctx_);
  EXPECT_EQ(weights("one"), weights("two"));
  EXPECT_NE(weights("one"), weights("three"));
}

TEST_F(QuantizeTest, SelfCalibrationIsReproducible) {
  for (const char* out : {"one", "two"}) {
    QuantizeOptions o = options(out);
    o.calib = "self";
    o.samples = 8;
    quantize(o, ctx_);
  }
  EXPECT_EQ(weights("one"), weights("two"));
}

// Stopped at many moments, resumed each time: always the bytes of the run that was not stopped.
TEST_F(QuantizeTest, ResumesToTheSameBytesWhereverItWasStopped) {
  quantize(options("whole"), ctx_);
  const std::string expected = weights("whole");
  for (const int stop_at : {1, 5, 9, 14, 20, 27, 33, 40}) {
    SCOPED_TRACE(stop_at);
    const std::string out = "stopped" + std::to_string(stop_at);
    std::atomic<bool> cancel{false};
    int reports = 0;
    RunContext ctx;
    ctx.cancel = &cancel;
    ctx.progress = [&](const Progress&) { cancel = ++reports >= stop_at; };
    QuantizeOptions o = options(out);
    try {
      quantize(o, ctx);
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), ErrorCode::kCancelled);
    }
    o.resume = true;
    o.threads = 1;  // a resource: free to change
    quantize(o, ctx_);
    EXPECT_EQ(weights(out), expected);
  }
}

// The record of a finished run tells what the work cost, not what finding it done costs.
TEST_F(QuantizeTest, ResumingAFinishedRunLeavesItsRecordAndMakesWhatIsMissing) {
  QuantizeOptions o = options("done");
  const std::string record = quantize(o, ctx_).record_json;
  const std::string expected = weights("done");
  o.resume = true;
  EXPECT_EQ(quantize(o, ctx_).record_json, record);
  std::filesystem::remove(o.out + "/model.safetensors");
  quantize(o, ctx_);
  EXPECT_EQ(weights("done"), expected);
}

TEST_F(QuantizeTest, RefusesToResumeWithOtherOptionsAndNamesThem) {
  std::atomic<bool> cancel{false};
  RunContext ctx;
  ctx.cancel = &cancel;
  ctx.progress = [&](const Progress& p) {
    cancel = p.stage == "quantize" && p.done > 0.6 * p.total;
  };
  QuantizeOptions o = options("out");
  expect_error([&] { quantize(o, ctx); }, ErrorCode::kCancelled, "stopped");
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kOutputExists, "add --resume");
  o.resume = true;
  o.percdamp = {"0.02"};
  o.bits = 4;
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kResumeMismatch, "options/bits was 3, is 4");
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kResumeMismatch,
               R"(options/percdamp was ["0.01","0.05","0.2","0.5","1","2"], is ["0.02"])");
  o = options("out");
  o.resume = true;
  TinyModel{.seed = 5}.write(o.model);  // another model behind the same path
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kResumeMismatch, "model was");
}

TEST_F(QuantizeTest, LeavesOtherPeoplesDirectoriesAlone) {
  QuantizeOptions o = options("mine");
  io::make_directories(o.out);
  io::write_file(o.out + "/thesis.txt", "do not touch");
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kOutputExists, "not empty");
  EXPECT_EQ(file_bytes(o.out + "/thesis.txt"), "do not touch");
  o = options("done");
  quantize(o, ctx_);
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kOutputExists, "finished run");
  o.out = text_;
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kOutputExists, "is a file");
}

TEST_F(QuantizeTest, RefusesTwoProcessesOnOneOutput) {
  QuantizeOptions o = options("out");
  {
    io::make_directories(o.out);
    const io::DirectoryLock lock(o.out);
    expect_error([&] { quantize(o, ctx_); }, ErrorCode::kLocked, o.out);
  }
  EXPECT_NO_THROW(quantize(o, ctx_));
}

TEST_F(QuantizeTest, StartsAgainWhereARunDiedBeforeItsFirstCommit) {
  QuantizeOptions o = options("out");
  io::make_directories(o.out + "/.lpcd/blocks");
  io::write_file(o.out + "/.lpcd-lock", "");
  io::write_file(o.out + "/.lpcd/calibration.json", "{");
  EXPECT_NO_THROW(quantize(o, ctx_));
}

TEST_F(QuantizeTest, DryRunTouchesNothing) {
  QuantizeOptions o = options("out");
  o.dry_run = true;
  const QuantizeResult result = quantize(o, ctx_);
  EXPECT_NE(result.plan.find("arithmetic"), std::string::npos);
  EXPECT_NE(result.plan.find("memory"), std::string::npos);
  EXPECT_FALSE(std::filesystem::exists(o.out));
}

// What the plan says an output takes is what it takes, to the byte that is printed.
TEST_F(QuantizeTest, SizesOnDiskAreAsPlanned) {
  for (const std::string format :
       {"gptq:3,g32", "gptq:4,g32,v2", "gptq:2,g32,asym", "ct:3,g32", "ct:8,g-1", "dense:fp16"}) {
    SCOPED_TRACE(format);
    QuantizeOptions o = options("size" + std::to_string(format.size()) + format.substr(0, 4));
    o.formats = {format};
    o.method = Method::kRtn;
    o.qep = false;
    o.lpcd = {"none"};
    o.dry_run = true;
    const std::string plan = quantize(o, ctx_).plan;
    o.dry_run = false;
    const std::string out = quantize(o, ctx_).outputs.at(0);
    const auto bytes = std::filesystem::file_size(out + "/model.safetensors");
    EXPECT_NE(plan.find(": " + format_bytes(bytes)), std::string::npos)
        << plan << format_bytes(bytes);
  }
}

TEST_F(QuantizeTest, ContradictingOptionsAreRefusedBeforeAnyWork) {
  const auto refused = [&](auto change, std::string_view part) {
    QuantizeOptions o = options("out");
    change(o);
    expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadOption, part);
    EXPECT_FALSE(std::filesystem::exists(o.out));
  };
  refused(
      [](auto& o) {
        o.formats = {"gptq:4,g32"};
        o.given = {"bits"};
      },
      "--bits contradicts --format gptq:4,g32");
  refused([](auto& o) { o.formats = {"gptq:4,g32", "gptq:3,g32"}; }, "different grids");
  refused([](auto& o) { o.bits = 5; }, "add --format dense:fp16");
  refused([](auto& o) { o.lpcd = {"residul"}; }, "did you mean \"residual\"");
  refused([](auto& o) { o.qep_exclude = {"donw_proj"}; }, "did you mean \"down_proj\"");
  refused([](auto& o) { o.hessian_from = HessianFrom::kOriginal; }, "--qep off --lpcd none");
  refused([](auto& o) { o.bits_for = {"*down*"}; }, "PATTERN=BITS");
  refused([](auto& o) { o.bits_for = {"*dwon*=4"}; }, "no layer matches");
  refused([](auto& o) { o.seq_len = 1024; }, "beyond the model's 512 positions");
  refused([](auto& o) { o.group_size = 0; }, "--group-size");
  refused([](auto& o) { o.max_memory = "lots"; }, "is not a size");
}

TEST_F(QuantizeTest, TooLittleMemoryIsSaidBeforeAnyWork) {
  QuantizeOptions o = options("out");
  o.max_memory = "10M";
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kMemoryBudget, "needs at least");
  EXPECT_FALSE(std::filesystem::exists(o.out));
}

TEST_F(QuantizeTest, NothingCanBeHeldOutOfOneSequence) {
  QuantizeOptions o = options("out");
  o.samples = 1;
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadOption, "or give --holdout 0");
  o.holdout = 0;
  EXPECT_NO_THROW(quantize(o, ctx_));
}

TEST_F(QuantizeTest, ShortCalibrationTextIsSaidWithNumbers) {
  QuantizeOptions o = options("out");
  o.samples = 100000;
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadText, "lower --samples to");
}

TEST_F(QuantizeTest, ShapesThatTheFormatCannotHoldAreRefused) {
  TinyModel{.ffn = 84}.write(model_);
  QuantizeOptions o = options("out");
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadOption,
               "does not pack into 32-bit words");
  o.formats = {"dense:fp16"};
  EXPECT_NO_THROW(quantize(o, ctx_));  // a short last group is fine on the grid
}

TEST_F(QuantizeTest, MixedWidthsAreStoredLayerByLayer) {
  QuantizeOptions o = options("out");
  o.formats = {"gptq:3,g32"};
  o.bits_for = {"*layers.1.*down_proj*=4"};
  o.mlp_bits = 2;
  const QuantizeResult result = quantize(o, ctx_);
  const Json config = parse_json(file_bytes(o.out + "/config.json"), "config.json");
  const Json& dynamic = config["quantization_config"]["dynamic"];
  EXPECT_EQ(dynamic["+:^model\\.layers\\.1\\.mlp\\.down_proj$"]["bits"], 4);
  EXPECT_EQ(dynamic["+:^model\\.layers\\.0\\.mlp\\.up_proj$"]["bits"], 2);
  const arch::Model model = bundle::open_model(o.out);
  const Mat expected = pipeline::Journal(o.out).read_block(1).at(arch::Role::kDown).decode();
  const Mat got = model.read(arch::Role::kDown, 1);
  for (int64_t i = 0; i < got.size(); ++i) ASSERT_EQ(got.data()[i], expected.data()[i]);
}

TEST_F(QuantizeTest, ShardsAreReadBackLikeOneFile) {
  QuantizeOptions o = options("one");
  quantize(o, ctx_);
  o = options("shards");
  o.shard_size = "40K";
  quantize(o, ctx_);
  EXPECT_TRUE(std::filesystem::exists(o.out + "/model.safetensors.index.json"));
  EXPECT_EQ(bundle::open_model(dir_ / "one").read(arch::Role::kUp, 1)(3, 4),
            bundle::open_model(dir_ / "shards").read(arch::Role::kUp, 1)(3, 4));
  EvaluateOptions e;
  e.ppl = text_;
  e.seq_len = 48;
  e.max_tokens = 500;
  e.model = dir_ / "one";
  const double one = evaluate(e, ctx_).perplexity;
  e.model = dir_ / "shards";
  EXPECT_EQ(evaluate(e, ctx_).perplexity, one);
}

TEST_F(QuantizeTest, ExportGivesWhatTheRunWouldHaveWritten) {
  QuantizeOptions o = options("gptq");
  quantize(o, ctx_);
  o = options("dense");
  o.formats = {"dense:fp16"};
  quantize(o, ctx_);
  export_model({.source = dir_ / "gptq", .format = "dense:fp16", .out = dir_ / "exported"}, ctx_);
  EXPECT_EQ(weights("dense"), weights("exported"));
  expect_error(
      [&] {
        export_model({.source = dir_ / "gptq", .format = "gptq:4,g32", .out = dir_ / "x"}, ctx_);
      },
      ErrorCode::kBadOption, "makes it");
  expect_error(
      [&] {
        export_model({.source = dir_ / "gptq", .format = "dense:fp16", .out = dir_ / "exported"},
                     ctx_);
      },
      ErrorCode::kOutputExists, "not empty");
  expect_error(
      [&] { export_model({.source = model_, .format = "gptq:4,g32", .out = dir_ / "x"}, ctx_); },
      ErrorCode::kBadOption, "no codes to store");
  export_model({.source = model_, .format = "dense:fp32", .out = dir_ / "converted"}, ctx_);
  EXPECT_EQ(weights("converted"), file_bytes(model_ + "/model.safetensors"));
}

// GGUF: what the file decodes to is what was computed, in the rows' own order; sizes are as
// planned.
TEST_F(QuantizeTest, GgufHoldsWhatWasComputed) {
  for (const std::string architecture : {"llama", "qwen2", "qwen3"}) {
    const std::string model = dir_ / architecture;
    TinyModel{.architecture = architecture,
              .hidden = 256,
              .ffn = 288,
              .heads = 8,
              .kv_heads = 2,
              .head_dim = 32,
              .tied = architecture == "qwen3",
              .dtype = DType::kBF16}
        .write(model);
    for (const std::string format : {"gguf:q2_k", "gguf:q4_k_m", "gguf:q3_k,pure", "gguf:exact"}) {
      SCOPED_TRACE(architecture + " " + format);
      QuantizeOptions o = options(architecture + format.substr(5));
      o.model = model;
      o.formats = {format};
      o.method = format == "gguf:q2_k" ? Method::kGptq : Method::kRtn;
      o.qep = false;
      o.lpcd = {"none"};
      o.dry_run = true;
      const std::string plan = quantize(o, ctx_).plan;
      o.dry_run = false;
      const QuantizeResult result = quantize(o, ctx_);
      ASSERT_EQ(result.outputs.size(), 1U);
      const arch::Model gguf = bundle::open_model(o.out);
      EXPECT_EQ(gguf.path(), result.outputs[0]);
      const pipeline::Journal journal(o.out);
      const arch::Model original = bundle::open_model(model);
      for (int64_t b = 0; b < 2; ++b) {
        for (const auto& [role, q] : journal.read_block(b)) {
          const Mat expected = q.decode();
          const Mat got = gguf.read(role, b);
          for (int64_t i = 0; i < got.size(); ++i) ASSERT_EQ(got.data()[i], expected.data()[i]);
        }
        const Mat norm = gguf.read(arch::Role::kAttentionNorm, b);
        EXPECT_EQ(norm(0, 7), original.read(arch::Role::kAttentionNorm, b)(0, 7));
      }
      EXPECT_EQ(gguf.config().head_dim, 32);
      EXPECT_EQ(gguf.config().rope_theta, original.config().rope_theta);
      EXPECT_EQ(gguf.config().tied_head, original.config().tied_head);
      EXPECT_EQ(gguf.config().max_positions, original.config().max_positions);
      EXPECT_NEAR(gguf.read(arch::Role::kEmbedding, 0)(3, 5),
                  original.read(arch::Role::kEmbedding, 0)(3, 5), 0.3F);
      const auto bytes = std::filesystem::file_size(result.outputs[0]);
      EXPECT_NE(plan.find(format_bytes(bytes)), std::string::npos) << plan;
      const bool falls_back = format != "gguf:exact";
      EXPECT_EQ(plan.find("rows of 288 hold no") != std::string::npos, falls_back) << plan;
    }
  }
}

TEST_F(QuantizeTest, GgufIsExportedFromRunsThatHaveItsGrid) {
  QuantizeOptions o = options("codes");
  o.bits = 4;
  quantize(o, ctx_);
  export_model({.source = o.out, .format = "gguf:exact", .out = dir_ / "exact"}, ctx_);
  export_model({.source = o.out, .format = "gguf:q4_0", .out = dir_ / "q4_0"}, ctx_);
  export_model({.source = o.out, .format = "gguf:f32", .out = dir_ / "f32"}, ctx_);
  export_model({.source = o.out, .format = "ct:4,g32", .out = dir_ / "ct"}, ctx_);
  const Mat expected = pipeline::Journal(o.out).read_block(1).at(arch::Role::kQ).decode();
  for (const char* name : {"exact", "q4_0", "f32", "ct"}) {
    const Mat got = bundle::open_model(dir_ / name).read(arch::Role::kQ, 1);
    for (int64_t i = 0; i < got.size(); ++i) ASSERT_EQ(got.data()[i], expected.data()[i]) << name;
  }
  expect_error(
      [&] { export_model({.source = o.out, .format = "gguf:q5_0", .out = dir_ / "x"}, ctx_); },
      ErrorCode::kBadOption, "--format gguf:q5_0 --out DIR makes it");
  QuantizeOptions k = options("blocks");
  k.formats = {"gguf:q5_0"};
  k.method = Method::kRtn;
  k.qep = false;
  k.lpcd = {"none"};
  quantize(k, ctx_);
  export_model({.source = k.out, .format = "gguf:q5_0", .out = dir_ / "again"}, ctx_);
  export_model({.source = k.out, .format = "dense:fp32", .out = dir_ / "dense"}, ctx_);
  EXPECT_EQ(bundle::open_model(dir_ / "again").read(arch::Role::kUp, 0)(3, 4),
            bundle::open_model(dir_ / "dense").read(arch::Role::kUp, 0)(3, 4));
  expect_error(
      [&] { export_model({.source = k.out, .format = "gptq:4,g32", .out = dir_ / "x"}, ctx_); },
      ErrorCode::kBadOption, "makes it");
  expect_error(
      [&] { export_model({.source = model_, .format = "gguf:q4_0", .out = dir_ / "x"}, ctx_); },
      ErrorCode::kBadOption, "no codes to store");
  export_model({.source = model_, .format = "gguf:f32", .out = dir_ / "plain"}, ctx_);
  EXPECT_EQ(bundle::open_model(dir_ / "plain").read(arch::Role::kK, 0)(5, 6),
            bundle::open_model(model_).read(arch::Role::kK, 0)(5, 6));
}

TEST_F(QuantizeTest, TensorTypesAndGgufContradictionsAreChecked) {
  QuantizeOptions o = options("types");
  o.formats = {"gguf:q4_0"};
  o.method = Method::kRtn;
  o.qep = false;
  o.lpcd = {"none"};
  o.tensor_types = {"*ffn_down*=q8_0", "token_embd.weight=f16"};
  quantize(o, ctx_);
  const arch::Model model = bundle::open_model(o.out);
  EXPECT_EQ(model.stored(arch::Role::kDown, 1).dtype, DType::kQ8_0);
  EXPECT_EQ(model.stored(arch::Role::kUp, 1).dtype, DType::kQ4_0);
  EXPECT_EQ(model.stored(arch::Role::kEmbedding, 0).dtype, DType::kF16);
  const auto refused = [&](auto change, std::string_view part) {
    QuantizeOptions bad = options("x");
    bad.formats = {"gguf:q4_0"};
    change(bad);
    expect_error([&] { quantize(bad, ctx_); }, ErrorCode::kBadOption, part);
  };
  refused([](auto& b) { b.tensor_types = {"*nothing*=q8_0"}; }, "no matrix matches");
  refused([](auto& b) { b.tensor_types = {"*ffn_down*=q9"}; }, "must be PATTERN=TYPE");
  refused([](auto& b) { b.tensor_types = {"*ffn_down*=q4_k"}; }, "Q5_0 would fit");
  refused([](auto& b) { b.tensor_types = {"*ffn_down*=f16"}; }, "layers cannot stay F16");
  refused([](auto& b) { b.mlp_bits = 4; }, "use --tensor-type");
  refused([](auto& b) { b.formats = {"gguf:q4_0", "gptq:4,g32"}; }, "different grids");
  refused([](auto& b) { b.formats = {"gguf:q4_0", "gguf:q8_0"}; }, "different grids");
  refused([](auto& b) { b.formats = {"gguf:q7_k"}; }, "is not of the form");
}

TEST_F(QuantizeTest, LimitsOfTheConsumerAreCheckedBeforeAnyWork) {
  const auto refused = [&](const char* consumer, const char* format, std::string_view part) {
    QuantizeOptions o = options("x");
    o.formats = {format};
    o.consumer = consumer;
    expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadOption, part);
    EXPECT_FALSE(std::filesystem::exists(o.out));
  };
  refused("vllm", "gptq:3,g32", "vLLM loads GPTQ only at 4 and 8 bits symmetric; use ct:3,g32");
  refused("vllm", "gptq:4,g32,asym", "use ct:4,g32,asym");
  refused("vllm", "ct:4,g16", "groups of 32, 64 or 128");
  refused("vllm", "gguf:q4_0", "no GGUF");
  refused("llama.cpp", "gptq:4,g32", "use --format gguf:q4_k_m");
  refused("gptqmodel", "ct:4,g32", "gptq layout only");
  refused("transformers", "ct:4,g32,asym", "asymmetric");
  refused("gptqmodel", "gptq:4,g32,asym", "use gptq:4,g32,asym,v2");
  refused("gptqmodel", "gptq:4,g48", "groups of 16, 32");
  refused("vllm", "gptq:4,g128", "whole groups only");
  refused("vlm", "ct:4,g32", "did you mean \"vllm\"");
  QuantizeOptions o = options("fits");
  o.formats = {"ct:3,g32"};
  o.consumer = "vllm";
  o.bits_for = {"*k_proj*=4"};
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadOption, "vLLM fuses it with");
  o.bits_for = {"*down_proj*=4"};
  o.formats = {"gptq:3,g32"};
  o.consumer = "transformers";
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadOption, "one grid only");
  o.formats = {"ct:3,g32"};
  o.consumer = "vllm";
  o.dry_run = true;
  EXPECT_FALSE(quantize(o, ctx_).plan.empty());
}

TEST_F(QuantizeTest, ExportNoticesATamperedRun) {
  QuantizeOptions o = options("run");
  quantize(o, ctx_);
  const std::string path = o.out + "/.lpcd/blocks/00001/layers.safetensors";
  std::string bytes = file_bytes(path);
  bytes[bytes.size() - 5] ^= 1;
  io::write_file(path, bytes);
  expect_error(
      [&] { export_model({.source = o.out, .format = "dense:fp16", .out = dir_ / "x"}, ctx_); },
      ErrorCode::kBadFile, "not what the run committed");
}

// A model whose figures can be worked out by hand: "x" is likelier than "y" after a space, "y" is
// sure after "y", a space is sure after "b", and all else is even.
TEST_F(QuantizeTest, TasksGiveWhatAHandComputes) {
  const std::string model = dir_ / "bigram";
  testing::BigramModel{.logit = [](int a, int b) {
    if (a == ' ' && b == 'x') return 2.0F;
    return (a == 'y' && b == 'y') || (a == 'b' && b == ' ') ? 30.0F : 0.0F;
  }}.write(model);
  // Plain, "x" wins: it needs one even byte fewer. Per character, "yy" wins.
  io::write_file(dir_ / "choices.jsonl", R"({"query": "q", "choices": ["x", "yy"], "gold": 0}
{"query": "q", "choices": ["x", "yy"], "gold": 1}

{"query": "q", "choices": ["x", "yy"], "gold": 0}
)");
  io::write_file(dir_ / "contexts.jsonl",
                 R"({"context_options": ["ab", "aq"], "continuation": "x", "gold": 0}
{"context_options": ["ab", "aq"], "continuation": "x", "gold": 1})");
  io::write_file(dir_ / "words.jsonl", R"({"context": "ab", "continuation": "x"}
{"context": "ab", "continuation": "y"})");
  EvaluateOptions e;
  e.model = model;
  e.tasks = {dir_ / "choices.jsonl", dir_ / "contexts.jsonl", dir_ / "words.jsonl"};
  const EvaluateResult result = evaluate(e, ctx_);
  const Json json = parse_json(result.json, "result");
  EXPECT_FALSE(json.contains("perplexity"));
  const Json& tasks = json["tasks"];
  ASSERT_EQ(tasks.size(), 3U);
  EXPECT_EQ(tasks[0]["name"], "choices");
  EXPECT_EQ(tasks[0]["n"], 3);
  EXPECT_DOUBLE_EQ(tasks[0]["acc"].get<double>(), 2.0 / 3);
  EXPECT_DOUBLE_EQ(tasks[0]["acc_stderr"].get<double>(), 1.0 / 3);
  EXPECT_DOUBLE_EQ(tasks[0]["acc_norm"].get<double>(), 1.0 / 3);
  EXPECT_EQ(tasks[1]["acc"], 0.5);
  EXPECT_FALSE(tasks[1].contains("acc_norm"));
  EXPECT_EQ(tasks[2]["acc"], 0.5);
  // p(x | space) = e^2 / z and p(y | space) = 1 / z with z = 255 + e^2.
  const double z = 255 + std::exp(2.0);
  EXPECT_NEAR(tasks[2]["perplexity"].get<double>(), z / std::exp(1.0), 1e-3);
  EXPECT_NE(result.summary.find("choices        3  acc            0.6667    0.3333\n"
                                "                  acc_norm       0.3333    0.3333\n"),
            std::string::npos)
      << result.summary;
  EXPECT_EQ(result.summary.find("perplexity      "), std::string::npos);

  e.task_limit = 2;
  EXPECT_EQ(evaluate(e, ctx_).tasks[0].items, 2);
  e.ppl = text_;
  e.seq_len = 48;
  e.max_tokens = 480;
  EXPECT_EQ(evaluate(e, ctx_).windows, 10);

  io::write_file(dir_ / "bad.jsonl", R"({"query": "q", "choices": ["x", "yy"], "gold": 2})");
  e.tasks = {dir_ / "bad.jsonl"};
  expect_error([&] { evaluate(e, ctx_); }, ErrorCode::kBadFile,
               "bad.jsonl line 1: gold must be an integer from 0 to 1");
}

TEST_F(QuantizeTest, InspectKnowsModelsAndRuns) {
  EXPECT_NE(inspect(model_).summary.find("llama: 2 blocks"), std::string::npos);
  quantize(options("run"), ctx_);
  const Json json = parse_json(inspect(dir_ / "run").json, "inspect");
  EXPECT_EQ(json["run"]["kind"], "finished run");
  EXPECT_EQ(json["model"]["quantization"]["bits"], 3);
  // Codes are shown as what they are, with all that belongs to them.
  const Json& types = json["model"]["tensors"]["types"];
  EXPECT_EQ(types["int3"]["tensors"], 14);
  uint64_t bytes = 0;
  for (const auto& [type, sum] : types.items()) bytes += sum["bytes"].get<uint64_t>();
  EXPECT_EQ(json["model"]["stored_bytes"], bytes);
  const auto file = std::filesystem::file_size(dir_ / "run/model.safetensors");
  EXPECT_LT(bytes, file);
  EXPECT_GT(bytes, file - 16384);  // all but the header
  EXPECT_EQ(json["run"]["output_errors"].size(), 2U);
}

TEST_F(QuantizeTest, ModelAndTokenizerMustBelongTogether) {
  TinyModel{.vocab = 200}.write(model_);  // the tokenizer has 256 tokens
  expect_error([&] { quantize(options("out"), ctx_); }, ErrorCode::kBadModel,
               "tokenizer has 256 tokens");
}

}  // namespace
}  // namespace lpcd
