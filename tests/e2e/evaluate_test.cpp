#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "lpcd/base/json.h"
#include "lpcd/io/file.h"
#include "lpcd/lpcd.h"
#include "tests/e2e/whole_run.h"
#include "tests/support/errors.h"
#include "tests/support/tiny_model.h"

// Evaluation, against figures worked out by hand.

namespace lpcd {
namespace {

using testing::expect_error;
using testing::TinyModel;
using EvaluateTest = testing::WholeRun;

TEST_F(EvaluateTest, WindowsBeyondTheModelAreRefusedBeforeTextIsWritten) {
  int reports = 0;
  ctx_.progress = [&](const Progress&) { ++reports; };
  EvaluateOptions o;
  o.model = model_;
  o.seq_len = 1024;
  expect_error([&] { evaluate(o, ctx_); }, ErrorCode::kBadOption,
               "beyond the model's 512 positions");
  EXPECT_EQ(reports, 0);
}

TEST_F(EvaluateTest, TooLittleMemoryIsSaidBeforeTextIsWritten) {
  int reports = 0;
  ctx_.progress = [&](const Progress&) { ++reports; };
  EvaluateOptions o;
  o.model = model_;
  o.samples = 1 << 24;  // 2 TiB of hidden states
  expect_error([&] { evaluate(o, ctx_); }, ErrorCode::kMemoryBudget, "lower --max-tokens");
  // One sequence at a time, with a cache of 256 GiB; few tokens of it are wanted.
  TinyModel{.blocks = 8, .heads = 64, .kv_heads = 64, .head_dim = 64}.write(model_);
  Json config = parse_json(testing::file_bytes(model_ + "/config.json"), "config.json");
  config["max_position_embeddings"] = 1 << 20;
  io::write_file(model_ + "/config.json", dump_json(config));
  o.seq_len = 1 << 20;
  o.samples = 1;
  o.max_tokens = 512;
  expect_error([&] { evaluate(o, ctx_); }, ErrorCode::kMemoryBudget, "with --ppl FILE");
  EXPECT_EQ(reports, 0);
}

// Windows of token ids begin with the model's leading token too, as llama-perplexity has it; else
// token ids need no tokenizer that can be read.
TEST_F(EvaluateTest, TokenIdsGetALeadingTokenWhereWindowsHaveOne) {
  quantize(options("run"), ctx_);
  EvaluateOptions o;
  o.model = model_;
  o.ppl = dir_ / "run/.lpcd/calibration.safetensors";
  o.ppl_mode = PplMode::kLlamaCpp;
  const double plain = evaluate(o, ctx_).perplexity;
  io::write_file(model_ + "/tokenizer_config.json", R"({"add_bos_token":true,"bos_token":"!"})");
  EXPECT_NE(evaluate(o, ctx_).perplexity, plain);
  io::write_file(model_ + "/tokenizer.json", R"({"model": {"type": "Unigram", "vocab": []}})");
  expect_error([&] { evaluate(o, ctx_); }, ErrorCode::kUnsupportedModel, "Unigram");
  o.ppl_mode = PplMode::kWindows;
  EXPECT_NO_THROW(evaluate(o, ctx_));
}

// A model whose figures can be worked out by hand: "x" is likelier than "y" after a space, "y" is
// sure after "y", a space is sure after "b", and all else is even.
TEST_F(EvaluateTest, TasksGiveWhatAHandComputes) {
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
  e.reference = model;
  const EvaluateResult compared = evaluate(e, ctx_);
  EXPECT_EQ(compared.windows, 10);
  const Json reference = parse_json(compared.json, "result")["reference"];
  EXPECT_EQ(reference["kl_mean"], 0);
  EXPECT_EQ(reference["block_errors"], Json(std::vector<double>(reference["block_errors"].size())));
  EXPECT_EQ(reference["block_errors"].size(), reference["block_token_errors"].size());
  EXPECT_GT(reference["block_errors"].size(), 0U);

  io::write_file(dir_ / "bad.jsonl", R"({"query": "q", "choices": ["x", "yy"], "gold": 2})");
  e.tasks = {dir_ / "bad.jsonl"};
  expect_error([&] { evaluate(e, ctx_); }, ErrorCode::kBadFile,
               "bad.jsonl line 1: gold must be an integer from 0 to 1");
}

}  // namespace
}  // namespace lpcd
