#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "lpcd/base/json.h"
#include "lpcd/bundle/open_model.h"
#include "lpcd/lpcd.h"
#include "lpcd/pipeline/journal.h"
#include "tests/e2e/whole_run.h"
#include "tests/support/tiny_model.h"

// Whole runs on random models of every registered architecture, through the public API.

namespace lpcd {
namespace {

using testing::TinyModel;
using QuantizeTest = testing::WholeRun;

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

// With nothing held out the same holds on the sequences that were solved on.
TEST_F(QuantizeTest, WithNothingHeldOutSubmodulesAreJudgedOnWhatTheyWereSolvedOn) {
  int chosen = 0;
  for (const char* solver : {"cg", "gd"}) {
    for (const int bits : {2, 4}) {
      TinyModel{.seed = static_cast<uint64_t>(bits)}.write(model_);
      QuantizeOptions o = options(fmt::format("{}{}", solver, bits));
      o.bits = bits;
      o.holdout = 0;
      o.percdamp = {"0.05"};
      o.solver = solver == std::string_view("gd") ? Solver::kGd : Solver::kCg;
      expect_allowed(parse_json(quantize(o, ctx_).record_json, "record"), chosen);
    }
  }
  EXPECT_GT(chosen, 4);
}

// Three channels of the feed-forward layers that open at a full stop and cancel each other: not
// after rounding, so that full stops turn massive in the quantized half block alone.
void add_cancelling_channels(TinyModel& tiny) {
  const int64_t hidden = tiny.hidden;
  const int64_t ffn = tiny.ffn;
  std::mt19937_64 rng(3);
  std::normal_distribution<float> normal;
  std::vector<float> stop(static_cast<size_t>(hidden));
  std::vector<float> noise(static_cast<size_t>(2 * hidden));
  for (float& v : stop) v = normal(rng) / std::sqrt(static_cast<float>(hidden));
  for (float& v : noise) v = 0.2F * normal(rng);
  tiny.edit = [=](const std::string& name, std::span<float> values) {
    for (int64_t i = 0; i < hidden; ++i) {
      const float s = stop[static_cast<size_t>(i)];
      const float a = noise[static_cast<size_t>(i)];
      const float b = noise[static_cast<size_t>(hidden + i)];
      if (name.ends_with("embed_tokens.weight")) {
        values[static_cast<size_t>('.' * hidden + i)] = 4 * s;
      } else if (name.ends_with("gate_proj.weight")) {
        for (int64_t r = 0; r < 3; ++r) values[static_cast<size_t>(r * hidden + i)] = 2 * s;
      } else if (name.ends_with("up_proj.weight")) {
        values[static_cast<size_t>(i)] = 2 * s + a;
        values[static_cast<size_t>(hidden + i)] = b - s;
        values[static_cast<size_t>(2 * hidden + i)] = -s - a - b;
      } else if (name.ends_with("down_proj.weight")) {
        for (int64_t c = 0; c < 3; ++c) values[static_cast<size_t>(i * ffn + c)] = 4;
      }
    }
  };
}

// An error counts relative to the larger of the streams behind the half block, the original's and
// the quantized one, and is at most fourfold then, however massive a token turns. Relative to the
// original's alone, full stops (one byte in 60) would count more than all the rest together.
TEST_F(QuantizeTest, TokensThatTurnMassiveInAHalfBlockDoNotOutweighOthers) {
  TinyModel tiny{.blocks = 1};
  add_cancelling_channels(tiny);
  tiny.write(model_);
  QuantizeOptions o = options("out");
  o.bits = 2;
  o.massive_weight = 0;
  o.lpcd = {"gate", "ud", "residual"};
  const Json record = parse_json(quantize(o, ctx_).record_json, "record");
  constexpr double kLimit = 4;
  bool up = false;
  bool down = false;
  for (const Json& layer : record.at("blocks").at(0).at("layers")) {
    const auto name = layer.at("name").get<std::string>();
    if (name.ends_with("up_proj.weight")) {
      up = true;
      const Json& relaxation = layer.at("relaxations").at(0);
      EXPECT_GT(relaxation.at("baseline_face_value").get<double>(), 2 * kLimit);  // they do turn
      EXPECT_LT(relaxation.at("baseline").get<double>(), kLimit);
    } else if (name.ends_with("down_proj.weight")) {
      down = true;
      for (const Json& candidate : layer.at("candidates")) {
        const double per_channel =
            candidate.at("held_out").get<double>() / static_cast<double>(tiny.hidden);
        EXPECT_LT(per_channel, kLimit);
      }
    }
  }
  EXPECT_TRUE(up && down);
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

}  // namespace
}  // namespace lpcd
