#include <gtest/gtest.h>

#include <atomic>
#include <filesystem>
#include <string>

#include "lpcd/io/file.h"
#include "lpcd/lpcd.h"
#include "tests/e2e/whole_run.h"
#include "tests/support/errors.h"
#include "tests/support/tiny_model.h"

// What happens to output folders: resuming, and refusing what is not ours to continue.

namespace lpcd {
namespace {

using testing::expect_error;
using testing::file_bytes;
using testing::TinyModel;
using ResumeTest = testing::WholeRun;

// Stopped at many moments, resumed each time: always the bytes of the run that was not stopped.
TEST_F(ResumeTest, ResumesToTheSameBytesWhereverItWasStopped) {
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
