#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "lpcd/arch/model.h"
#include "lpcd/base/json.h"

namespace lpcd::testing {

/// A random model of a registered architecture, small enough for any test.
struct TinyModel {
  std::string architecture = "llama";
  int64_t vocab = 256;
  int64_t hidden = 64;
  int64_t ffn = 96;
  int64_t blocks = 2;
  int64_t heads = 4;
  int64_t kv_heads = 2;
  int64_t head_dim = 16;
  bool tied = true;
  DType dtype = DType::kF32;
  uint64_t seed = 1;
  /// Changes a tensor: Hugging Face name, values by rows.
  std::function<void(const std::string& name, std::span<float> values)> edit;

  /// Its config.json.
  [[nodiscard]] Json config() const;
  /// Its tensors, under their Hugging Face names.
  [[nodiscard]] std::vector<NamedTensor> tensors() const;
  /// Held in memory.
  [[nodiscard]] arch::Model open() const;
  /// Writes config.json, model.safetensors and a byte-level tokenizer.json (ids are bytes).
  void write(const std::string& directory) const;
};

/// A model over the 256 bytes that looks at the last byte only: the logit of byte b after byte a is
/// `logit(a, b)`. For figures that can be worked out by hand.
struct BigramModel {
  std::function<float(int a, int b)> logit;

  [[nodiscard]] arch::Model open() const;
  /// As TinyModel::write.
  void write(const std::string& directory) const;
};

/// A tokenizer.json whose 256 tokens are the bytes 0 to 255, in this order.
[[nodiscard]] std::string byte_tokenizer_json();

/// Text of about `bytes` bytes that a byte model has something to learn from: words that follow
/// each other by rule and chance.
[[nodiscard]] std::string random_text(size_t bytes, uint64_t seed);

}  // namespace lpcd::testing
