#include <fmt/format.h>

#include <cstdio>

#include "commands.h"

// eval, export, generate, inspect: thin shells around one library call each.

namespace lpcd::cli {
namespace {

void require(const std::string& value, const char* message) {
  if (value.empty()) throw Error(ErrorCode::kBadOption, message);
}

class EvalCommand final : public Command {
 public:
  void add_to(CLI::App& parent, const Environment& /*environment*/) override {
    CLI::App& app =
        create(parent, "eval",
               "lpcd eval PATH [--reference MODEL] [--ppl SOURCE] [--tasks FILE] [options]",
               "Measures perplexity, how far a model is from its original, and how many questions "
               "it answers rightly.");
    app.add_option("path", options_.model);
    help_.push_back(
        {"What to measure", "PATH", "Model directory, GGUF file, or directory that lpcd wrote."});
    EvaluateOptions::visit(options_, OptionBinder(app, help_));
    add_common(true, false);
  }
  int run(const Environment& environment) override {
    require(options_.model, "eval needs a PATH; see lpcd eval --help");
    outlive_readers();
    ProgressLine progress(quiet_);
    const EvaluateResult result = evaluate(options_, context(environment, progress));
    progress.finish();
    fmt::print("{}{}", json_ ? result.json : result.summary, json_ ? "\n" : "");
    return 0;
  }

 private:
  EvaluateOptions options_;
};

class ExportCommand final : public Command {
 public:
  void add_to(CLI::App& parent, const Environment& /*environment*/) override {
    CLI::App& app =
        create(parent, "export", "lpcd export RUN --format F --out DIR [options]",
               "Writes a finished run in another format with the same grid, or converts a "
               "checkpoint to dense safetensors or GGUF. Nothing is quantized again.");
    app.add_option("run", options_.source);
    app.add_option("--format", options_.format)->take_last();
    app.add_option("--out", options_.out)->take_last();
    app.add_option("--model", options_.model)->take_last();
    app.add_option("--shard-size", options_.shard_size)->take_last();
    help_ = {
        {"What to write", "RUN", "Directory of a finished run, or a model to convert."},
        {"What to write", "--format F",
         "gptq:BITS,gGROUP[,asym][,v2], ct:BITS,gGROUP[,asym], gguf:TYPE (a run's own mix, "
         "exact, f16, bf16, f32) or dense:fp16|bf16|fp32."},
        {"What to write", "--out DIR", "Directory to write; must not exist, or be empty."},
        {"What to write", "--model MODEL", "The run's original, if it is no longer where it was."},
        {"What to write", "--shard-size SIZE", "Largest output file. [5G]"}};
    add_common(false, true);
  }
  int run(const Environment& environment) override {
    require(options_.source, "export needs a RUN; see lpcd export --help");
    require(options_.format, "export needs --format F; see lpcd export --help");
    outlive_readers();
    ProgressLine progress(quiet_);
    const std::string path = export_model(options_, context(environment, progress));
    progress.finish();
    fmt::print("{}\n", path);
    return 0;
  }

 private:
  ExportOptions options_;
};

class GenerateCommand final : public Command {
 public:
  void add_to(CLI::App& parent, const Environment& /*environment*/) override {
    CLI::App& app =
        create(parent, "generate", "lpcd generate PATH --prompt TEXT [options]",
               "Lets a model continue a text: a quick listen to what it can still say.");
    app.add_option("path", options_.model);
    help_ = {{"What to say", "PATH", "Model directory, GGUF file, or directory that lpcd wrote."}};
    GenerateOptions::visit(options_, OptionBinder(app, help_));
    add_common(false, true);
  }
  int run(const Environment& environment) override {
    require(options_.model, "generate needs a PATH; see lpcd generate --help");
    ProgressLine progress(true);
    generate(options_, context(environment, progress), [](std::string_view text) {
      std::fwrite(text.data(), 1, text.size(), stdout);
      std::fflush(stdout);
    });
    std::fputc('\n', stdout);
    return 0;
  }

 private:
  GenerateOptions options_;
};

class InspectCommand final : public Command {
 public:
  void add_to(CLI::App& parent, const Environment& /*environment*/) override {
    CLI::App& app = create(parent, "inspect", "lpcd inspect PATH [--json]",
                           "Says what a model, a GGUF file, a finished or an unfinished run is.");
    app.add_option("path", path_);
    help_ = {
        {"What to look at", "PATH", "Model directory, GGUF file, or directory that lpcd wrote."}};
    add_common(true, false);
  }
  int run(const Environment& /*environment*/) override {
    require(path_, "inspect needs a PATH; see lpcd inspect --help");
    const InspectResult result = inspect(path_);
    fmt::print("{}{}", json_ ? result.json : result.summary, json_ ? "\n" : "");
    return 0;
  }

 private:
  std::string path_;
};

}  // namespace

std::unique_ptr<Command> make_eval_command() { return std::make_unique<EvalCommand>(); }
std::unique_ptr<Command> make_export_command() { return std::make_unique<ExportCommand>(); }
std::unique_ptr<Command> make_generate_command() { return std::make_unique<GenerateCommand>(); }
std::unique_ptr<Command> make_inspect_command() { return std::make_unique<InspectCommand>(); }

}  // namespace lpcd::cli
