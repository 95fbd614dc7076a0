#include <fmt/format.h>

#include <filesystem>

#include "commands.h"

namespace lpcd::cli {
namespace {

class QuantizeCommand final : public Command {
 public:
  void add_to(CLI::App& parent, const Environment& environment) override {
    CLI::App& app =
        create(parent, "quantize", "lpcd quantize MODEL --out DIR [options]",
               "Turns a checkpoint (Hugging Face directory or GGUF file) into a 2- to 8-bit one.");
    app.add_option("model", options_.model);
    app.add_option("--out", options_.out)->take_last();
    help_.push_back({"What to do", "MODEL", "Hugging Face directory (safetensors) or GGUF file."});
    help_.push_back(
        {"What to do", "--out DIR", "Directory to write; must not exist, or be empty."});
    apply_preset(preset_of(environment.arguments), options_);
    QuantizeOptions::visit(options_, OptionBinder(app, help_, &options_.given));
    add_common(true, false);
  }

  int run(const Environment& environment) override {
    if (options_.model.empty())
      throw Error(ErrorCode::kBadOption, "quantize needs a MODEL; see lpcd quantize --help");
    if (options_.out.empty() && !options_.dry_run) {
      throw Error(ErrorCode::kBadOption,
                  "quantize needs --out DIR (or --dry-run); see lpcd quantize --help");
    }
    if (!options_.dry_run) outlive_readers();
    ProgressLine progress(quiet_);
    const RunContext ctx = context(environment, progress);
    try {
      const QuantizeResult result = quantize(options_, ctx);
      progress.finish();
      if (options_.dry_run) {
        fmt::print("{}", json_ ? result.plan_json : result.plan);
      } else {
        fmt::print("{}", json_ ? result.record_json : result.summary);
      }
    } catch (const Error& e) {
      progress.finish();
      if (e.code() != ErrorCode::kCancelled) throw;
      const std::string journal = options_.out + "/.lpcd/";
      if (!std::filesystem::exists(journal + "run.json")) {
        throw Error(e.code(),
                    std::filesystem::exists(journal + "sample.json")
                        ? "stopped while the model was writing its text; the same command "
                          "goes on with it"
                        : "stopped before the first block; there is nothing to go on with");
      }
      throw Error(e.code(), "stopped; finished blocks are kept. Go on with: lpcd " +
                                resume_command(environment));
    }
    return 0;
  }

 private:
  // The preset decides the defaults that the help shows and the other options start from. The last
  // one counts, as of every option.
  static Preset preset_of(const std::vector<std::string>& arguments) {
    std::string preset;
    for (size_t i = 0; i < arguments.size(); ++i) {
      if (arguments[i].starts_with("--preset=")) preset = arguments[i].substr(9);
      if (arguments[i] == "--preset" && i + 1 < arguments.size()) preset = arguments[i + 1];
    }
    return preset == "onecomp" ? Preset::kOnecomp : Preset::kDefault;
  }

  static std::string resume_command(const Environment& environment) {
    std::string text;
    bool resume = false;
    for (const std::string& argument : environment.arguments) {
      resume = resume || argument == "--resume";
      text += (text.empty() ? "" : " ") + shell_word(argument);
    }
    return resume ? text : text + " --resume";
  }

  QuantizeOptions options_;
};

}  // namespace

std::unique_ptr<Command> make_quantize_command() { return std::make_unique<QuantizeCommand>(); }

}  // namespace lpcd::cli
