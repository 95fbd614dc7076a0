#include "tests/support/tiny_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <random>

#include "lpcd/format/output_format.h"
#include "lpcd/io/file.h"
#include "lpcd/io/safetensors.h"

namespace lpcd::testing {
namespace {

// GPT-2's printable stand-in for each byte, as UTF-8.
std::string byte_symbol(int byte) {
  int code = byte;
  const bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
  if (!printable) {
    int shift = 0;
    for (int b = 0; b < byte; ++b) {
      if (!((b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174)) ++shift;
    }
    code = 256 + shift;
  }
  if (code < 128) return {static_cast<char>(code)};
  return {static_cast<char>(0xC0 | (code >> 6)), static_cast<char>(0x80 | (code & 0x3F))};
}

void write_model(const std::string& directory, const Json& config,
                 std::vector<NamedTensor> tensors) {
  io::make_directories(directory);
  std::vector<io::TensorProducer> producers;
  for (NamedTensor& t : tensors) {
    producers.push_back({t.info, [data = std::move(t.data)] { return data; }});
  }
  io::PendingFiles pending;
  io::write_safetensors(directory, "model", std::move(producers), ~uint64_t{0}, pending);
  pending.commit();
  io::write_file(directory + "/config.json", dump_json(config, 2));
  io::write_file(directory + "/tokenizer.json", byte_tokenizer_json());
}

// Attention and feed-forward add nothing, so that every byte reaches the head as a unit vector.
constexpr int64_t kBytes = 256;
const TinyModel kBigramShape{.vocab = kBytes, .hidden = kBytes, .blocks = 1, .tied = false};

std::vector<NamedTensor> bigram_tensors(const BigramModel& model) {
  TinyModel shape = kBigramShape;
  shape.edit = [&](const std::string& name, std::span<float> values) {
    std::ranges::fill(values, 0.0F);
    if (name == "model.norm.weight") {
      std::ranges::fill(values, std::sqrt(1.0F / kBytes + 1e-5F));  // undoes the norm
    } else if (name.ends_with("norm.weight")) {
      std::ranges::fill(values, 1.0F);
    } else if (name == "model.embed_tokens.weight" || name == "lm_head.weight") {
      for (int row = 0; row < kBytes; ++row) {
        for (int col = 0; col < kBytes; ++col) {
          const float unit = row == col ? 1.0F : 0.0F;
          values[static_cast<size_t>(row * kBytes + col)] =
              name == "lm_head.weight" ? model.logit(col, row) : unit;
        }
      }
    }
  };
  return shape.tensors();
}

}  // namespace

Json TinyModel::config() const {
  return {{"architectures", {arch::find_architecture(architecture).hf_class()}},
          {"model_type", architecture},
          {"vocab_size", vocab},
          {"hidden_size", hidden},
          {"intermediate_size", ffn},
          {"num_hidden_layers", blocks},
          {"num_attention_heads", heads},
          {"num_key_value_heads", kv_heads},
          {"head_dim", head_dim},
          {"max_position_embeddings", 512},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"hidden_act", "silu"},
          {"tie_word_embeddings", tied},
          {"torch_dtype", "float32"}};
}

std::vector<NamedTensor> TinyModel::tensors() const {
  const arch::Architecture& family = arch::find_architecture(architecture);
  const Json json = config();
  const arch::ModelConfig model = family.from_hf(JsonFields(json, "config.json"));
  std::mt19937_64 rng(seed);
  std::vector<NamedTensor> result;
  for (const arch::RoleNames& names : family.names()) {
    if (!model.has(names.role)) continue;
    const auto shape = model.shape(names.role);
    // Matrices keep the size of what they read; norms are near 1; biases and embeddings are of
    // size 1/2.
    const bool matrix = shape.size() == 2;
    const bool embedding = names.role == arch::Role::kEmbedding;
    const bool bias = names.hf.ends_with(".bias");
    const float spread = embedding || bias ? 0.5F
                         : matrix          ? 1.0F / std::sqrt(static_cast<float>(shape[1]))
                                           : 0.1F;
    std::normal_distribution<float> normal(matrix || bias ? 0.0F : 1.0F, spread);
    const int64_t count = arch::is_block_role(names.role) ? model.blocks : 1;
    for (int64_t block = 0; block < count; ++block) {
      NamedTensor t;
      t.info = {arch::hf_name(family, names.role, block), dtype, shape};
      std::vector<float> values(static_cast<size_t>(t.info.elements()));
      for (float& v : values) v = normal(rng);
      if (edit) edit(t.info.name, values);
      t.data = format::encode_dense(t.info.name, values, dtype);
      result.push_back(std::move(t));
    }
  }
  return result;
}

arch::Model TinyModel::open() const {
  return arch::Model::from_hf(std::make_shared<io::MemoryTensorSource>(tensors()), config(),
                              "tiny");
}

void TinyModel::write(const std::string& directory) const {
  write_model(directory, config(), tensors());
}

arch::Model BigramModel::open() const {
  return arch::Model::from_hf(std::make_shared<io::MemoryTensorSource>(bigram_tensors(*this)),
                              kBigramShape.config(), "bigram");
}

void BigramModel::write(const std::string& directory) const {
  write_model(directory, kBigramShape.config(), bigram_tensors(*this));
}

std::string byte_tokenizer_json() {
  Json vocab = Json::object();
  for (int b = 0; b < 256; ++b) vocab[byte_symbol(b)] = b;
  const Json json = {{"version", "1.0"},
                     {"added_tokens", Json::array()},
                     {"normalizer", nullptr},
                     {"pre_tokenizer",
                      {{"type", "ByteLevel"},
                       {"add_prefix_space", false},
                       {"trim_offsets", true},
                       {"use_regex", true}}},
                     {"post_processor", nullptr},
                     {"decoder",
                      {{"type", "ByteLevel"},
                       {"add_prefix_space", true},
                       {"trim_offsets", true},
                       {"use_regex", true}}},
                     {"model",
                      {{"type", "BPE"},
                       {"dropout", nullptr},
                       {"unk_token", nullptr},
                       {"continuing_subword_prefix", nullptr},
                       {"end_of_word_suffix", nullptr},
                       {"fuse_unk", false},
                       {"byte_fallback", false},
                       {"vocab", vocab},
                       {"merges", Json::array()}}}};
  return dump_json(json);
}

std::string random_text(size_t bytes, uint64_t seed) {
  constexpr std::array<const char*, 16> kWords = {
      "the",  "river", "ran",  "under", "a",   "stone", "bridge", "and",
      "some", "birds", "sang", "while", "old", "boats", "moved",  "slowly"};
  std::mt19937_64 rng(seed);
  std::string text;
  size_t word = rng() % kWords.size();
  while (text.size() < bytes) {
    text += kWords[word];
    word = (word * 5 + 1 + rng() % 3) % kWords.size();
    text += rng() % 11 == 0 ? ".\n" : " ";
  }
  return text;
}

}  // namespace lpcd::testing
