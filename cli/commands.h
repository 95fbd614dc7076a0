#pragma once

#include <string>
#include <vector>

#include "command_line.h"
#include "progress.h"

namespace lpcd::cli {

/// What every subcommand gets.
struct Environment {
  std::vector<std::string> arguments;  ///< as given, without the program's name
  const std::atomic<bool>* cancel = nullptr;
};

/// A subcommand: registers itself, and runs when it was chosen.
class Command {
 public:
  virtual ~Command() = default;
  virtual void add_to(CLI::App& app, const Environment& environment) = 0;
  [[nodiscard]] bool chosen() const { return app_ != nullptr && app_->parsed(); }
  /// Exit code.
  virtual int run(const Environment& environment) = 0;
  [[nodiscard]] CLI::App* app() const { return app_; }

 protected:
  /// Adds the subcommand with its help; options are appended to help_ by OptionBinder.
  CLI::App& create(CLI::App& parent, const std::string& name, const std::string& usage,
                   const std::string& description);
  /// Options that all subcommands share.
  void add_common(bool json, bool threads);
  [[nodiscard]] RunContext context(const Environment& environment, ProgressLine& progress) const;
  /// From here on a pipe whose reader has ended, say a `tee`, does not end the process: lines for
  /// stderr go nowhere, and a result that is lost becomes kWriteFailed. For commands whose work is
  /// worth more than what they print; the others end quietly, as in `lpcd inspect | head`.
  static void outlive_readers();

  CLI::App* app_ = nullptr;
  std::vector<HelpEntry> help_;
  bool json_ = false;
  bool quiet_ = false;
  int threads_ = 0;
};

/// All subcommands, in the order of the help.
[[nodiscard]] std::vector<std::unique_ptr<Command>> make_commands();

std::unique_ptr<Command> make_quantize_command();
std::unique_ptr<Command> make_eval_command();
std::unique_ptr<Command> make_export_command();
std::unique_ptr<Command> make_generate_command();
std::unique_ptr<Command> make_inspect_command();

}  // namespace lpcd::cli
