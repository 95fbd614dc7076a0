#pragma once

#include <gtest/gtest.h>

#include <string>

#include "lpcd/io/file.h"
#include "lpcd/lpcd.h"
#include "tests/support/paths.h"
#include "tests/support/tiny_model.h"

namespace lpcd::testing {

inline std::string file_bytes(const std::string& path) {
  return io::read_text_file(path, 1ULL << 30);
}

// A random model, text to calibrate on, and options of a run over both that takes a moment.
class WholeRun : public ::testing::Test {
 protected:
  void SetUp() override {
    TinyModel{}.write(model_);
    io::write_file(text_, random_text(60000, 7));
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

}  // namespace lpcd::testing
