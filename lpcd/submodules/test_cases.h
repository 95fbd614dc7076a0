#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "lpcd/nn/ops.h"
#include "lpcd/submodules/coupled.h"
#include "lpcd/submodules/relax.h"
#include "tests/support/matrices.h"

// What the tests of the submodules run over: small blocks of every family, streams of a few
// sequences, and each pair of a submodule and a layer that it relaxes.
namespace lpcd::submodules {

using arch::BlockForward;
using arch::BlockWeights;
using arch::ModelConfig;
using arch::Role;
using testing::random_mat;
using testing::with_threads;

inline ModelConfig small_config(const std::string& family = "llama") {
  ModelConfig c;
  c.architecture = family == "llama3" ? "llama" : family;
  c.vocab_size = 64;
  c.hidden = 24;
  c.ffn = 40;
  c.blocks = 1;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 8;
  c.max_positions = 256;
  c.qk_norm = family == "qwen3";
  c.qkv_bias = family == "qwen2";
  if (family == "llama3") {
    c.rope_scaling = {.kind = nn::RopeScaling::Kind::kLlama3,
                      .factor = 8,
                      .low_freq_factor = 1,
                      .high_freq_factor = 4,
                      .original_context = 64};
  }
  return c;
}

inline BlockWeights random_block(const ModelConfig& c, uint64_t seed) {
  BlockWeights w;
  for (const Role role : arch::kLinearRoles) {
    const auto shape = c.shape(role);
    w[role] =
        random_mat(shape[0], shape[1], seed++, 1.0F / std::sqrt(static_cast<float>(shape[1])));
  }
  for (const Role role : {Role::kAttentionNorm, Role::kFfnNorm, Role::kQNorm, Role::kKNorm}) {
    if (!c.has(role)) continue;
    w[role] = random_mat(1, c.shape(role)[0], seed++, 0.2F);
    for (int64_t i = 0; i < w[role].size(); ++i) w[role].data()[i] += 1.0F;
  }
  for (const Role role : {Role::kQBias, Role::kKBias, Role::kVBias}) {
    if (c.has(role)) w[role] = random_mat(1, c.shape(role)[0], seed++, 0.5F);
  }
  return w;
}

inline BlockWeights clone(const BlockWeights& w) {
  BlockWeights copy;
  for (size_t i = 0; i < w.tensors.size(); ++i) copy.tensors[i] = w.tensors[i].clone();
  return copy;
}

// Streams of `sequences` sequences; the last `held_out` of them enter no solve.
class FixedSource final : public SequenceSource {
 public:
  FixedSource(int64_t length, int64_t sequences, int64_t held_out, int64_t hidden, uint64_t seed,
              int64_t chunk)
      : length_(length),
        solve_(length * (sequences - held_out)),
        all_(length * sequences),
        chunk_(chunk),
        x_f(random_mat(all_, hidden, seed)),
        x_q(x_f.clone()),
        y_f(random_mat(all_, hidden, seed + 1)) {
    const Mat noise = random_mat(all_, hidden, seed + 2, 0.1F);
    for (int64_t i = 0; i < x_q.size(); ++i) x_q.data()[i] += noise.data()[i];
  }

  int64_t seq_len() const override { return length_; }
  int64_t tokens(Part part) const override {
    if (part == Part::kSample && half_sampled) return (solve_ / length_ + 1) / 2 * length_;
    return part == Part::kHeldOut ? all_ - solve_ : solve_;
  }
  void for_chunks(Part part, const std::function<void(const SequenceChunk&)>& body) const override {
    const int64_t begin = part == Part::kHeldOut ? solve_ : 0;
    const int64_t end = begin + tokens(part);
    for (int64_t r0 = begin; r0 < end; r0 += chunk_) {
      const int64_t n = std::min(chunk_, end - r0);
      body({.x_f = ConstView(x_f).rows_range(r0, n),
            .x_q = ConstView(x_q).rows_range(r0, n),
            .y_f = ConstView(y_f).rows_range(r0, n),
            .weights = std::span<const float>(weights).subspan(
                weights.empty() ? 0 : static_cast<size_t>(r0),
                weights.empty() ? 0 : static_cast<size_t>(n)),
            .first_row = r0});
    }
  }

 private:
  int64_t length_;
  int64_t solve_;
  int64_t all_;
  int64_t chunk_;

 public:
  Mat x_f, x_q, y_f;
  std::vector<float> weights;  // of the tokens
  bool half_sampled = false;   // curvature is measured on half of the sequences
};

constexpr int64_t kLength = 16;
constexpr int64_t kTiledLength = 150;

struct Case {
  const CoupledInfo* info;
  Role role;
  std::string family;
  bool weighted;
  bool reference = false;  // as the reference package has it

  [[nodiscard]] std::unique_ptr<Coupled> make(const BlockForward& forward,
                                              const BlockWeights& original) const {
    return (reference ? info->make_reference : info->make)(forward, original);
  }
  [[nodiscard]] std::string name() const {
    return std::string(info->name) + " " + std::string(arch::role_name(role)) + " of " + family +
           (weighted ? ", weighted tokens" : "") + (reference ? ", as the reference" : "");
  }
};

inline std::vector<Case> all_cases() {
  std::vector<Case> cases;
  for (const CoupledInfo& info : coupled_submodules()) {
    for (const Role role : info.relaxed) {
      for (const char* family : {"llama", "llama3", "qwen2", "qwen3"}) {
        for (const bool weighted : {false, true}) cases.push_back({&info, role, family, weighted});
        if (info.make_reference == nullptr || info.make_reference == info.make) continue;
        cases.push_back({&info, role, family, false, true});
      }
    }
  }
  return cases;
}

inline double objective_of(const RunContext& ctx, const Coupled& coupled, const FixedSource& source,
                           const BlockWeights& w) {
  double sum = 0;
  source.for_chunks(Part::kSolve, [&](const SequenceChunk& chunk) {
    sum += coupled.objective(ctx, chunk, w).weighted;
  });
  return sum;
}

inline Mat moved(const Mat& from, double step, const Mat& direction) {
  Mat to = from.clone();
  for (int64_t i = 0; i < to.size(); ++i) {
    to.data()[i] += static_cast<float>(step) * direction.data()[i];
  }
  return to;
}

inline double squared_distance_of(const Mat& a, const Mat& b) {
  const Mat difference = moved(a, -1.0, b);
  return nn::inner_product(difference, difference);
}

}  // namespace lpcd::submodules
