#include "commands.h"

#include <signal.h>

namespace lpcd::cli {

std::vector<std::unique_ptr<Command>> make_commands() {
  std::vector<std::unique_ptr<Command>> commands;
  commands.push_back(make_quantize_command());
  commands.push_back(make_eval_command());
  commands.push_back(make_export_command());
  commands.push_back(make_generate_command());
  commands.push_back(make_inspect_command());
  return commands;
}

CLI::App& Command::create(CLI::App& parent, const std::string& name, const std::string& usage,
                          const std::string& description) {
  app_ = parent.add_subcommand(name, description);
  app_->allow_extras();  // reported by us, with the nearest name
  app_->set_help_flag("-h,--help");
  app_->formatter_fn(
      [this, usage, description](const CLI::App*, const std::string&, CLI::AppFormatMode) {
        std::vector<HelpEntry> entries = help_;
        entries.push_back({"Other", "-h, --help", "Show this text."});
        return format_help(usage, description, entries);
      });
  return *app_;
}

void Command::add_common(bool json, bool threads) {
  if (threads) {
    OptionBinder bind(*app_, help_);
    bind(threads_, {.name = "threads",
                    .value = "N",
                    .section = "Run",
                    .help = "Worker threads; 0: all processors.",
                    .min = 0,
                    .max = 4096});
  }
  if (json) {
    app_->add_flag("--json", json_);
    help_.push_back({"Run", "--json", "Print the result as one JSON object on stdout."});
  }
  app_->add_flag("--quiet", quiet_);
  help_.push_back({"Run", "--quiet", "No progress on stderr."});
}

RunContext Command::context(const Environment& environment, ProgressLine& progress) const {
  RunContext ctx;
  ctx.threads = threads_;
  ctx.cancel = environment.cancel;
  ctx.log = [&progress](LogLevel level, std::string_view text) { progress.print(level, text); };
  ctx.progress = [&progress](const Progress& p) { progress.update(p); };
  return ctx;
}

void Command::outlive_readers() { signal(SIGPIPE, SIG_IGN); }

}  // namespace lpcd::cli
