#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "lpcd/base/error.h"
#include "lpcd/io/tensor_source.h"

namespace lpcd::testing {

constexpr ErrorCode kBad = ErrorCode::kBadFile;

/// A file that cannot be read, and what is said about it.
struct BadFile {
  const char* name;
  std::string bytes;
  ErrorCode code;
  const char* part;  ///< of the message
};

/// Everything a user of a source does, on each tensor.
inline void use(const io::TensorSource& source) {
  for (const TensorInfo& info : source.tensors()) {
    EXPECT_EQ(source.raw(info.name).size(), static_cast<size_t>(info.bytes()));
    EXPECT_FALSE(source.location(info.name).empty());
    std::vector<float> values(static_cast<size_t>(info.elements()));
    try {
      source.read_f32(info.name, values);
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), ErrorCode::kUnsupportedModel);
    }
    source.release(info.name);
  }
}

}  // namespace lpcd::testing
