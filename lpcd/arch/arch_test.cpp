#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <tuple>

#include "lpcd/arch/block_forward.h"
#include "lpcd/arch/decoder.h"
#include "lpcd/linalg/blas.h"
#include "tests/support/errors.h"
#include "tests/support/matrices.h"
#include "tests/support/tiny_model.h"

namespace lpcd::arch {
namespace {

using testing::expect_error;
using testing::same_bits;
using testing::TinyModel;
using testing::with_threads;

std::vector<std::string> all_architectures() {
  std::vector<std::string> names;
  for (const Architecture* a : architectures()) names.emplace_back(a->name());
  return names;
}

ModelConfig parse(const Json& json) {
  const JsonFields fields(json, "config.json");
  ModelConfig config = find_architecture(fields.string_at("model_type")).from_hf(fields);
  config.validate("config.json");
  return config;
}

TEST(ModelConfig, ReadsOldAndNewSpellingsAlike) {
  Json old_style = TinyModel{}.config();
  old_style["rope_theta"] = 500000.0;
  old_style["rope_scaling"] = {{"type", "llama3"},
                               {"factor", 8.0},
                               {"low_freq_factor", 1.0},
                               {"high_freq_factor", 4.0},
                               {"original_max_position_embeddings", 8192}};
  Json new_style = TinyModel{}.config();
  new_style.erase("rope_theta");
  new_style["rope_parameters"] = old_style["rope_scaling"];
  new_style["rope_parameters"]["rope_type"] = "llama3";
  new_style["rope_parameters"].erase("type");
  new_style["rope_parameters"]["rope_theta"] = 500000.0;
  for (const Json& json : {old_style, new_style}) {
    const ModelConfig c = parse(json);
    EXPECT_EQ(c.rope_theta, 500000.0);
    EXPECT_EQ(c.rope_scaling.kind, nn::RopeScaling::Kind::kLlama3);
    EXPECT_EQ(c.rope_scaling.factor, 8.0);
    EXPECT_EQ(c.rope_scaling.original_context, 8192);
  }
}

TEST(ModelConfig, DefaultsAreThoseOfTheReference) {
  Json json = TinyModel{}.config();
  for (const char* key :
       {"num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps", "hidden_act"}) {
    json.erase(key);
  }
  const ModelConfig c = parse(json);
  EXPECT_EQ(c.kv_heads, 4);
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_EQ(c.rope_theta, 10000.0);
  EXPECT_FLOAT_EQ(c.rms_eps, 1e-6F);
  json["model_type"] = "qwen3";
  EXPECT_EQ(parse(json).head_dim, 128);
  EXPECT_TRUE(parse(json).qk_norm);
}

TEST(ModelConfig, EveryBadFieldIsNamed) {
  struct Row {
    const char* key;
    Json value;
    ErrorCode code;
    const char* part;
  };
  const std::vector<Row> rows = {
      {"model_type", "gpt2", ErrorCode::kUnsupportedModel, "supported are: llama, qwen2, qwen3"},
      {"model_type", 5, ErrorCode::kBadFile, "model_type must be a string"},
      {"hidden_size", 0, ErrorCode::kBadFile, "hidden_size must be an integer from 1"},
      {"hidden_size", -64, ErrorCode::kBadFile, "hidden_size"},
      {"hidden_size", "64", ErrorCode::kBadFile, "hidden_size"},
      {"hidden_size", 1e30, ErrorCode::kBadFile, "hidden_size"},
      {"num_hidden_layers", 1000000000, ErrorCode::kBadFile, "num_hidden_layers"},
      {"num_key_value_heads", 3, ErrorCode::kBadModel, "not a multiple of 3 key/value heads"},
      {"num_key_value_heads", 8, ErrorCode::kBadModel, "key/value heads = 8"},
      {"head_dim", 15, ErrorCode::kBadModel, "head dimension 15 is odd"},
      {"hidden_act", "gelu", ErrorCode::kUnsupportedModel, "hidden_act \"gelu\""},
      {"attention_bias", true, ErrorCode::kUnsupportedModel, "attention_bias"},
      {"rope_theta", 0, ErrorCode::kBadModel, "rope_theta = 0"},
      {"rope_theta", "x", ErrorCode::kBadFile, "rope_theta must be a finite number"},
      {"rope_scaling",
       {{"rope_type", "yarn"}, {"factor", 2}},
       ErrorCode::kUnsupportedModel,
       "rope type \"yarn\""},
      {"rope_scaling",
       {{"rope_type", "linear"}, {"factor", 0}},
       ErrorCode::kBadFile,
       "factor must be > 0"},
      {"rope_scaling",
       {{"rope_type", "llama3"}, {"factor", 2}},
       ErrorCode::kBadFile,
       "missing \"low_freq_factor\""},
      {"rms_norm_eps", 2, ErrorCode::kBadModel, "rms_norm_eps"},
  };
  for (const Row& row : rows) {
    Json json = TinyModel{}.config();
    json[row.key] = row.value;
    SCOPED_TRACE(std::string(row.key) + " = " + row.value.dump());
    expect_error([&] { (void)parse(json); }, row.code, row.part);
  }
  for (const char* key : {"model_type", "vocab_size", "hidden_size", "intermediate_size",
                          "num_hidden_layers", "num_attention_heads"}) {
    Json json = TinyModel{}.config();
    json.erase(key);
    expect_error([&] { (void)parse(json); }, ErrorCode::kBadFile,
                 std::string("missing \"") + key + "\"");
  }
}

TEST(Model, NamesAllMissingTensorsAtOnce) {
  const TinyModel tiny;
  auto tensors = tiny.tensors();
  std::erase_if(tensors, [](const NamedTensor& t) {
    return t.info.name == "model.norm.weight" || t.info.name == "model.layers.1.mlp.up_proj.weight";
  });
  const auto open = [&] {
    (void)Model::from_hf(std::make_shared<io::MemoryTensorSource>(tensors), tiny.config(), "dir");
  };
  expect_error(open, ErrorCode::kMissingTensor, "2 tensors are missing: ");
  expect_error(open, ErrorCode::kMissingTensor, "model.norm.weight");
  expect_error(open, ErrorCode::kMissingTensor, "model.layers.1.mlp.up_proj.weight");
}

TEST(Model, FindsATiedMatrixUnderTheNameOfTheHead) {
  const TinyModel tiny;
  auto tensors = tiny.tensors();
  const Mat expected = tiny.open().read(Role::kEmbedding);
  for (NamedTensor& t : tensors) {
    if (t.info.name == "model.embed_tokens.weight") t.info.name = "lm_head.weight";
  }
  const Model model =
      Model::from_hf(std::make_shared<io::MemoryTensorSource>(tensors), tiny.config(), "dir");
  EXPECT_TRUE(same_bits(model.read(Role::kEmbedding), expected));
  EXPECT_TRUE(same_bits(model.read(Role::kHead), expected));
}

NamedTensor filled(const std::string& name, std::vector<int64_t> shape, float value) {
  NamedTensor t;
  t.info = {name, DType::kF32, std::move(shape)};
  const std::vector<float> values(static_cast<size_t>(t.info.elements()), value);
  const auto bytes = std::as_bytes(std::span(values));
  t.data.assign(bytes.begin(), bytes.end());
  return t;
}

// A classifier's score, an adapter, a block more than the configuration says.
TEST(Model, RefusesTensorsThatWouldBeLost) {
  const TinyModel tiny;
  const auto open_with = [&](NamedTensor extra) {
    auto tensors = tiny.tensors();
    tensors.push_back(std::move(extra));
    (void)Model::from_hf(std::make_shared<io::MemoryTensorSource>(std::move(tensors)),
                         tiny.config(), "dir");
  };
  for (const auto& [name, shape, value] :
       std::vector<std::tuple<std::string, std::vector<int64_t>, float>>{
           {"score.weight", {3, 64}, 1},
           {"model.layers.2.mlp.up_proj.weight", {96, 64}, 1},
           {"model.layers.0.self_attn.q_proj.lora_A.weight", {8, 64}, 0},
           {"model.layers.0.self_attn.o_proj.bias", {64}, 0.5F},
           {"model.layers.0.mlp.up_proj.bias", {64}, 0}}) {  // of another shape than the layer's
    expect_error([&] { open_with(filled(name, shape, value)); }, ErrorCode::kUnsupportedModel,
                 "dir: holds a tensor that llama models here do not have: " + name);
  }
  for (const auto& [name, shape, value] :
       std::vector<std::tuple<std::string, std::vector<int64_t>, float>>{
           {"model.layers.0.self_attn.rotary_emb.inv_freq", {8}, 1},
           {"model.layers.0.self_attn.o_proj.bias", {64}, 0},
           {"model.layers.0.mlp.up_proj.bias", {96}, -0.0F},
           {"model.nothing", {0, 7}, 1}}) {
    SCOPED_TRACE(name);
    EXPECT_NO_THROW(open_with(filled(name, shape, value)));
  }
}

TEST(Model, RefusesOtherClassesOfTheFamily) {
  const TinyModel tiny;
  const auto open_as = [&](const Json& architectures) {
    Json config = tiny.config();
    config["architectures"] = architectures;
    (void)Model::from_hf(std::make_shared<io::MemoryTensorSource>(tiny.tensors()), config, "dir");
  };
  expect_error([&] { open_as(Json::array({"LlamaForSequenceClassification"})); },
               ErrorCode::kUnsupportedModel,
               "dir/config.json: architectures: \"LlamaForSequenceClassification\" is not "
               "supported; of llama models LlamaForCausalLM is");
  expect_error([&] { open_as(Json::array({"Qwen2ForCausalLM"})); }, ErrorCode::kUnsupportedModel,
               "LlamaForCausalLM");
  expect_error([&] { open_as(Json::array({7})); }, ErrorCode::kUnsupportedModel,
               "architectures: \"7\"");
  expect_error([&] { open_as("LlamaForCausalLM"); }, ErrorCode::kBadFile,
               "architectures must be an array");
  EXPECT_NO_THROW(open_as(Json::array({"LlamaForCausalLM"})));
  EXPECT_NO_THROW(open_as(Json::array()));
  EXPECT_NO_THROW(open_as(nullptr));
}

// As transformers 5 has it.
TEST(Model, IsTiedWhereAStoredHeadIsACopyOnly) {
  const TinyModel tiny;
  const auto embedding = tiny.tensors()[0];
  ASSERT_EQ(embedding.info.name, "model.embed_tokens.weight");
  const auto open_with = [&](NamedTensor head) {
    auto tensors = tiny.tensors();
    head.info.name = "lm_head.weight";
    tensors.push_back(std::move(head));
    return Model::from_hf(std::make_shared<io::MemoryTensorSource>(std::move(tensors)),
                          tiny.config(), "dir");
  };
  EXPECT_TRUE(open_with(embedding).config().tied_head);
  EXPECT_EQ(open_with(embedding).hf_config()["tie_word_embeddings"], true);
  NamedTensor other = embedding;
  other.data.back() ^= std::byte{0x40};
  const Model model = open_with(other);
  EXPECT_FALSE(model.config().tied_head);
  EXPECT_EQ(model.hf_config()["tie_word_embeddings"], false);
  EXPECT_FALSE(same_bits(model.read(Role::kHead), model.read(Role::kEmbedding)));
  other.info.shape = {64, 256};
  expect_error([&] { (void)open_with(other); }, ErrorCode::kShapeMismatch,
               "lm_head.weight is [64, 256], expected [256, 64]");
}

TEST(Model, NamesWrongShapesWithWhatWasExpected) {
  const TinyModel tiny;
  auto tensors = tiny.tensors();
  for (NamedTensor& t : tensors) {
    if (t.info.name == "model.layers.0.self_attn.k_proj.weight") t.info.shape = {64, 32};
  }
  expect_error(
      [&] {
        (void)Model::from_hf(std::make_shared<io::MemoryTensorSource>(tensors), tiny.config(),
                             "dir");
      },
      ErrorCode::kShapeMismatch, "k_proj.weight is [64, 32], expected [32, 64]");
}

TEST(Model, RefusesWeightsThatAreNotFiniteWhenTheyAreRead) {
  const TinyModel tiny;
  auto tensors = tiny.tensors();
  const float nan = std::nanf("");
  for (NamedTensor& t : tensors) {
    if (t.info.name == "model.layers.1.mlp.down_proj.weight")
      std::memcpy(t.data.data() + 40, &nan, 4);
  }
  const Model model =
      Model::from_hf(std::make_shared<io::MemoryTensorSource>(tensors), tiny.config(), "dir");
  EXPECT_NO_THROW((void)model.read_block(0));
  expect_error([&] { (void)model.read_block(1); }, ErrorCode::kNonFinite, "down_proj.weight");
}

TEST(Model, ChecksTheValuesOfEveryTensor) {
  const RunContext ctx = with_threads(2);
  EXPECT_NO_THROW(TinyModel{}.open().check_values(ctx));
  const Model model = TinyModel{}.open();
  for (const TensorInfo& info : model.source().tensors()) {
    TinyModel tiny;
    tiny.edit = [&](const std::string& name, std::span<float> values) {
      if (name == info.name) values.back() = std::numeric_limits<float>::infinity();
    };
    expect_error([&] { tiny.open().check_values(ctx); }, ErrorCode::kNonFinite, info.name);
  }
}

TEST(Model, IdentityTellsModelsApart) {
  EXPECT_EQ(TinyModel{}.open().identity(), TinyModel{}.open().identity());
  EXPECT_NE(TinyModel{}.open().identity(), TinyModel{.seed = 2}.open().identity());
  EXPECT_NE(TinyModel{}.open().identity(), TinyModel{.dtype = DType::kBF16}.open().identity());
}

TEST(Qwen2, RefusesSlidingWindows) {
  Json json = TinyModel{.architecture = "qwen2"}.config();
  json["use_sliding_window"] = false;
  json["sliding_window"] = 32768;  // published configurations carry it without using it
  EXPECT_TRUE(parse(json).qkv_bias);
  json["use_sliding_window"] = true;
  expect_error([&] { (void)parse(json); }, ErrorCode::kUnsupportedModel,
               "use_sliding_window = true is not supported");
}

TEST(Qwen2, NeedsEveryBiasInItsShape) {
  const TinyModel tiny{.architecture = "qwen2"};
  const auto open = [&](const std::vector<NamedTensor>& tensors) {
    (void)Model::from_hf(std::make_shared<io::MemoryTensorSource>(tensors), tiny.config(), "dir");
  };
  auto tensors = tiny.tensors();
  for (NamedTensor& t : tensors) {
    if (t.info.name == "model.layers.1.self_attn.k_proj.bias") t.info.shape = {16, 2};
  }
  expect_error([&] { open(tensors); }, ErrorCode::kShapeMismatch,
               "layers.1.self_attn.k_proj.bias is [16, 2], expected [32]");
  std::erase_if(tensors, [](const NamedTensor& t) { return t.info.name.ends_with("k_proj.bias"); });
  expect_error([&] { open(tensors); }, ErrorCode::kMissingTensor,
               "2 tensors are missing: model.layers.0.self_attn.k_proj.bias");
}

TEST(Qwen2, IsLlamaWhereTheBiasesAreZeroAndOnlyThere) {
  const TinyModel qwen{.architecture = "qwen2"};
  auto tensors = qwen.tensors();
  const Model with_biases = qwen.open();
  for (NamedTensor& t : tensors) {
    if (t.info.name.ends_with(".bias")) std::ranges::fill(t.data, std::byte{0});
  }
  const auto source = std::make_shared<io::MemoryTensorSource>(tensors);
  const Model zero = Model::from_hf(source, qwen.config(), "dir");
  const Model llama = Model::from_hf(source, TinyModel{}.config(), "dir");
  EXPECT_EQ(zero.parameters(), llama.parameters() + 2 * (64 + 32 + 32));
  Mat x(24, 64);
  for (int64_t i = 0; i < x.size(); ++i) x.data()[i] = std::sin(static_cast<float>(i) * 0.37F);
  const auto output = [&](const Model& model) {
    Mat y = x.clone();
    BlockForward(model.config(), 24).run(with_threads(1), model.read_block(1), y);
    return y;
  };
  EXPECT_TRUE(same_bits(output(zero), output(llama)));
  EXPECT_FALSE(same_bits(output(with_biases), output(llama)));
}

TEST(SequenceTiling, CutsDependOnTheLengthOnlyAndFitTogether) {
  for (const int64_t length : {1, 2, 31, 150, 300, 512, 700, 701, 1024, 2048, 4096, 8192, 10000}) {
    const SequenceTiling t = SequenceTiling::for_length(length);
    EXPECT_EQ(t.slab_rows % t.row_tile, 0) << length;
    EXPECT_EQ(t.slab_rows % length, 0) << length;
    EXPECT_EQ(t.chunk_rows % t.slab_rows, 0) << length;
    EXPECT_LE(t.row_tile, std::max<int64_t>(512, length)) << length;
  }
}

// A block of every registered family: stages in any chunking, and any number of threads.
TEST(BlockForward, DoesNotDependOnThreadsOrOnChunks) {
  for (const std::string& name : all_architectures()) {
    const Model model = TinyModel{.architecture = name}.open();
    const BlockWeights w = model.read_block(0);
    const BlockForward forward(model.config(), 48);
    const int64_t rows = forward.tiling().slab_rows * 3;
    Mat x(rows, 64);
    for (int64_t i = 0; i < x.size(); ++i) x.data()[i] = std::sin(static_cast<float>(i) * 0.37F);
    Mat whole = x.clone();
    forward.run(with_threads(1), w, whole);
    Mat parts = x.clone();
    for (int64_t r0 = 0; r0 < rows; r0 += forward.tiling().slab_rows) {
      forward.run(with_threads(3), w, parts.view().rows_range(r0, forward.tiling().slab_rows));
    }
    EXPECT_TRUE(same_bits(whole, parts)) << name;
  }
}

// Sequences of different lengths, and continuations that share a prefix, side by side: each gives
// what it gives alone.
TEST(BlockForward, MixedLengthsGiveWhatEachSequenceGivesAlone) {
  const std::vector<SequenceRows> batch = {
      {.row = 0, .rows = 7},
      {.row = 7, .rows = 70},
      {.row = 77, .rows = 3, .prefix_row = 7, .prefix_rows = 70},
      {.row = 80, .rows = 1, .prefix_row = 7, .prefix_rows = 70},
      {.row = 81, .rows = 1}};
  for (const std::string& name : all_architectures()) {
    const Model model = TinyModel{.architecture = name}.open();
    const BlockWeights w = model.read_block(0);
    Mat x(82, 64);
    for (int64_t i = 0; i < x.size(); ++i) x.data()[i] = std::sin(static_cast<float>(i) * 0.37F);
    Mat mixed = x.clone();
    BlockForward::for_mixed_lengths(model.config(), 73).run_mixed(with_threads(2), w, batch, mixed);
    for (const SequenceRows& s : batch) {
      const int64_t length = s.prefix_rows + s.rows;
      Mat alone(length, 64);
      copy(ConstView(x).rows_range(s.prefix_row, s.prefix_rows),
           alone.view().rows_range(0, s.prefix_rows));
      copy(ConstView(x).rows_range(s.row, s.rows), alone.view().rows_range(s.prefix_rows, s.rows));
      BlockForward(model.config(), length).run(with_threads(1), w, alone);
      for (int64_t r = 0; r < s.rows; ++r) {
        for (int64_t c = 0; c < 64; ++c) {
          ASSERT_NEAR(mixed(s.row + r, c), alone(s.prefix_rows + r, c), 1e-5) << name;
        }
      }
    }
  }
}

// The cached, token by token path must give the logits of the path over whole sequences.
TEST(Decoder, AgreesWithTheForwardPassOverTheSequence) {
  constexpr int64_t kLength = 20;
  RunContext ctx = with_threads(2);
  ctx.split_products = false;  // the decoder never splits
  for (const std::string& name : all_architectures()) {
    for (const bool tied : {true, false}) {
      const Model model = TinyModel{.architecture = name, .tied = tied}.open();
      std::vector<int32_t> ids(2 * kLength);
      for (size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<int32_t>((i * 37 + 11) % 256);

      const Mat table = model.read(Role::kEmbedding);
      Mat x(2 * kLength, 64);
      for (int64_t t = 0; t < x.rows(); ++t) {
        std::memcpy(x.row(t), table.row(ids[static_cast<size_t>(t)]), 64 * sizeof(float));
      }
      const BlockForward forward(model.config(), kLength);
      for (int64_t b = 0; b < model.config().blocks; ++b) forward.run(ctx, model.read_block(b), x);
      const Mat norm = model.read(Role::kFinalNorm);
      nn::rms_norm(x, {norm.data(), 64}, model.config().rms_eps, x);
      Mat expected(2 * kLength, 256);
      linalg::gemm_nt(1.0F, x, model.read(tied ? Role::kEmbedding : Role::kHead), 0.0F, expected);

      for (const uint64_t budget : {uint64_t{1} << 30, uint64_t{0}}) {  // resident, streamed
        Decoder decoder(model, 2, kLength, budget);
        EXPECT_EQ(decoder.weights_resident(), budget > 0);
        for (int64_t t = 0; t < kLength; ++t) {
          const std::vector<int32_t> step = {ids[static_cast<size_t>(t)],
                                             ids[static_cast<size_t>(kLength + t)]};
          const ConstView logits = decoder.step(ctx, step);
          for (const int64_t s : {0, 1}) {
            for (int64_t v = 0; v < 256; ++v) {
              ASSERT_NEAR(logits(s, v), expected(s * kLength + t, v), 2e-4)
                  << name << " position " << t;
            }
          }
        }
      }
    }
  }
}

TEST(Model, ReadsTheSameOnManyThreads) {
  RunContext ctx;
  ctx.threads = 3;
  for (const DType dtype : {DType::kF32, DType::kBF16}) {
    testing::TinyModel tiny{.hidden = 320, .ffn = 1037, .dtype = dtype};
    const Model model = tiny.open();
    for (const Role role : {Role::kUp, Role::kDown, Role::kAttentionNorm}) {
      const Mat one = model.read(role, 1);
      const Mat many = model.read(role, 1, &ctx);
      ASSERT_EQ(one.size(), many.size());
      EXPECT_EQ(std::memcmp(one.data(), many.data(), static_cast<size_t>(one.size()) * 4), 0);
    }
    tiny.edit = [](const std::string& name, std::span<float> values) {
      if (name.find("1.mlp.up_proj") != std::string::npos) values[300'000] = std::nanf("");
    };
    testing::expect_error([&] { (void)tiny.open().read(Role::kUp, 1, &ctx); },
                          ErrorCode::kNonFinite, "element 300000 is NaN");
    testing::expect_error([&] { tiny.open().check_values(ctx); }, ErrorCode::kNonFinite,
                          "element 300000 is NaN");
  }
}

}  // namespace
}  // namespace lpcd::arch
