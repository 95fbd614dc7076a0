#include "lpcd/eval/tasks.h"

#include <gtest/gtest.h>

#include <cmath>

#include "lpcd/eval/hidden_states.h"
#include "lpcd/io/file.h"
#include "lpcd/nn/ops.h"
#include "tests/support/errors.h"
#include "tests/support/paths.h"
#include "tests/support/tiny_model.h"

namespace lpcd::eval {
namespace {

using testing::expect_error;
using testing::TemporaryDirectory;
using testing::TinyModel;

RunContext two_threads() {
  RunContext ctx;
  ctx.threads = 2;
  return ctx;
}

text::Tokenizer byte_tokenizer() {
  return text::Tokenizer::from_json(testing::byte_tokenizer_json(), "tokenizer.json");
}

std::vector<int32_t> bytes_of(std::string_view text) { return {text.begin(), text.end()}; }

TEST(ContextOfQuery, AddsAnswerToQuestionsOnly) {
  EXPECT_EQ(context_of_query("Question: Why?"), "Question: Why?\nAnswer:");
  EXPECT_EQ(context_of_query("Question: Why?\n"), "Question: Why?\nAnswer:");
  EXPECT_EQ(context_of_query("Question: Why? \n"), "Question: Why? \nAnswer:");
  EXPECT_EQ(context_of_query("Question: Why?\nAnswer:"), "Question: Why?\nAnswer:");
  EXPECT_EQ(context_of_query("Question: Why?\nAnswer: "), "Question: Why?\nAnswer: ");
  EXPECT_EQ(context_of_query("The best way is to"), "The best way is to");
}

TEST(SplitTokens, MovesWhiteSpaceToTheContinuation) {
  const text::Tokenizer tokenizer = byte_tokenizer();
  const ScoredText plain = split_tokens(tokenizer, "ab", " cd");
  EXPECT_EQ(plain.ids, bytes_of("ab cd"));
  EXPECT_EQ(plain.scored, 3);
  const ScoredText spaces = split_tokens(tokenizer, "ab \n", " cd");
  EXPECT_EQ(spaces.ids, bytes_of("ab \n cd"));
  EXPECT_EQ(spaces.scored, 5);
  const ScoredText wide = split_tokens(tokenizer, "ab\u00a0", "c");  // two bytes of white space
  EXPECT_EQ(wide.scored, 3);
}

TEST(SplitTokens, SplitsAtTheTokensOfTheContextAlone) {
  // "ab" is one token, so the context "a" has as many as the whole "ab c" has in front of " c".
  Json json = parse_json(testing::byte_tokenizer_json(), "tokenizer.json");
  json["model"]["vocab"]["ab"] = 256;
  json["model"]["merges"] = {"a b"};
  const auto tokenizer = text::Tokenizer::from_json(dump_json(json), "tokenizer.json");
  const ScoredText text = split_tokens(tokenizer, "a", "b c");
  EXPECT_EQ(text.ids, (std::vector<int32_t>{256, ' ', 'c'}));
  EXPECT_EQ(text.scored, 2);
  expect_error([&] { (void)split_tokens(tokenizer, "a", "b"); }, ErrorCode::kBadText,
               "no tokens of its own");
}

TEST(SplitTokens, PutsTheLeadingTokenInFront) {
  expect_error([&] { (void)split_tokens(byte_tokenizer(), " ", "b"); }, ErrorCode::kBadText,
               "has no tokens");
  Json json = parse_json(testing::byte_tokenizer_json(), "tokenizer.json");
  json["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single",
       {{{"SpecialToken", {{"id", "!"}, {"type_id", 0}}}},
        {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
      {"pair", Json::array()},
      {"special_tokens", {{"!", {{"id", "!"}, {"ids", {33}}, {"tokens", {"!"}}}}}}};
  const auto tokenizer = text::Tokenizer::from_json(dump_json(json), "tokenizer.json");
  const ScoredText text = split_tokens(tokenizer, "a", " b");
  EXPECT_EQ(text.ids, bytes_of("!a b"));
  EXPECT_EQ(text.scored, 2);
  EXPECT_EQ(split_tokens(tokenizer, " ", "b").ids, bytes_of("! b"));  // that is a context too
}

TEST(ReadTask, CountsCharactersNotBytes) {
  const TemporaryDirectory dir;
  io::write_file(
      dir / "t.jsonl",
      "{\"query\": \"q\", \"choices\": [\"na\u00efve\", \"\u4e2d\u6587\"], \"gold\": 1}");
  const Task task = read_task(dir / "t.jsonl", 0);
  EXPECT_EQ(task.name, "t");
  EXPECT_EQ(task.items.at(0).options.at(0).characters, 5);
  EXPECT_EQ(task.items.at(0).options.at(1).characters, 2);
  EXPECT_EQ(task.items.at(0).options.at(1).continuation, " \u4e2d\u6587");
}

TEST(ReadTask, EveryBadLineIsNamed) {
  struct Row {
    const char* line;
    ErrorCode code;
    const char* part;
  };
  const TemporaryDirectory dir;
  const std::string good = R"({"query": "q", "choices": ["a", "b"], "gold": 1})";
  const std::vector<Row> rows = {
      {"{", ErrorCode::kBadFile, "t.jsonl line 3: "},
      {"[1]", ErrorCode::kBadFile, "t.jsonl line 3"},
      {"{}", ErrorCode::kBadText, "t.jsonl line 3: not a question; give the fields query"},
      {R"({"choices": ["a", "b"], "gold": 0})", ErrorCode::kBadFile, "missing \"query\""},
      {R"({"query": "", "choices": ["a", "b"], "gold": 0})", ErrorCode::kBadText,
       "query must be a text that is not empty"},
      {R"({"query": "q", "choices": "a", "gold": 0})", ErrorCode::kBadFile, "choices"},
      {R"({"query": "q", "choices": ["a"], "gold": 0})", ErrorCode::kBadText,
       "choices has 1 entries; a question needs at least 2"},
      {R"({"query": "q", "choices": ["a", ""], "gold": 0})", ErrorCode::kBadText,
       "choices[1] must be a text that is not empty, found \"\""},
      {R"({"query": "q", "choices": ["a", 2], "gold": 0})", ErrorCode::kBadText,
       "choices[1] must be a text that is not empty, found 2"},
      {R"({"query": "q", "choices": ["a", "b"]})", ErrorCode::kBadFile, "missing \"gold\""},
      {R"({"query": "q", "choices": ["a", "b"], "gold": 2})", ErrorCode::kBadFile,
       "gold must be an integer from 0 to 1"},
      {R"({"query": "q", "choices": ["a", "b"], "gold": "A"})", ErrorCode::kBadFile, "gold"},
      {R"({"context": "c", "continuation": "d"})", ErrorCode::kBadText,
       "another kind of question than"},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.line);
    io::write_file(dir / "t.jsonl", good + "\n\n" + row.line + "\n");
    expect_error([&] { (void)read_task(dir / "t.jsonl", 0); }, row.code, row.part);
    expect_error([&] { (void)read_task(dir / "t.jsonl", 0); }, row.code, "t.jsonl line 3");
    EXPECT_EQ(read_task(dir / "t.jsonl", 1).items.size(), 1U);  // stops before it
  }
  io::write_file(dir / "t.jsonl", "\n \n");
  expect_error([&] { (void)read_task(dir / "t.jsonl", 0); }, ErrorCode::kBadText,
               "t.jsonl: no questions; give one JSON object per line");
  expect_error([&] { (void)read_task(dir / "none.jsonl", 0); }, ErrorCode::kFileNotFound,
               "none.jsonl");
}

// The same from whole sequences of one length, as perplexity is computed.
Likelihood one_at_a_time(const arch::Model& model, const ScoredText& text) {
  const RunContext ctx = two_threads();
  std::vector<int32_t> ids = text.ids;
  const auto length = std::ssize(ids);
  const auto hidden = ForwardPass(model, ids, length).finish(ctx);
  Mat buffer;
  Mat logits(length, model.config().vocab_size);
  project_logits(ctx, hidden.read(0, length, buffer), read_head(model), logits);
  const auto softmax = nn::row_log_sum_exp(logits);
  Likelihood sum{.greedy = true};
  for (int64_t row = length - 1 - text.scored; row + 1 < length; ++row) {
    const auto i = static_cast<size_t>(row);
    sum.log_likelihood += static_cast<double>(logits(row, ids[i + 1])) - softmax[i].log_sum;
    sum.greedy = sum.greedy && softmax[i].argmax == ids[i + 1];
  }
  return sum;
}

TEST(Likelihoods, AreThoseOfEachTextAlone) {
  const std::vector<std::vector<ScoredText>> groups = {
      {{bytes_of("a question with"), 1}},
      {{bytes_of("shared context x"), 1}, {bytes_of("shared context y"), 1}},  // nothing of its own
      {{bytes_of("shared context one"), 4},
       {bytes_of("shared context and another, longer"), 20},
       {bytes_of("shared"), 2}},
      {{bytes_of("nothing"), 3}, {bytes_of("in common"), 8}},
      {{bytes_of(std::string(300, 'z') + " long"), 5}, {bytes_of(std::string(300, 'z') + "!"), 1}},
      {}};
  for (const arch::Architecture* family : arch::architectures()) {
    const arch::Model model = TinyModel{.architecture = std::string(family->name())}.open();
    double last = 0;
    const auto results = likelihoods(two_threads(), model, groups, [&](double share) {
      EXPECT_GE(share, last);
      last = share;
    });
    EXPECT_NEAR(last, 1.0, 1e-9);
    ASSERT_EQ(results.size(), groups.size());
    for (size_t g = 0; g < groups.size(); ++g) {
      ASSERT_EQ(results[g].size(), groups[g].size());
      for (size_t i = 0; i < groups[g].size(); ++i) {
        const Likelihood expected = one_at_a_time(model, groups[g][i]);
        EXPECT_NEAR(results[g][i].log_likelihood, expected.log_likelihood, 1e-4);
        EXPECT_EQ(results[g][i].greedy, expected.greedy);
      }
    }
  }
}

TEST(Likelihoods, KeepTheEndOfTextsBeyondTheModelsPositions) {
  const arch::Model model = TinyModel{}.open();  // 512 positions
  const std::string text = testing::random_text(700, 3).substr(0, 700);
  const std::vector<std::vector<ScoredText>> groups = {{{bytes_of(text), 10}},
                                                       {{bytes_of(text.substr(700 - 513)), 10}}};
  const auto results = likelihoods(two_threads(), model, groups, [](double) {});
  EXPECT_NEAR(results[0][0].log_likelihood, results[1][0].log_likelihood, 1e-4);
}

TEST(Likelihoods, KnowWhatIsGreedy) {
  const arch::Model model =
      testing::BigramModel{.logit = [](int a, int b) { return b == a + 1 ? 3.0F : 0.0F; }}.open();
  const std::vector<std::vector<ScoredText>> groups = {
      {{bytes_of("abcde"), 3}, {bytes_of("abcdf"), 3}, {bytes_of("acde"), 2}}};
  const auto results = likelihoods(two_threads(), model, groups, [](double) {});
  EXPECT_TRUE(results[0][0].greedy);
  EXPECT_FALSE(results[0][1].greedy);
  EXPECT_TRUE(results[0][2].greedy);
  EXPECT_NEAR(results[0][0].log_likelihood, 3 * (3 - std::log(255 + std::exp(3.0))), 1e-4);
}

TEST(TaskMetrics, TheFirstOfEqualOptionsCounts) {
  Task task{.kind = TaskKind::kContexts};
  for (const int64_t gold : {0, 1}) {
    task.items.push_back({.options = {{"a", " c", 1}, {"b", " c", 1}}, .gold = gold, .where = ""});
  }
  const std::vector<std::vector<Likelihood>> equal(2, {{.log_likelihood = -1}, {-1}});
  const auto metrics = task_metrics(task, equal);
  ASSERT_EQ(metrics.size(), 1U);
  EXPECT_EQ(metrics[0].name, "acc");
  EXPECT_EQ(metrics[0].value, 0.5);
  EXPECT_EQ(metrics[0].error, 0.5);
}

TEST(ScoreTask, NamesTheLineThatDoesNotFitTheModel) {
  const arch::Model model = TinyModel{}.open();
  Task task{.kind = TaskKind::kLastWord};
  task.items.push_back({.options = {{"a", std::string(600, 'b'), 600}}, .where = "t.jsonl line 1"});
  expect_error(
      [&] { (void)score_task(two_threads(), model, byte_tokenizer(), task, [](double) {}); },
      ErrorCode::kBadText, "t.jsonl line 1: 600 tokens to predict are more than the model's 512");
}

}  // namespace
}  // namespace lpcd::eval
