#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <string_view>

#include "lpcd/base/control_group.h"
#include "lpcd/base/json.h"
#include "lpcd/bundle/open_model.h"
#include "lpcd/lpcd.h"
#include "lpcd/pipeline/plan.h"
#include "tests/e2e/whole_run.h"
#include "tests/support/errors.h"
#include "tests/support/tiny_model.h"

// What is refused, or planned, before any work.

namespace lpcd {
namespace {

using testing::expect_error;
using testing::TinyModel;
using ChecksTest = testing::WholeRun;

TEST_F(ChecksTest, DryRunTouchesNothing) {
  QuantizeOptions o = options("out");
  o.dry_run = true;
  const QuantizeResult result = quantize(o, ctx_);
  EXPECT_NE(result.plan.find("arithmetic"), std::string::npos);
  EXPECT_NE(result.plan.find("memory"), std::string::npos);
  const Json plan = parse_json(result.plan_json, "plan");
  EXPECT_GT(plan["memory_bytes"], plan["memory"]["program"]);
  EXPECT_LT(plan["seconds"][0], plan["seconds"][1]);
  EXPECT_EQ(plan["outputs"][0]["format"], "gptq:3,g32");
  EXPECT_EQ(plan["calibration"]["held_out_sequences"], 3);
  EXPECT_FALSE(std::filesystem::exists(o.out));
}

TEST_F(ChecksTest, ContradictingOptionsAreRefusedBeforeAnyWork) {
  const auto refused = [&](auto change, std::string_view part) {
    QuantizeOptions o = options("out");
    change(o);
    expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadOption, part);
    EXPECT_FALSE(std::filesystem::exists(o.out));
  };
  refused(
      [](auto& o) {
        o.formats = {"gptq:4,g32"};
        o.given = {"bits"};
      },
      "--bits contradicts --format gptq:4,g32");
  refused([](auto& o) { o.formats = {"gptq:4,g32", "gptq:3,g32"}; }, "different grids");
  refused([](auto& o) { o.bits = 5; }, "use --format ct:5,g32");
  refused([](auto& o) { o.formats = {""}; }, "--format: a part is empty");
  refused([](auto& o) { o.formats = {"q4_k_m"}; }, "did you mean \"gguf:q4_k_m\"");
  refused(
      [](auto& o) {
        apply_preset(Preset::kOnecomp, o);
        o.formats = {"dense:fp16", "gguf:exact"};
      },
      "--preset onecomp rounds weights to f16");
  refused(
      [](auto& o) {
        o.mse = true;
        o.given = {"scale-search"};
      },
      "--scale-search on and --mse");
  refused([](auto& o) { o.lpcd = {"residul"}; }, "did you mean \"residual\"");
  refused([](auto& o) { o.qep_exclude = {"donw_proj"}; }, "did you mean \"down_proj\"");
  refused([](auto& o) { o.hessian_from = HessianFrom::kOriginal; }, "--qep off --lpcd none");
  refused([](auto& o) { o.bits_for = {"*down*"}; }, "PATTERN=BITS");
  refused([](auto& o) { o.bits_for = {"*dwon*=4"}; }, "no layer matches");
  refused([](auto& o) { o.seq_len = 1024; }, "beyond the model's 512 positions");
  refused([](auto& o) { o.group_size = 0; }, "--group-size");
  refused([](auto& o) { o.max_memory = "lots"; }, "is not a size");
  refused(
      [](auto& o) {
        o.holdout = 0;
        o.given = {"percdamp"};
      },
      "--holdout 0 leaves none");
  refused(
      [](auto& o) {
        o.own_metric = false;
        o.given = {"output-feedback"};
      },
      "no effect with --own-metric off");
}

// A program can put into the structs what the command would not take.
TEST_F(ChecksTest, NumbersOutOfRangeAreRefusedInTheLibraryToo) {
  const auto refused = [&](auto change, std::string_view part) {
    QuantizeOptions o = options("out");
    change(o);
    expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadOption, part);
    EXPECT_FALSE(std::filesystem::exists(o.out));
  };
  refused([](auto& o) { o.seq_len = 0; }, "--seq-len: 0 is not a number 2 to 1048576");
  refused([](auto& o) { o.samples = -1; }, "--samples: -1");
  refused([](auto& o) { o.block_size = 0; }, "--block-size: 0");
  refused([](auto& o) { o.mlp_group_size = -7; }, "--mlp-group-size: -7");
  refused([](auto& o) { o.holdout = std::nan(""); }, "--holdout: nan");
  refused([](auto& o) { o.refine = -1; }, "--refine: -1");
  refused(
      [](auto& o) {
        o.formats = {"dense:fp16"};
        o.bits = 16;
      },
      "--bits: 16 is not a number 2 to 8");
  refused(
      [](auto& o) {
        o.solver = Solver::kGd;
        o.gd_batch_size = 0;
      },
      "--gd-batch-size: 0");
  refused(
      [](auto& o) {
        apply_preset(Preset::kOnecomp, o);
        o.lpcd = {"all"};
        o.solver = Solver::kCg;
        o.gd_batch_size = 8;
      },
      "--preset onecomp relaxes submodules by gradient descent");
  EvaluateOptions e;
  e.model = model_;
  e.samples = 0;
  expect_error([&] { evaluate(e, ctx_); }, ErrorCode::kBadOption, "--samples: 0");
  GenerateOptions g;
  g.model = model_;
  g.prompt = "a";
  g.tokens = -9;
  expect_error([&] { generate(g, ctx_, {}); }, ErrorCode::kBadOption, "--tokens: -9");
}

// With act-order there is a second H of the widest layer, in the order of the columns.
TEST_F(ChecksTest, ActOrderIsPlannedWithItsMatrix) {
  const arch::Model model = TinyModel{.ffn = 1024}.open();
  QuantizeOptions o = options("out");
  const uint64_t natural = pipeline::make_plan(model, o, 1ULL << 40).peak_memory;
  o.act_order = true;
  const uint64_t ordered = pipeline::make_plan(model, o, 1ULL << 40).peak_memory;
  EXPECT_EQ(ordered, natural + 4 * 1024 * 1024);
}

// Codes once, though zeros take a byte in the journal, and every output once.
TEST_F(ChecksTest, DiskIsPlannedAsItIsUsed) {
  QuantizeOptions o = options("out");
  o.method = Method::kRtn;  // no streams
  o.qep = false;
  o.lpcd = {"none"};
  o.bits = 2;
  o.group_size = 16;
  o.symmetric = false;
  const auto planned = [&](std::vector<std::string> formats) {
    QuantizeOptions dry = o;
    dry.dry_run = true;
    dry.formats = std::move(formats);
    const Json plan = parse_json(quantize(dry, ctx_).plan_json, "plan");
    uint64_t disk = plan["disk_bytes"];
    for (const Json& output : plan["outputs"]) disk -= output["bytes"].get<uint64_t>();
    return disk;
  };
  quantize(o, ctx_);
  uint64_t written = 0;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(o.out + "/.lpcd")) {
    if (entry.is_regular_file()) written += entry.file_size();
  }
  const uint64_t journal = planned({});
  EXPECT_GE(journal, written);
  EXPECT_LT(journal, written + 2 * 32 * 1024);  // what is allowed for the records
  EXPECT_EQ(planned({"dense:fp32"}), journal);
  EXPECT_EQ(planned({"dense:fp32", "dense:fp16"}), journal);

  o = options("gptq");
  const arch::Model model = bundle::open_model(model_);
  pipeline::Plan plan = pipeline::make_plan(model, o, 1ULL << 40);
  const uint64_t in_memory = plan.disk_bytes;
  EXPECT_GT(in_memory, 4ULL * 4 * 24 * 48 * 64);  // two streams, twice
  o.max_memory = std::to_string(plan.peak_memory - 1);
  plan = pipeline::make_plan(model, o, 1ULL << 40);
  o.max_memory = std::to_string(plan.peak_memory - 1);
  plan = pipeline::make_plan(model, o, 1ULL << 40);
  ASSERT_TRUE(plan.activations_on_disk);
  EXPECT_GT(plan.disk_bytes, in_memory + 4ULL * 24 * 48 * 3 * 64);
}

TEST_F(ChecksTest, DryRunWarnsOfAnOutputThatTheRunWouldRefuse) {
  io::make_directories(dir_ / "taken");
  io::write_file(dir_ / "taken/thesis.txt", "do not touch");
  std::string warning;
  ctx_.log = [&](LogLevel level, std::string_view text) {
    if (level == LogLevel::kWarning) warning += text;
  };
  QuantizeOptions o = options("taken");
  o.dry_run = true;
  EXPECT_FALSE(quantize(o, ctx_).plan.empty());
  EXPECT_NE(warning.find("not empty"), std::string::npos) << warning;
}

TEST_F(ChecksTest, TooLittleMemoryIsSaidBeforeAnyWork) {
  QuantizeOptions o = options("out");
  o.max_memory = "10M";
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kMemoryBudget, "needs at least");
  EXPECT_FALSE(std::filesystem::exists(o.out));
}

TEST_F(ChecksTest, MemoryIsThatOfTheControlGroup) {
  const std::string root = dir_ / "root";
  const auto file = [&](const std::string& path, const std::string& text) {
    io::make_directories(std::filesystem::path(root + path).parent_path().string());
    io::write_file(root + path, text);
  };
  const uint64_t machine = available_memory(root);  // there are no groups yet
  EXPECT_GT(machine, 1ULL << 28);
  file("/proc/self/cgroup", "0::/slurm/job_7/step_0\n");
  file("/sys/fs/cgroup/slurm/job_7/step_0/memory.max", "max\n");
  file("/sys/fs/cgroup/slurm/job_7/memory.max", "67108864\n");
  file("/sys/fs/cgroup/slurm/memory.max", "134217728\n");
  EXPECT_EQ(available_memory(root), 67108864U);
  file("/proc/self/cgroup", "5:cpu,memory:/batch/7\n0::/\n");
  file("/sys/fs/cgroup/memory/batch/7/memory.limit_in_bytes", "33554432\n");
  EXPECT_EQ(available_memory(root), 33554432U);
  file("/proc/self/cgroup", "2:cpu:/slurm/job_7\n");
  EXPECT_EQ(available_memory(root), machine);
  std::filesystem::remove(root + "/proc/self/cgroup");  // a container without /proc
  file("/sys/fs/cgroup/memory.max", "16777216\n");
  EXPECT_EQ(available_memory(root), 16777216U);
}

TEST_F(ChecksTest, ProcessorsAreThoseOfTheControlGroup) {
  const std::string root = dir_ / "root";
  const auto file = [&](const std::string& path, const std::string& text) {
    io::make_directories(std::filesystem::path(root + path).parent_path().string());
    io::write_file(root + path, text);
  };
  EXPECT_EQ(control_group_processors(root), 0);
  file("/sys/fs/cgroup/cpu.max", "max 100000\n");
  EXPECT_EQ(control_group_processors(root), 0);
  file("/sys/fs/cgroup/cpu.max", "800000 100000\n");
  EXPECT_EQ(control_group_processors(root), 8);
  file("/proc/self/cgroup", "0::/job\n");
  file("/sys/fs/cgroup/job/cpu.max", "150000 100000\n");
  EXPECT_EQ(control_group_processors(root), 2);
  file("/proc/self/cgroup", "3:cpu,cpuacct:/batch\n");
  file("/sys/fs/cgroup/cpu/batch/cpu.cfs_quota_us", "300000\n");
  file("/sys/fs/cgroup/cpu/batch/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(control_group_processors(root), 3);
  file("/sys/fs/cgroup/cpu/batch/cpu.cfs_quota_us", "-1\n");
  EXPECT_EQ(control_group_processors(root), 8);
}

// Not in the hour that it would be read.
TEST_F(ChecksTest, DamagedWeightsAreFoundBeforeAnyWork) {
  for (const char* name : {"model.layers.1.mlp.down_proj.weight", "lm_head.weight"}) {
    TinyModel tiny{.tied = false};
    tiny.edit = [&](const std::string& tensor, std::span<float> values) {
      if (tensor == name) values[values.size() / 2] = std::nanf("");
    };
    QuantizeOptions o = options(fmt::format("out-{}", name));
    o.model = dir_ / name;
    tiny.write(o.model);
    for (const char* calib : {"self", ""}) {
      if (*calib != 0) o.calib = calib;
      expect_error([&] { quantize(o, ctx_); }, ErrorCode::kNonFinite, name);
      EXPECT_FALSE(std::filesystem::exists(o.out + "/.lpcd/run.json"));
      o.calib = text_;
    }
  }
}

// A step of gradient descent takes 16 sequences at once, whatever fits into a chunk elsewhere.
TEST_F(ChecksTest, GradientDescentIsPlannedWithItsChunks) {
  const arch::Model model = bundle::open_model(model_);
  QuantizeOptions o = options("out");
  o.seq_len = 512;
  o.samples = 64;
  const uint64_t cg = pipeline::make_plan(model, o, 1ULL << 40).peak_memory;
  o.solver = Solver::kGd;
  const uint64_t gd = pipeline::make_plan(model, o, 1ULL << 40).peak_memory;
  EXPECT_GT(gd, cg + 4096 * 4 * 200);  // 4096 tokens more, of at least 200 floats
  o.gd_batch_size = 64;                // 56 are solved on, in 4 chunks
  EXPECT_NO_THROW((void)pipeline::make_plan(model, o, 1ULL << 40));
  o.gd_batch_size = 80;
  expect_error([&] { (void)pipeline::make_plan(model, o, 1ULL << 40); }, ErrorCode::kBadOption,
               "--gd-batch-size 80 is more than the 56 sequences");
}

TEST_F(ChecksTest, PlanCountsTheTextThatTheModelWrites) {
  QuantizeOptions o = options("out");
  o.calib = "self";
  o.samples = 65;  // a batch of 64 and one of 1
  o.seq_len = 31;
  const arch::Model model = TinyModel{.blocks = 8}.open();
  const auto planned = [&] { return pipeline::make_plan(model, o, uint64_t{1} << 30); };
  pipeline::Plan plan = planned();
  const auto text = [&] {
    return pipeline::describe(plan, {.flops_per_second = 1e12, .read_seconds = 60});
  };
  EXPECT_TRUE(plan.sampling_keeps_weights);
  EXPECT_NE(text().find("64 sequences at a time: 60 passes"), std::string::npos) << text();
  EXPECT_EQ(text().find("1 h 00 min"), std::string::npos) << text();
  plan.sampling_keeps_weights = false;
  EXPECT_NE(text().find("are read for each"), std::string::npos) << text();
  EXPECT_NE(text().find("1 h 00 min"), std::string::npos) << text();

  o.samples = 64;
  o.seq_len = 512;
  o.max_memory = "200M";
  expect_error([&] { (void)planned(); }, ErrorCode::kMemoryBudget, "too little for --calib self");
  EXPECT_FALSE(pipeline::make_plan(model, o, uint64_t{1} << 30, true).sampling);  // it is there
  o.calib = "text.txt";
  EXPECT_NO_THROW((void)planned());
}

TEST_F(ChecksTest, NothingCanBeHeldOutOfOneSequence) {
  QuantizeOptions o = options("out");
  o.samples = 1;
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadOption, "or give --holdout 0");
  o.holdout = 0;
  EXPECT_NO_THROW(quantize(o, ctx_));
}

TEST_F(ChecksTest, ShortCalibrationTextIsSaidWithNumbers) {
  QuantizeOptions o = options("out");
  o.samples = 100000;
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadText, "lower --samples to");
  o.dry_run = true;
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadText, "lower --samples to");
  io::write_file(text_, "ten bytes.");  // not even one of 48 tokens
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadText,
               "give more text, or lower --seq-len");
}

TEST_F(ChecksTest, ShapesThatTheFormatCannotHoldAreRefused) {
  TinyModel{.ffn = 84}.write(model_);
  QuantizeOptions o = options("out");
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadOption,
               "does not pack into 32-bit words");
  o.formats = {"dense:fp16"};
  EXPECT_NO_THROW(quantize(o, ctx_));  // a short last group is fine on the grid
}

TEST_F(ChecksTest, TensorTypesAndGgufContradictionsAreChecked) {
  QuantizeOptions o = options("types");
  o.formats = {"gguf:q4_0"};
  o.method = Method::kRtn;
  o.qep = false;
  o.lpcd = {"none"};
  o.tensor_types = {"*ffn_down*=q8_0", "token_embd.weight=f16"};
  quantize(o, ctx_);
  const arch::Model model = bundle::open_model(o.out);
  EXPECT_EQ(model.stored(arch::Role::kDown, 1).dtype, DType::kQ8_0);
  EXPECT_EQ(model.stored(arch::Role::kUp, 1).dtype, DType::kQ4_0);
  EXPECT_EQ(model.stored(arch::Role::kEmbedding, 0).dtype, DType::kF16);
  const auto refused = [&](auto change, std::string_view part) {
    QuantizeOptions bad = options("x");
    bad.formats = {"gguf:q4_0"};
    change(bad);
    expect_error([&] { quantize(bad, ctx_); }, ErrorCode::kBadOption, part);
  };
  refused([](auto& b) { b.tensor_types = {"*nothing*=q8_0"}; }, "no matrix matches");
  refused([](auto& b) { b.tensor_types = {"*ffn_down*=q9"}; }, "must be PATTERN=TYPE");
  refused([](auto& b) { b.tensor_types = {"*ffn_down*=q4_k"}; }, "Q5_0 would fit");
  refused([](auto& b) { b.tensor_types = {"*ffn_down*=f16"}; }, "layers cannot stay F16");
  refused([](auto& b) { b.mlp_bits = 4; }, "use --tensor-type");
  refused([](auto& b) { b.formats = {"gguf:q4_0", "gptq:4,g32"}; }, "different grids");
  refused([](auto& b) { b.formats = {"gguf:q4_0", "gguf:q8_0"}; }, "different grids");
  refused([](auto& b) { b.formats = {"gguf:q7_k"}; }, "is not of the form");
  refused([](auto& b) { b.given = {"group-size"}; },
          "--group-size has no effect with --format gguf");
  refused(
      [](auto& b) {
        b.formats.clear();
        b.grid = "q4_0";
        b.given = {"bits"};
      },
      "--bits has no effect with --grid q4_0");
  refused(
      [](auto& b) {
        b.formats = {"gptq:3,g32"};
        b.tensor_types = {"token_embd.weight=f16"};
      },
      "add --format gguf");
  refused(
      [](auto& b) {
        b.formats = {"gguf:exact"};
        b.tensor_types = {"blk.1.ffn_down.weight=q8_0"};
      },
      "name embedding and head only");
}

TEST_F(ChecksTest, LimitsOfTheConsumerAreCheckedBeforeAnyWork) {
  const auto refused = [&](const char* consumer, const char* format, std::string_view part) {
    QuantizeOptions o = options("x");
    o.formats = {format};
    o.consumer = consumer;
    expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadOption, part);
    EXPECT_FALSE(std::filesystem::exists(o.out));
  };
  refused("vllm", "gptq:3,g32", "vLLM loads GPTQ only at 4 and 8 bits symmetric; use ct:3,g32");
  refused("vllm", "gptq:4,g32,asym", "use ct:4,g32,asym");
  refused("vllm", "ct:4,g16", "groups of 32, 64 or 128");
  refused("vllm", "gguf:q4_0", "no GGUF");
  refused("llama.cpp", "gptq:4,g32", "use --format gguf:q4_k_m");
  refused("gptqmodel", "ct:4,g32", "gptq layout only");
  refused("transformers", "ct:4,g32,asym", "asymmetric");
  refused("gptqmodel", "gptq:4,g32,asym", "use gptq:4,g32,asym,v2");
  refused("gptqmodel", "gptq:4,g48", "groups of 16, 32");
  refused("vllm", "gptq:4,g128", "whole groups only");
  refused("transformers", "gguf:q2_0", "knows no Q2_0");
  {
    QuantizeOptions o = options("x");
    o.formats = {"gguf:exact"};
    o.bits = 2;
    o.group_size = 64;
    o.consumer = "transformers";
    expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadOption, "knows no Q2_0");
    o.bits = 4;
    o.tensor_types = {"token_embd.weight=q2_0"};
    expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadOption, "knows no Q2_0");
  }
  refused("vlm", "ct:4,g32", "did you mean \"vllm\"");
  QuantizeOptions o = options("fits");
  o.formats = {"ct:3,g32"};
  o.consumer = "vllm";
  o.bits_for = {"*k_proj*=4"};
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadOption, "vLLM fuses it with");
  o.bits_for = {"*down_proj*=4"};
  o.formats = {"gptq:3,g32"};
  o.consumer = "transformers";
  expect_error([&] { quantize(o, ctx_); }, ErrorCode::kBadOption, "one grid only");
  o.formats = {"ct:3,g32"};
  o.consumer = "vllm";
  o.dry_run = true;
  EXPECT_FALSE(quantize(o, ctx_).plan.empty());
}

// Rope scaling that transformers leaves out and llama.cpp refuses; a model without a tokenizer.
TEST_F(ChecksTest, LimitsOfTheConsumerAreCheckedAgainstTheModelToo) {
  const auto with_scaling = [&](const std::string& name, const Json& scaling) {
    const std::string path = dir_ / name;
    TinyModel{.architecture = name}.write(path);
    Json config = parse_json(testing::file_bytes(path + "/config.json"), "config.json");
    config["rope_scaling"] = scaling;
    io::write_file(path + "/config.json", dump_json(config));
    return path;
  };
  const auto run = [&](const std::string& model, const char* consumer, const char* format) {
    QuantizeOptions o = options("x");
    o.model = model;
    o.method = Method::kRtn;
    o.qep = false;
    o.lpcd = {"none"};
    o.formats = {format};
    o.consumer = consumer;
    o.dry_run = true;
    EXPECT_FALSE(quantize(o, ctx_).plan.empty());
  };
  const Json linear = {{"rope_type", "linear"}, {"factor", 2.0}};
  const Json llama3 = {{"rope_type", "llama3"},
                       {"factor", 8.0},
                       {"low_freq_factor", 1.0},
                       {"high_freq_factor", 4.0},
                       {"original_max_position_embeddings", 256}};
  for (const Json& scaling : {linear, llama3}) {
    const std::string llama = with_scaling("llama", scaling);
    for (const char* format : {"gguf:q4_0", "gguf:f16"}) {
      expect_error([&] { run(llama, "transformers", format); }, ErrorCode::kBadOption,
                   "leaves the model's rope scaling out");
      run(llama, "llama.cpp", format);
    }
    run(llama, "transformers", "ct:4,g32");
  }
  run(model_, "transformers", "gguf:q4_0");

  for (const std::string name : {"qwen2", "qwen3"}) {
    run(with_scaling(name, linear), "", "gguf:q4_0");
    const std::string qwen = with_scaling(name, llama3);
    run(qwen, "", "ct:4,g32");
    expect_error([&] { run(qwen, "", "gguf:q4_0"); }, ErrorCode::kUnsupportedModel,
                 "llama3 rope scaling of a " + name + " model cannot be written to GGUF");
    expect_error(
        [&] { export_model({.source = qwen, .format = "gguf:f16", .out = dir_ / "f16"}, ctx_); },
        ErrorCode::kUnsupportedModel, "cannot be written to GGUF");
    EXPECT_FALSE(io::exists(dir_ / "f16/" + name + "-F16.gguf"));
  }

  std::filesystem::remove(model_ + "/tokenizer.json");
  run(model_, "", "gguf:q4_0");
  expect_error([&] { run(model_, "llama.cpp", "gguf:q4_0"); }, ErrorCode::kBadOption,
               "llama.cpp loads no model without a tokenizer");
}

TEST_F(ChecksTest, ModelAndTokenizerMustBelongTogether) {
  TinyModel{.vocab = 200}.write(model_);  // the tokenizer has 256 tokens
  expect_error([&] { quantize(options("out"), ctx_); }, ErrorCode::kBadModel,
               "tokenizer has 256 tokens");
  // Llama 2 with a "<pad>" that has no row: fine, as long as no text has it.
  TinyModel{.vocab = 240}.write(model_);
  EXPECT_NO_THROW(quantize(options("out"), ctx_));
  std::string smiles;
  for (int i = 0; i < 600; ++i) smiles += "\U0001F600";  // its first byte is 240
  io::write_file(text_, smiles);
  expect_error([&] { quantize(options("smiles"), ctx_); }, ErrorCode::kBadModel,
               "token id 240 is outside the model's vocabulary of 240");
}

}  // namespace
}  // namespace lpcd
