#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "lpcd/base/json.h"
#include "lpcd/bundle/hf_directory.h"
#include "lpcd/bundle/open_model.h"
#include "lpcd/io/file.h"
#include "lpcd/io/gguf.h"
#include "lpcd/io/gguf_writer.h"
#include "lpcd/lpcd.h"
#include "lpcd/pipeline/journal.h"
#include "tests/e2e/whole_run.h"
#include "tests/support/errors.h"
#include "tests/support/tiny_model.h"

// What the files hold, whether the run wrote them or export did.

namespace lpcd {
namespace {

using testing::expect_error;
using testing::file_bytes;
using testing::TinyModel;
using FormatsTest = testing::WholeRun;

// What the plan says an output takes is what it takes, to the byte that is printed.
TEST_F(FormatsTest, SizesOnDiskAreAsPlanned) {
  for (const std::string format :
       {"gptq:3,g32", "gptq:4,g32,v2", "gptq:2,g32,asym", "ct:3,g32", "ct:8,g-1", "dense:fp16"}) {
    SCOPED_TRACE(format);
    QuantizeOptions o = options("size" + std::to_string(format.size()) + format.substr(0, 4));
    o.formats = {format};
    o.method = Method::kRtn;
    o.qep = false;
    o.lpcd = {"none"};
    o.dry_run = true;
    const std::string plan = quantize(o, ctx_).plan;
    o.dry_run = false;
    const std::string out = quantize(o, ctx_).outputs.at(0);
    const auto bytes = std::filesystem::file_size(out + "/model.safetensors");
    EXPECT_NE(plan.find(": " + format_bytes(bytes)), std::string::npos)
        << plan << format_bytes(bytes);
  }
}

TEST_F(FormatsTest, MixedWidthsAreStoredLayerByLayer) {
  QuantizeOptions o = options("out");
  o.formats = {"gptq:3,g32"};
  o.bits_for = {"*layers.1.*down_proj*=4"};
  o.mlp_bits = 2;
  const QuantizeResult result = quantize(o, ctx_);
  const Json config = parse_json(file_bytes(o.out + "/config.json"), "config.json");
  const Json& dynamic = config["quantization_config"]["dynamic"];
  EXPECT_EQ(dynamic["+:^model\\.layers\\.1\\.mlp\\.down_proj$"]["bits"], 4);
  EXPECT_EQ(dynamic["+:^model\\.layers\\.0\\.mlp\\.up_proj$"]["bits"], 2);
  const arch::Model model = bundle::open_model(o.out);
  const Mat expected = pipeline::Journal(o.out).read_block(1).at(arch::Role::kDown).decode();
  const Mat got = model.read(arch::Role::kDown, 1);
  for (int64_t i = 0; i < got.size(); ++i) ASSERT_EQ(got.data()[i], expected.data()[i]);
}

TEST_F(FormatsTest, ShardsAreReadBackLikeOneFile) {
  QuantizeOptions o = options("one");
  quantize(o, ctx_);
  o = options("shards");
  o.shard_size = "40K";
  quantize(o, ctx_);
  EXPECT_TRUE(std::filesystem::exists(o.out + "/model.safetensors.index.json"));
  EXPECT_EQ(bundle::open_model(dir_ / "one").read(arch::Role::kUp, 1)(3, 4),
            bundle::open_model(dir_ / "shards").read(arch::Role::kUp, 1)(3, 4));
  EvaluateOptions e;
  e.ppl = text_;
  e.seq_len = 48;
  e.max_tokens = 500;
  e.model = dir_ / "one";
  const double one = evaluate(e, ctx_).perplexity;
  e.model = dir_ / "shards";
  EXPECT_EQ(evaluate(e, ctx_).perplexity, one);
}

// Reading a block of a large run means hashing and unpacking a gigabyte.
TEST_F(FormatsTest, WritingReadsABlockOncePerShardThatHoldsItsParts) {
  TinyModel{.blocks = 6}.write(model_);
  quantize(options("run"), ctx_);
  const arch::Model model = bundle::open_model(model_);
  const pipeline::Journal journal(dir_ / "run");
  for (const char* text : {"gptq:3,g32", "ct:3,g32"}) {
    const auto format = format::parse_output_format(text);
    int64_t current = -1;
    int64_t reads = 0;
    pipeline::QuantizedLayers layers;
    bundle::DirectoryContents contents;
    contents.model = &model;
    contents.format = format.get();
    contents.grid_of = [&](int64_t, arch::Role) { return *format->grid(); };
    contents.read_layer = [&](int64_t block, arch::Role role) -> const format::QuantizedMatrix& {
      if (block != current) {
        layers = journal.read_block(block);
        current = block;
        ++reads;
      }
      return layers.at(role);
    };
    const bool shapes_first = std::string_view(text).starts_with("ct");  // I64 before all codes
    bundle::write_hf_directory(ctx_, contents, (dir_ / text) + "-one");
    EXPECT_EQ(reads, shapes_first ? 12 : 6) << text;
    reads = 0;
    contents.max_shard_bytes = 40000;
    bundle::write_hf_directory(ctx_, contents, (dir_ / text) + "-many");
    const auto files = std::distance(std::filesystem::directory_iterator((dir_ / text) + "-many"),
                                     std::filesystem::directory_iterator());
    EXPECT_GT(files, 5) << text;
    EXPECT_LE(reads, (shapes_first ? 2 : 1) * (6 + files)) << text;
  }
}

TEST_F(FormatsTest, ExportGivesWhatTheRunWouldHaveWritten) {
  QuantizeOptions o = options("gptq");
  quantize(o, ctx_);
  o = options("dense");
  o.formats = {"dense:fp16"};
  quantize(o, ctx_);
  export_model({.source = dir_ / "gptq", .format = "dense:fp16", .out = dir_ / "exported"}, ctx_);
  EXPECT_EQ(weights("dense"), weights("exported"));
  expect_error(
      [&] {
        export_model({.source = dir_ / "gptq", .format = "gptq:4,g32", .out = dir_ / "x"}, ctx_);
      },
      ErrorCode::kBadOption, "makes it");
  expect_error(
      [&] {
        export_model({.source = dir_ / "gptq", .format = "dense:fp16", .out = dir_ / "exported"},
                     ctx_);
      },
      ErrorCode::kOutputExists, "not empty");
  expect_error(
      [&] { export_model({.source = model_, .format = "gptq:4,g32", .out = dir_ / "x"}, ctx_); },
      ErrorCode::kBadOption, "no codes to store");
  export_model({.source = model_, .format = "dense:fp32", .out = dir_ / "converted"}, ctx_);
  EXPECT_EQ(weights("converted"), file_bytes(model_ + "/model.safetensors"));
}

TEST_F(FormatsTest, ExportFindsAnOriginalThatHasMoved) {
  quantize(options("run"), ctx_);
  const std::string moved = dir_ / "moved";
  std::filesystem::rename(model_, moved);
  ExportOptions o{.source = dir_ / "run", .format = "dense:fp16", .out = dir_ / "x"};
  expect_error([&] { export_model(o, ctx_); }, ErrorCode::kFileNotFound, "with --model");
  o.model = moved;
  export_model(o, ctx_);
  EXPECT_TRUE(io::exists(dir_ / "x/model.safetensors"));
  TinyModel{.seed = 5}.write(moved);
  o.out = dir_ / "y";
  expect_error([&] { export_model(o, ctx_); }, ErrorCode::kBadModel, "not the model that");
  o.source = moved;
  expect_error([&] { export_model(o, ctx_); }, ErrorCode::kBadOption, "needs no original");
}

// config.json says that it is tied; the file has another.
TEST_F(FormatsTest, AHeadOfItsOwnIsKeptAndCalledSo) {
  TinyModel{.tied = false}.write(model_);
  Json config = parse_json(file_bytes(model_ + "/config.json"), "config.json");
  config["tie_word_embeddings"] = true;
  io::write_file(model_ + "/config.json", dump_json(config));
  const Mat expected = TinyModel{.tied = false}.open().read(arch::Role::kHead);
  QuantizeOptions o = options("ct");
  o.formats = {"ct:3,g32"};
  quantize(o, ctx_);
  export_model({.source = model_, .format = "dense:fp32", .out = dir_ / "dense"}, ctx_);
  export_model({.source = model_, .format = "gguf:f32", .out = dir_ / "gguf"}, ctx_);
  for (const char* name : {"ct", "dense", "gguf"}) {
    SCOPED_TRACE(name);
    const arch::Model model = bundle::open_model(dir_ / name);
    EXPECT_FALSE(model.config().tied_head);
    const Mat head = model.read(arch::Role::kHead);
    for (int64_t i = 0; i < head.size(); ++i) ASSERT_EQ(head.data()[i], expected.data()[i]);
    if (std::string_view(name) == "gguf") continue;
    config = parse_json(file_bytes((dir_ / name) + "/config.json"), "config.json");
    EXPECT_EQ(config["tie_word_embeddings"], false);
  }
}

TEST_F(FormatsTest, ChatTemplatesWithNamesAreCopied) {
  const std::string folder = model_ + "/additional_chat_templates";
  io::make_directories(folder);
  io::write_file(folder + "/tool_use.jinja", "{{ tools }}");
  io::write_file(folder + "/notes.txt", "not a template");
  io::write_file(model_ + "/text.md", "about");
  std::filesystem::create_symlink("text.md", model_ + "/README.md");
  std::filesystem::create_symlink("../text.md", folder + "/rag.jinja");
  export_model({.source = model_, .format = "dense:fp16", .out = dir_ / "dense"}, ctx_);
  EXPECT_EQ(file_bytes(dir_ / "dense/additional_chat_templates/tool_use.jinja"), "{{ tools }}");
  EXPECT_EQ(file_bytes(dir_ / "dense/additional_chat_templates/rag.jinja"), "about");
  EXPECT_FALSE(io::exists(dir_ / "dense/additional_chat_templates/notes.txt"));
  EXPECT_EQ(file_bytes(dir_ / "dense/README.md"), "about");
  EXPECT_FALSE(std::filesystem::is_symlink(dir_ / "dense/README.md"));
}

// What an export that was killed before its files got their names leaves is no obstacle, and goes.
TEST_F(FormatsTest, AnExportWithNamedChatTemplatesCanBeRepeated) {
  const std::string folder = "/additional_chat_templates";
  const std::string temporary = folder + "/.rag.jinja.lpcd-tmp-1-0";
  const std::string out = dir_ / "dense";
  io::make_directories(model_ + folder);
  io::write_file(model_ + folder + "/tool_use.jinja", "{{ tools }}");
  io::make_directories(out + folder);
  io::write_file(out + temporary, "half");
  export_model({.source = model_, .format = "dense:fp16", .out = out}, ctx_);
  EXPECT_TRUE(io::exists(out + folder + "/tool_use.jinja"));
  EXPECT_FALSE(io::exists(out + temporary));

  const std::string quantized = dir_ / "quantized";
  io::make_directories(quantized + folder);
  io::write_file(quantized + temporary, "half");
  quantize(options("quantized"), ctx_);
  EXPECT_TRUE(io::exists(quantized + folder + "/tool_use.jinja"));
  EXPECT_FALSE(io::exists(quantized + temporary));

  const std::string other = dir_ / "other";
  io::make_directories(other + folder);
  io::write_file(other + folder + "/mine.jinja", "not ours");
  expect_error(
      [&] { export_model({.source = model_, .format = "dense:fp16", .out = other}, ctx_); },
      ErrorCode::kOutputExists, "not empty");
  EXPECT_TRUE(io::exists(other + folder + "/mine.jinja"));
}

// A model from elsewhere must not put a file of this machine into what is passed on.
TEST_F(FormatsTest, FilesBesideTheWeightsAreNotReadThroughLinksToElsewhere) {
  io::write_file(dir_ / "id_rsa", "secret");
  io::make_directories(model_ + "/additional_chat_templates");
  for (const std::string name :
       {"README.md", "merges.txt", "chat_template.jinja", "additional_chat_templates/x.jinja"}) {
    SCOPED_TRACE(name);
    const std::string link = model_ + "/" + name;
    std::filesystem::create_symlink(dir_ / "id_rsa", link);
    QuantizeOptions o = options("out");
    expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadFile,
                 name + ": is a link that leads out of the directory");
    expect_error(
        [&] { export_model({.source = model_, .format = "gguf:f16", .out = o.out}, ctx_); },
        ErrorCode::kBadFile, "leads out of the directory");
    EXPECT_FALSE(io::exists(o.out));
    std::filesystem::remove(link);
  }
}

TEST_F(FormatsTest, WarnsOfGgufFilesThatLlamaCppDoesNotLoad) {
  std::filesystem::remove(model_ + "/tokenizer.json");
  std::string warning;
  ctx_.log = [&](LogLevel level, std::string_view text) {
    if (level == LogLevel::kWarning) warning += text;
  };
  export_model({.source = model_, .format = "gguf:f16", .out = dir_ / "f16"}, ctx_);
  EXPECT_NE(warning.find("llama.cpp will not load it"), std::string::npos) << warning;
}

// Files of 2023 have a factor without a type, or under another name.
TEST_F(FormatsTest, LinearRopeScalingOfOldGgufFilesIsRead) {
  const io::GgufFile file(
      export_model({.source = model_, .format = "gguf:f32", .out = dir_ / "f32"}, ctx_));
  const auto factor_of = [&](const auto& change) {
    io::GgufMetadata metadata;
    for (const auto& [key, ignored] : file.metadata()) {
      metadata.set_raw(key, file.raw_value(key));
    }
    change(metadata);
    std::vector<io::TensorProducer> tensors;
    for (const TensorInfo& info : file.tensors()) {
      tensors.push_back({info, [&file, name = info.name] {
                           const auto raw = file.raw(name);
                           return std::vector<std::byte>(raw.begin(), raw.end());
                         }});
    }
    io::PendingFiles pending;
    io::write_gguf(dir_ / "old.gguf", metadata, std::move(tensors), pending);
    pending.commit();
    const nn::RopeScaling scaling = bundle::open_model(dir_ / "old.gguf").config().rope_scaling;
    return scaling.kind == nn::RopeScaling::Kind::kLinear ? scaling.factor : 1.0;
  };
  EXPECT_EQ(factor_of([](auto&) {}), 1);
  EXPECT_EQ(factor_of([](auto& m) { m.set_f32("llama.rope.scaling.factor", 4); }), 4);
  EXPECT_EQ(factor_of([](auto& m) { m.set_f32("llama.rope.scale_linear", 2); }), 2);
  EXPECT_EQ(factor_of([](auto& m) {
              m.set_string("llama.rope.scaling.type", "none");
              m.set_f32("llama.rope.scaling.factor", 4);
            }),
            1);
  expect_error([&] { factor_of([](auto& m) { m.set_f32("llama.rope.scaling.factor", -1); }); },
               ErrorCode::kBadModel, "must be >= 0");
}

// ~/.cache/huggingface/hub/models--OWNER--NAME/snapshots/REVISION
TEST_F(FormatsTest, SnapshotsOfTheCacheAreCalledByTheirModel) {
  const std::string snapshot = dir_ / "models--me--Tiny-1B/snapshots/0123abcd";
  TinyModel{}.write(snapshot);
  EXPECT_EQ(export_model({.source = snapshot, .format = "gguf:f16", .out = dir_ / "out"}, ctx_),
            dir_ / "out/Tiny-1B-F16.gguf");
}

// GGUF: what the file decodes to is what was computed, in the rows' own order; sizes are as
// planned.
TEST_F(FormatsTest, GgufHoldsWhatWasComputed) {
  for (const std::string architecture : {"llama", "qwen2", "qwen3"}) {
    const std::string model = dir_ / architecture;
    TinyModel{.architecture = architecture,
              .hidden = 256,
              .ffn = 288,
              .heads = 8,
              .kv_heads = 2,
              .head_dim = 32,
              .tied = architecture == "qwen3",
              .dtype = DType::kBF16}
        .write(model);
    for (const std::string format :
         {"gguf:q2_k", "gguf:q4_k_m", "gguf:q3_k,pure", "gguf:q4_k_s", "gguf:exact"}) {
      SCOPED_TRACE(architecture + " " + format);
      QuantizeOptions o = options(architecture + format.substr(5));
      o.model = model;
      o.formats = {format};
      // One with everything that is computed on the grid of the file.
      const bool all = format == "gguf:q4_k_s";
      o.method = all || format == "gguf:q2_k" ? Method::kGptq : Method::kRtn;
      o.qep = all;
      o.lpcd = {all ? "all" : "none"};
      o.dry_run = true;
      const std::string plan = quantize(o, ctx_).plan;
      o.dry_run = false;
      const QuantizeResult result = quantize(o, ctx_);
      ASSERT_EQ(result.outputs.size(), 1U);
      const arch::Model gguf = bundle::open_model(o.out);
      EXPECT_EQ(gguf.path(), result.outputs[0]);
      const pipeline::Journal journal(o.out);
      const arch::Model original = bundle::open_model(model);
      for (int64_t b = 0; b < 2; ++b) {
        for (const auto& [role, q] : journal.read_block(b)) {
          const Mat expected = q.decode();
          const Mat got = gguf.read(role, b);
          for (int64_t i = 0; i < got.size(); ++i) ASSERT_EQ(got.data()[i], expected.data()[i]);
        }
        const Mat norm = gguf.read(arch::Role::kAttentionNorm, b);
        EXPECT_EQ(norm(0, 7), original.read(arch::Role::kAttentionNorm, b)(0, 7));
      }
      EXPECT_EQ(gguf.config().head_dim, 32);
      EXPECT_EQ(gguf.config().rope_theta, original.config().rope_theta);
      EXPECT_EQ(gguf.config().tied_head, original.config().tied_head);
      EXPECT_EQ(gguf.config().max_positions, original.config().max_positions);
      EXPECT_NEAR(gguf.read(arch::Role::kEmbedding, 0)(3, 5),
                  original.read(arch::Role::kEmbedding, 0)(3, 5), 0.3F);
      const auto bytes = std::filesystem::file_size(result.outputs[0]);
      EXPECT_NE(plan.find(format_bytes(bytes)), std::string::npos) << plan;
      const bool falls_back = format != "gguf:exact";
      EXPECT_EQ(plan.find("rows of 288 hold no") != std::string::npos, falls_back) << plan;
    }
  }
}

TEST_F(FormatsTest, GgufIsExportedFromRunsThatHaveItsGrid) {
  QuantizeOptions o = options("codes");
  o.bits = 4;
  quantize(o, ctx_);
  export_model({.source = o.out, .format = "gguf:exact", .out = dir_ / "exact"}, ctx_);
  export_model({.source = o.out, .format = "gguf:q4_0", .out = dir_ / "q4_0"}, ctx_);
  export_model({.source = o.out, .format = "gguf:f32", .out = dir_ / "f32"}, ctx_);
  export_model({.source = o.out, .format = "ct:4,g32", .out = dir_ / "ct"}, ctx_);
  const Mat expected = pipeline::Journal(o.out).read_block(1).at(arch::Role::kQ).decode();
  for (const char* name : {"exact", "q4_0", "f32", "ct"}) {
    const Mat got = bundle::open_model(dir_ / name).read(arch::Role::kQ, 1);
    for (int64_t i = 0; i < got.size(); ++i) ASSERT_EQ(got.data()[i], expected.data()[i]) << name;
  }
  expect_error(
      [&] { export_model({.source = o.out, .format = "gguf:q5_0", .out = dir_ / "x"}, ctx_); },
      ErrorCode::kBadOption, "--format gguf:q5_0 --out DIR makes it");
  QuantizeOptions k = options("blocks");
  k.formats = {"gguf:q5_0"};
  k.method = Method::kRtn;
  k.qep = false;
  k.lpcd = {"none"};
  quantize(k, ctx_);
  export_model({.source = k.out, .format = "gguf:q5_0", .out = dir_ / "again"}, ctx_);
  export_model({.source = k.out, .format = "dense:fp32", .out = dir_ / "dense"}, ctx_);
  EXPECT_EQ(bundle::open_model(dir_ / "again").read(arch::Role::kUp, 0)(3, 4),
            bundle::open_model(dir_ / "dense").read(arch::Role::kUp, 0)(3, 4));
  expect_error(
      [&] { export_model({.source = k.out, .format = "gptq:4,g32", .out = dir_ / "x"}, ctx_); },
      ErrorCode::kBadOption, "makes it");
  expect_error(
      [&] { export_model({.source = model_, .format = "gguf:q4_0", .out = dir_ / "x"}, ctx_); },
      ErrorCode::kBadOption, "no codes to store");
  export_model({.source = model_, .format = "gguf:f32", .out = dir_ / "plain"}, ctx_);
  EXPECT_EQ(bundle::open_model(dir_ / "plain").read(arch::Role::kK, 0)(5, 6),
            bundle::open_model(model_).read(arch::Role::kK, 0)(5, 6));
}

// A checkpoint of codes without its run, as one is downloaded.
TEST_F(FormatsTest, CheckpointsOfCodesAreConvertedToPlainGguf) {
  QuantizeOptions o = options("codes");
  o.formats = {"gptq:3,g32", "ct:3,g32"};
  quantize(o, ctx_);
  for (const std::string& format : {std::string("gptq-3-g32"), std::string("ct-3-g32")}) {
    const std::string source = o.out + "/" + format;
    export_model({.source = source, .format = "gguf:f32", .out = dir_ / format}, ctx_);
    const Mat expected = bundle::open_model(source).read(arch::Role::kV, 1);
    const Mat got = bundle::open_model(dir_ / format).read(arch::Role::kV, 1);
    for (int64_t i = 0; i < got.size(); ++i) ASSERT_EQ(got.data()[i], expected.data()[i]);
  }
}

// llama.cpp takes biases from the tensors that a file holds, and so must whoever reads it.
TEST_F(FormatsTest, GgufTensorsThatNobodyReadsAreRefused) {
  TinyModel{.architecture = "qwen2"}.write(dir_ / "qwen2");
  const std::string path =
      export_model({.source = dir_ / "qwen2", .format = "gguf:f32", .out = dir_ / "plain"}, ctx_);
  EXPECT_NO_THROW((void)bundle::open_model(path));
  std::string bytes = file_bytes(path);
  for (size_t at = bytes.find("qwen2"); at != std::string::npos; at = bytes.find("qwen2", at + 1)) {
    bytes.replace(at, 5, "llama");
  }
  io::write_file(path, bytes);
  expect_error([&] { (void)bundle::open_model(path); }, ErrorCode::kUnsupportedModel,
               "attn_q.bias");
}

TEST_F(FormatsTest, TransformsOfActivationsAreRefused) {
  QuantizeOptions o = options("ct");
  o.formats = {"ct:3,g32"};
  quantize(o, ctx_);
  Json config = parse_json(file_bytes(o.out + "/config.json"), "config.json");
  config["quantization_config"]["sparsity_config"] = {{"format", "dense"}};
  config["quantization_config"]["transform_config"] = Json::object();
  io::write_file(o.out + "/config.json", dump_json(config));
  EXPECT_NO_THROW((void)bundle::open_model(o.out));
  config["quantization_config"]["transform_config"] = {
      {"config_groups", {{"R4", {{"type", "hadamard"}}}}}};
  io::write_file(o.out + "/config.json", dump_json(config));
  expect_error([&] { (void)bundle::open_model(o.out); }, ErrorCode::kUnsupportedModel,
               "transform_config is not supported");
}

// Text is not read: what cannot be read of the tokenizer is copied.
TEST_F(FormatsTest, ATokenizerOfAnotherKindIsCopiedWhereNoTextIsRead) {
  QuantizeOptions o = options("ids");
  quantize(o, ctx_);
  const std::string ids = o.out + "/.lpcd/calibration.safetensors";
  const std::string expected = weights("ids");
  const std::string other = R"({"model": {"type": "Unigram", "vocab": []}})";
  io::write_file(model_ + "/tokenizer.json", other);
  std::string warning;
  ctx_.log = [&](LogLevel level, std::string_view text) {
    if (level == LogLevel::kWarning) warning += text;
  };
  o = options("again");
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kUnsupportedModel, "Unigram");
  o.calib = ids;
  quantize(o, ctx_);
  EXPECT_EQ(weights("again"), expected);
  EXPECT_EQ(file_bytes(o.out + "/tokenizer.json"), other);
  EXPECT_NE(warning.find("copied as it is"), std::string::npos) << warning;
  export_model({.source = o.out, .format = "dense:fp16", .out = dir_ / "dense"}, ctx_);
  EXPECT_EQ(file_bytes(dir_ / "dense/tokenizer.json"), other);
}

TEST_F(FormatsTest, ExportNoticesATamperedRun) {
  QuantizeOptions o = options("run");
  quantize(o, ctx_);
  const std::string path = o.out + "/.lpcd/blocks/00001/layers.safetensors";
  std::string bytes = file_bytes(path);
  bytes[bytes.size() - 5] ^= 1;
  io::write_file(path, bytes);
  expect_error(
      [&] { export_model({.source = o.out, .format = "dense:fp16", .out = dir_ / "x"}, ctx_); },
      ErrorCode::kBadFile, "not what the run committed");
}

TEST_F(FormatsTest, InspectKnowsModelsAndRuns) {
  EXPECT_NE(inspect(model_).summary.find("llama: 2 blocks"), std::string::npos);
  quantize(options("run"), ctx_);
  const Json json = parse_json(inspect(dir_ / "run").json, "inspect");
  EXPECT_EQ(json["run"]["kind"], "finished run");
  EXPECT_EQ(json["model"]["quantization"]["bits"], 3);
  // Codes are shown as what they are, with all that belongs to them.
  const Json& types = json["model"]["tensors"]["types"];
  EXPECT_EQ(types["int3"]["tensors"], 14);
  uint64_t bytes = 0;
  for (const auto& [type, sum] : types.items()) bytes += sum["bytes"].get<uint64_t>();
  EXPECT_EQ(json["model"]["stored_bytes"], bytes);
  const auto file = std::filesystem::file_size(dir_ / "run/model.safetensors");
  EXPECT_LT(bytes, file);
  EXPECT_GT(bytes, file - 16384);  // all but the header
  EXPECT_EQ(json["run"]["output_errors"].size(), 2U);
}

TEST_F(FormatsTest, RunsWithSeveralFormatsAreShownAndNamed) {
  QuantizeOptions o = options("run");
  o.formats = {"gptq:3,g32", "dense:fp16"};
  quantize(o, ctx_);
  const Json json = parse_json(inspect(o.out).json, "inspect");
  EXPECT_EQ(json["run"]["kind"], "finished run");
  ASSERT_EQ(json["models"].size(), 2U);
  EXPECT_EQ(json["models"][0]["path"], o.out + "/dense-fp16");
  EXPECT_EQ(json["models"][1]["quantization"]["bits"], 3);
  expect_error([&] { (void)bundle::open_model(o.out); }, ErrorCode::kBadModel,
               "several formats; give one of them: " + o.out + "/dense-fp16");
  std::filesystem::remove_all(o.out + "/dense-fp16");
  std::filesystem::remove_all(o.out + "/gptq-3-g32");
  expect_error([&] { (void)bundle::open_model(o.out); }, ErrorCode::kBadModel,
               "whose model is gone");
}

}  // namespace
}  // namespace lpcd
