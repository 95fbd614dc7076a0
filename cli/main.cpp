#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string_view>
#include <system_error>

#include "commands.h"

namespace lpcd::cli {
namespace {

const int g_read_failed = exit_code(ErrorCode::kReadFailed);
std::atomic<bool> g_cancel{false};
static_assert(std::atomic<bool>::is_always_lock_free);  // set from a signal handler

// The first signal asks for a safe stop, the second does not wait.
void on_signal(int /*signal*/) {
  if (g_cancel.exchange(true)) _exit(130);
}

// Files are mapped: what cannot be read any more is a signal, not an error that could be caught.
void on_bus_error(int /*signal*/) {
  constexpr std::string_view kMessage =
      "lpcd: a file could not be read any further: it was cut short while in use, or its disk or "
      "network failed; mend that and start again (quantize with --resume keeps finished blocks)\n";
  (void)!write(STDERR_FILENO, kMessage.data(), kMessage.size());
  _exit(g_read_failed);
}

void install_signal_handlers() {
  struct sigaction bus_error{};
  bus_error.sa_handler = &on_bus_error;
  sigaction(SIGBUS, &bus_error, nullptr);
  for (const int number : {SIGINT, SIGTERM, SIGHUP}) {
    struct sigaction inherited{};
    sigaction(number, nullptr, &inherited);
    if (inherited.sa_handler == SIG_IGN) continue;  // nohup, or a job of a script
    struct sigaction action{};
    action.sa_handler = &on_signal;
    sigaction(number, &action, nullptr);
  }
  signal(SIGPIPE, SIG_DFL);  // until Command::outlive_readers
}

// A file of ours that got the number of a closed stream would receive what is printed: the number
// is taken, and using it is an error.
void occupy_closed_streams() {
  for (const int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(fd, F_GETFD) != -1) continue;
    if (open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) != fd) return;
  }
}

// A result that nobody received is not success.
void flush_result() {
  errno = 0;
  if (std::fflush(stdout) == 0 && std::ferror(stdout) == 0) return;
  throw Error(ErrorCode::kWriteFailed,
              fmt::format("standard output: cannot write: {}; the result is not complete there",
                          errno != 0 ? std::strerror(errno) : "an earlier write failed"));
}

// Two libraries read the environment when they are loaded, before main. Where that would be slow,
// the variable is set and the command started again; what the user set is left alone.
//  * OpenBLAS picks its kernels, and may pick ones that are too old for this CPU.
//  * OpenMP threads spin while they wait for each other, which takes the processor from the one
//    that is waited for as soon as anything else runs on the machine (four times slower measured).
void prepare_environment(char** argv) {
  bool changed = false;
  const auto set = [&](const char* name, const std::string& value) {
    if (value.empty() || std::getenv(name) != nullptr) return;
    changed = setenv(name, value.c_str(), 0) == 0 || changed;
  };
  set("OPENBLAS_CORETYPE", recommended_openblas_core());
  set("OMP_WAIT_POLICY", "passive");
  if (changed) execv("/proc/self/exe", argv);  // if this fails: slower, but it works
}

std::string main_help() {
  return format_help(
      "lpcd COMMAND [options]",
      "Post-training quantization of language models on CPUs: GPTQ, QEP and LPCD.",
      {{"Commands", "quantize", "Turn a checkpoint into a 2- to 8-bit one."},
       {"Commands", "eval", "Measure perplexity and the distance from the original."},
       {"Commands", "export", "Write a finished run in another format."},
       {"Commands", "generate", "Let a model continue a text."},
       {"Commands", "inspect", "Say what a model or a run is."},
       {"Other", "-h, --help", "Show this text, or that of a command: lpcd quantize --help."},
       {"Other", "--version", "Show the version."},
       {"Exit codes", "0 2 3 4 5 6 70 130",
        "done; usage, input, input/output, resource or numerical error; bug; stopped by a "
        "signal"}});
}

int run(int argc, char** argv) {
  Environment environment;
  environment.arguments.assign(argv + 1, argv + argc);
  environment.cancel = &g_cancel;

  CLI::App app("lpcd");
  app.allow_extras();
  app.require_subcommand(0, 1);  // a second command's name is a path, or too much
  app.set_version_flag("--version", "lpcd " + version());
  app.formatter_fn(
      [](const CLI::App*, const std::string&, CLI::AppFormatMode) { return main_help(); });
  const auto commands = make_commands();
  for (const auto& command : commands) command->add_to(app, environment);
  try {
    app.parse(argc, argv);
  } catch (const CLI::Success& e) {  // --help, --version
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    throw Error(ErrorCode::kBadOption, e.what());
  }
  for (const auto& command : commands) {
    if (!command->chosen()) continue;
    const std::vector<std::string> before = app.remaining(false);
    if (!before.empty()) {
      const std::string& name = command->app()->get_name();
      throw Error(
          ErrorCode::kBadOption,
          fmt::format("\"{}\" stands before the command {}; what belongs to it goes behind: "
                      "lpcd {} ...",
                      before[0], name, name));
    }
    if (!command->app()->remaining(true).empty()) reject_extras(*command->app());
    return command->run(environment);
  }
  if (environment.arguments.empty()) {
    fmt::print("{}", main_help());
    return 2;
  }
  const std::string& word = environment.arguments[0];
  std::vector<std::string> names;
  const bool flag = word.starts_with("-");
  if (flag) {
    names = {"--help", "--version"};
  } else {
    for (const auto& command : commands) names.push_back(command->app()->get_name());
  }
  const std::vector<std::string_view> views(names.begin(), names.end());
  throw Error(ErrorCode::kBadOption,
              fmt::format("unknown {} \"{}\", did you mean \"{}\"? See lpcd --help",
                          flag ? "option" : "command", word, nearest(word, views)));
}

}  // namespace
}  // namespace lpcd::cli

int main(int argc, char** argv) {
  using lpcd::ErrorCode;
  lpcd::cli::occupy_closed_streams();
  lpcd::cli::prepare_environment(argv);
  lpcd::cli::install_signal_handlers();
  const auto fail = [](ErrorCode code, const char* message) {
    lpcd::cli::print_error(fmt::format("lpcd: {}\n", message));
    return lpcd::exit_code(code);
  };
  try {
    const int code = lpcd::cli::run(argc, argv);
    lpcd::cli::flush_result();
    return code;
  } catch (const lpcd::Error& e) {
    return fail(e.code(), e.what());
  } catch (const std::bad_alloc&) {
    return fail(ErrorCode::kOutOfMemory,
                "out of memory; lower --max-memory or --samples, or use a larger machine");
  } catch (const std::system_error& e) {  // of fmt::print
    return fail(
        ErrorCode::kWriteFailed,
        fmt::format("standard output: {}; the result is not complete there", e.what()).c_str());
  } catch (const std::exception& e) {
    return fail(ErrorCode::kInternal, e.what());
  }
}
