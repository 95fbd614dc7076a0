#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "lpcd/bundle/open_model.h"
#include "lpcd/io/file.h"
#include "lpcd/lpcd.h"
#include "lpcd/pipeline/plan.h"
#include "tests/e2e/whole_run.h"
#include "tests/support/errors.h"
#include "tests/support/tiny_model.h"

// What happens to output folders: resuming, and refusing what is not ours to continue.

namespace lpcd {
namespace {

using testing::expect_error;
using testing::file_bytes;
using testing::TinyModel;
class ResumeTest : public testing::WholeRun {
 protected:
  // Runs until the first block is committed.
  void stop_half_way(const QuantizeOptions& o) const {
    std::atomic<bool> cancel{false};
    RunContext ctx;
    ctx.cancel = &cancel;
    ctx.progress = [&](const Progress& p) {
      cancel = p.stage == "quantize" && p.done > 0.6 * p.total;
    };
    expect_error([&] { quantize(o, ctx); }, ErrorCode::kCancelled, "stopped");
    ASSERT_TRUE(io::exists(o.out + "/.lpcd/blocks/00000/record.json"));
  }
};

// Stopped at many moments, resumed each time: always the bytes of the run that was not stopped.
TEST_F(ResumeTest, ResumesToTheSameBytesWhereverItWasStopped) {
  int all = 0;
  ctx_.progress = [&](const Progress&) { ++all; };
  quantize(options("whole"), ctx_);
  ctx_.progress = {};
  const std::string expected = weights("whole");
  for (const int percent : {1, 12, 23, 35, 50, 67, 82, 99}) {
    SCOPED_TRACE(percent);
    const int stop_at = std::max(1, all * percent / 100);
    const std::string out = "stopped" + std::to_string(percent);
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
TEST_F(ResumeTest, ResumingAFinishedRunLeavesItsRecordAndMakesWhatIsMissing) {
  QuantizeOptions o = options("done");
  const std::string record = quantize(o, ctx_).record_json;
  const std::string expected = weights("done");
  o.resume = true;
  EXPECT_EQ(quantize(o, ctx_).record_json, record);
  std::filesystem::remove(o.out + "/model.safetensors");
  quantize(o, ctx_);
  EXPECT_EQ(weights("done"), expected);
}

TEST_F(ResumeTest, RefusesToResumeWithOtherOptionsAndNamesThem) {
  QuantizeOptions o = options("out");
  stop_half_way(o);
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

// The token ids of the first run are kept: another text is refused, a text that is gone is no loss.
TEST_F(ResumeTest, TheTextOfTheFirstRunDecides) {
  quantize(options("whole"), ctx_);
  QuantizeOptions o = options("out");
  stop_half_way(o);
  o.resume = true;
  const std::string other = dir_ / "other.txt";
  io::write_file(other, testing::random_text(60000, 8));
  for (const std::string& calib : {other, std::string("self")}) {
    QuantizeOptions wrong = o;
    wrong.calib = calib;
    expect_error([&] { quantize(wrong, ctx_); }, ErrorCode::kResumeMismatch,
                 "--calib " + calib + " does not give the tokens that the run started with");
  }
  std::filesystem::remove(text_);
  std::string warning;
  RunContext ctx;
  ctx.log = [&](LogLevel level, std::string_view text) {
    if (level == LogLevel::kWarning) warning += text;
  };
  quantize(o, ctx);
  EXPECT_NE(warning.find("no such file any more"), std::string::npos) << warning;
  EXPECT_EQ(weights("out"), weights("whole"));
}

TEST_F(ResumeTest, TokenIdsInAFileAreKeptAsWell) {
  quantize(options("whole"), ctx_);
  const std::string ids = dir_ / "ids.safetensors";
  std::filesystem::copy_file(dir_ / "whole/.lpcd/calibration.safetensors", ids);
  QuantizeOptions o = options("out");
  o.calib = ids;
  stop_half_way(o);
  o.resume = true;
  QuantizeOptions fewer = o;
  fewer.samples = 12;
  expect_error([&] { quantize(fewer, ctx_); }, ErrorCode::kResumeMismatch,
               "options/samples was 24, is 12");
  std::filesystem::remove(ids);
  quantize(o, ctx_);
  EXPECT_EQ(weights("out"), weights("whole"));
}

// Two formats in one folder would be read as one model.
TEST_F(ResumeTest, RefusesToResumeInAnotherFormat) {
  QuantizeOptions o = options("out");
  const std::string before = (quantize(o, ctx_), weights("out"));
  o.resume = true;
  o.formats = {"dense:fp16"};
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kResumeMismatch, "lpcd export");
  o = options("out");
  o.resume = true;
  o.shard_size = "300K";
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kResumeMismatch, "--shard-size was");
  EXPECT_EQ(weights("out"), before);
}

// Resuming fails as long as the output cannot be written there; the work is not lost.
TEST_F(ResumeTest, ARunWhoseOutputCannotBeWrittenIsExportedElsewhere) {
  quantize(options("whole"), ctx_);
  QuantizeOptions o = options("out");
  stop_half_way(o);
  o.resume = true;
  const auto exported = [&] {
    return export_model({.source = o.out, .format = "gptq:3,g32", .out = dir_ / "elsewhere"}, ctx_);
  };
  expect_error(exported, ErrorCode::kBadModel, "the run is not finished");
  io::make_directories(o.out + "/model.safetensors/in the way");
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kWriteFailed, "all blocks are kept");
  EXPECT_NE(inspect(o.out).summary.find("write with    lpcd export"), std::string::npos);
  exported();
  EXPECT_EQ(weights("elsewhere"), weights("whole"));
  std::filesystem::remove_all(o.out + "/model.safetensors");
  quantize(o, ctx_);
  EXPECT_EQ(weights("out"), weights("whole"));
}

// A folder that was copied is looked at itself, not where its record says that it was made.
TEST_F(ResumeTest, AFinishedRunIsJudgedWhereItIs) {
  QuantizeOptions o = options("first");
  quantize(o, ctx_);
  std::filesystem::copy(o.out, dir_ / "second", std::filesystem::copy_options::recursive);
  std::filesystem::remove(dir_ / "second/model.safetensors");
  o.out = dir_ / "second";
  o.resume = true;
  EXPECT_EQ(quantize(o, ctx_).outputs, std::vector<std::string>{o.out});
  EXPECT_EQ(weights("second"), weights("first"));
}

// Activations in memory, those of the feed-forward part computed twice, and all on disk, with a
// second cycle that comes back to them: the same bytes, and one can go on where another stopped.
TEST_F(ResumeTest, DoesNotDependOnTheMemoryLimit) {
  const arch::Model model = bundle::open_model(model_);
  QuantizeOptions o = options("roomy");
  o.alt_steps = 2;
  quantize(o, ctx_);
  pipeline::Plan plan = pipeline::make_plan(model, o, 1ULL << 40);
  EXPECT_TRUE(plan.keep_ffn_activations);
  EXPECT_FALSE(plan.activations_on_disk);

  o.out = dir_ / "narrow";
  o.max_memory = std::to_string(plan.peak_memory - 1);
  plan = pipeline::make_plan(model, o, 1ULL << 40);
  EXPECT_FALSE(plan.keep_ffn_activations);
  EXPECT_FALSE(plan.activations_on_disk);
  quantize(o, ctx_);
  EXPECT_EQ(weights("narrow"), weights("roomy"));

  o.out = dir_ / "disk";
  o.max_memory = std::to_string(plan.peak_memory - 1);
  EXPECT_TRUE(pipeline::make_plan(model, o, 1ULL << 40).activations_on_disk);
  stop_half_way(o);
  const std::string roomy = options("").max_memory;
  const std::string tight = std::exchange(o.max_memory, roomy);
  std::filesystem::copy(o.out, dir_ / "moved", std::filesystem::copy_options::recursive);
  o.resume = true;
  quantize(o, ctx_);
  EXPECT_EQ(weights("disk"), weights("roomy"));
  o.out = dir_ / "moved";
  o.max_memory = tight;
  quantize(o, ctx_);
  EXPECT_EQ(weights("moved"), weights("roomy"));
}

// The streams only save time later.
TEST_F(ResumeTest, StreamsThatCannotBeSavedDoNotEndTheRun) {
  TinyModel{.blocks = 4}.write(model_);
  quantize(options("whole"), ctx_);
  const QuantizeOptions o = options("out");
  std::vector<std::string> warnings;
  ctx_.log = [&](LogLevel level, std::string_view text) {
    if (level == LogLevel::kWarning) warnings.emplace_back(text);
  };
  ctx_.progress = [&](const Progress& p) {
    if (p.stage == "quantize") io::make_directories(o.out + "/.lpcd/state.bin/in the way");
  };
  quantize(o, ctx_);
  EXPECT_EQ(weights("out"), weights("whole"));
  ASSERT_EQ(warnings.size(), 1U);  // however many saves failed alike
  EXPECT_NE(warnings[0].find("state.bin: cannot"), std::string::npos) << warnings[0];
  EXPECT_NE(warnings[0].find("going on"), std::string::npos) << warnings[0];
}

// As the message about a damaged block advises. Blocks behind it are not made again.
TEST_F(ResumeTest, ABlockThatWasTakenAwayIsMadeAgainAlone) {
  TinyModel{.blocks = 4}.write(model_);
  QuantizeOptions o = options("out");
  quantize(o, ctx_);
  const std::string expected = weights("out");
  const auto when_made = [&](const char* block) {
    return std::filesystem::last_write_time(o.out + "/.lpcd/blocks/" + block + "/record.json");
  };
  const auto before = when_made("00000");
  const auto behind = when_made("00003");
  std::filesystem::remove_all(o.out + "/.lpcd/blocks/00001");
  expect_error(
      [&] { export_model({.source = o.out, .format = "dense:fp16", .out = dir_ / "x"}, ctx_); },
      ErrorCode::kBadModel, "block 1 is not there any more");
  EXPECT_NE(inspect(o.out).summary.find("--resume"), std::string::npos);
  std::vector<std::string> items;
  ctx_.progress = [&](const Progress& p) {
    if (p.stage == "resume") items.emplace_back(p.item);
  };
  o.resume = true;
  quantize(o, ctx_);
  EXPECT_EQ(weights("out"), expected);
  EXPECT_TRUE(io::exists(o.out + "/.lpcd/blocks/00001/record.json"));
  EXPECT_EQ(when_made("00000"), before);
  EXPECT_EQ(when_made("00003"), behind);
  // Nothing behind the gap needs the streams.
  EXPECT_EQ(items, std::vector<std::string>{"running block 1/1 again"});

  // A gap further behind: what is between is run, not made.
  items.clear();
  std::filesystem::remove_all(o.out + "/.lpcd/blocks/00000");
  std::filesystem::remove_all(o.out + "/.lpcd/blocks/00002");
  io::write_file(o.out + "/.lpcd/blocks/00003/.record.json.lpcd-tmp-1-0", "half");
  quantize(o, ctx_);
  EXPECT_EQ(weights("out"), expected);
  EXPECT_EQ(items, std::vector<std::string>{"running block 2/3 again"});
  EXPECT_EQ(when_made("00003"), behind);
  EXPECT_FALSE(io::exists(o.out + "/.lpcd/blocks/00003/.record.json.lpcd-tmp-1-0"));
}

// Writing its own text takes a large model hours: whole batches of it are kept.
TEST_F(ResumeTest, TextThatTheModelWritesIsGoneOnWith) {
  QuantizeOptions o = options("whole");
  o.calib = "self";
  o.samples = 130;  // two batches of 64 and one of 2
  o.seq_len = 12;
  quantize(o, ctx_);
  std::atomic<bool> cancel{false};
  RunContext ctx;
  ctx.cancel = &cancel;
  ctx.progress = [&](const Progress& p) {
    cancel = p.stage == "calibrate" && p.done > 0.7 * p.total;
  };
  o.out = dir_ / "out";
  expect_error([&] { quantize(o, ctx); }, ErrorCode::kCancelled, "stopped");
  EXPECT_TRUE(io::exists(o.out + "/.lpcd/sample.json"));
  double first = -1;
  ctx_.progress = [&](const Progress& p) {
    if (p.stage == "calibrate" && first < 0) first = p.done / p.total;
  };
  quantize(o, ctx_);
  EXPECT_GT(first, 64.0 / 130);
  EXPECT_LT(first, 0.6);
  EXPECT_EQ(weights("out"), weights("whole"));
  EXPECT_FALSE(io::exists(o.out + "/.lpcd/sample.json"));

  // A damaged one is no obstacle.
  o.out = dir_ / "damaged";
  io::make_directories(o.out + "/.lpcd");
  io::write_file(o.out + "/.lpcd/sample.json", R"({"key")");
  quantize(o, ctx_);
  EXPECT_EQ(weights("damaged"), weights("whole"));

  // Another seed is another text.
  o.out = dir_ / "other";
  cancel = false;
  expect_error([&] { quantize(o, ctx); }, ErrorCode::kCancelled, "stopped");
  o.seed = 3;
  first = -1;
  quantize(o, ctx_);
  EXPECT_LT(first, 0.1);
  EXPECT_NE(weights("other"), weights("whole"));
}

TEST_F(ResumeTest, TextThatIsWrittenIsPlannedNoMore) {
  QuantizeOptions o = options("out");
  o.calib = "self";
  stop_half_way(o);
  o.dry_run = true;
  EXPECT_NE(quantize(o, ctx_).plan_json.find("\"sampling\""), std::string::npos);
  o.resume = true;
  EXPECT_EQ(quantize(o, ctx_).plan_json.find("\"sampling\""), std::string::npos);
}

TEST_F(ResumeTest, RemovesWhatKilledProcessesLeft) {
  QuantizeOptions o = options("out");
  stop_half_way(o);
  const std::vector<std::string> left = {"/.model.safetensors.lpcd-tmp-1-0",
                                         "/.lpcd/.state.bin.lpcd-tmp-1-0",
                                         "/.lpcd/blocks/00000/.record.json.lpcd-tmp-1-0"};
  for (const std::string& name : left) io::write_file(o.out + name, "half");
  o.resume = true;
  quantize(o, ctx_);
  for (const std::string& name : left) EXPECT_FALSE(io::exists(o.out + name)) << name;
  const std::string exported = dir_ / "exported";
  io::make_directories(exported);
  io::write_file(exported + "/.model.safetensors.lpcd-tmp-1-0", "half");
  export_model({.source = o.out, .format = "dense:fp16", .out = exported}, ctx_);
  EXPECT_FALSE(io::exists(exported + "/.model.safetensors.lpcd-tmp-1-0"));
}

TEST_F(ResumeTest, ExportsIntoARunAreRefused) {
  quantize(options("done"), ctx_);
  QuantizeOptions o = options("unfinished");
  stop_half_way(o);
  expect_error(
      [&] { export_model({.source = dir_ / "done", .format = "dense:fp16", .out = o.out}, ctx_); },
      ErrorCode::kOutputExists, "holds a run");
}

TEST_F(ResumeTest, LeavesOtherPeoplesDirectoriesAlone) {
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

TEST_F(ResumeTest, RefusesTwoProcessesOnOneOutput) {
  QuantizeOptions o = options("out");
  {
    io::make_directories(o.out);
    const io::DirectoryLock lock(o.out);
    expect_error([&] { quantize(o, ctx_); }, ErrorCode::kLocked, o.out);
  }
  EXPECT_NO_THROW(quantize(o, ctx_));
}

TEST_F(ResumeTest, StartsAgainWhereARunDiedBeforeItsFirstCommit) {
  QuantizeOptions o = options("out");
  io::make_directories(o.out + "/.lpcd/blocks");
  io::write_file(o.out + "/.lpcd-lock", "");
  io::write_file(o.out + "/.lpcd/calibration.json", "{");
  EXPECT_NO_THROW(quantize(o, ctx_));
}

}  // namespace
}  // namespace lpcd
