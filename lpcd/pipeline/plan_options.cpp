#include "lpcd/pipeline/plan_options.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>

#include "lpcd/arch/arch.h"
#include "lpcd/base/raise.h"
#include "lpcd/submodules/relax.h"

namespace lpcd::pipeline {

using arch::Role;
using submodules::Submodule;

namespace {

std::vector<std::string> layer_names() {
  std::vector<std::string> names;
  names.reserve(arch::kLinearRoles.size());
  for (const Role role : arch::kLinearRoles) names.emplace_back(arch::role_name(role));
  return names;
}

}  // namespace

Chosen chosen_submodules(const QuantizeOptions& options) {
  const std::vector<std::string>& names = options.lpcd;
  const bool reference = options.preset == Preset::kOnecomp;
  std::vector<std::string_view> known = {"none", "all"};
  for (const auto& c : submodules::coupled_submodules()) known.push_back(c.name);
  for (const Submodule* s : submodules::lpcd_submodules()) known.push_back(s->name());
  for (const std::string& name : names) {
    if (std::ranges::find(known, name) == known.end()) {
      raise(ErrorCode::kBadOption,
            "--lpcd: unknown submodule \"{}\", did you mean \"{}\"? Known are: {}", name,
            nearest(name, known), fmt::join(known, ", "));
    }
    if (name == "none" && names.size() > 1) {
      raise(ErrorCode::kBadOption, "--lpcd: none cannot be combined with other submodules");
    }
  }
  const auto named = [&](std::string_view what) {
    return std::ranges::any_of(names, [&](const auto& n) { return n == "all" || n == what; });
  };
  Chosen chosen;
  for (const auto& c : submodules::coupled_submodules()) {
    if (!named(c.name)) continue;
    if (reference && c.make_reference == nullptr) {
      if (std::ranges::find(names, c.name) == names.end()) continue;
      raise(ErrorCode::kBadOption,
            "--lpcd {}: the package that --preset onecomp reproduces has no "
            "such submodule; leave it out, or leave out the preset",
            c.name);
    }
    chosen.coupled.push_back(&c);
  }
  if (reference && !chosen.coupled.empty() && options.solver != Solver::kGd) {
    raise(ErrorCode::kBadOption,
          "--preset onecomp relaxes submodules by gradient descent: leave out --solver, or the "
          "preset");
  }
  if (reference && !chosen.coupled.empty() && options.alt_steps > 1) {
    raise(ErrorCode::kBadOption,
          "--preset onecomp repeats cycles (--alt-steps {}) for --lpcd residual only",
          options.alt_steps);
  }
  for (const Submodule* s : submodules::lpcd_submodules()) {
    if (named(s->name())) chosen.closed.push_back(s);
  }
  return chosen;
}

std::optional<double> parse_strength(const std::string& text, std::string_view flag) {
  if (text == "auto") return {};
  double value = -1;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size() || !(value >= 0 && value <= 1)) {
    raise(ErrorCode::kBadOption, "--{}: \"{}\" must be auto or a number from 0 to 1", flag, text);
  }
  return value;
}

std::vector<double> parse_dampings(const std::vector<std::string>& texts) {
  std::vector<double> values;
  for (const std::string& text : texts) {
    double value = -1;
    const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (error != std::errc() || stop != text.data() + text.size() ||
        !(value >= 0 && value <= 100)) {
      raise(ErrorCode::kBadOption, "--percdamp: \"{}\" must be a number from 0 to 100", text);
    }
    values.push_back(value);
  }
  if (values.empty()) raise(ErrorCode::kBadOption, "--percdamp needs at least one number");
  std::ranges::sort(values);
  return values;
}

std::pair<std::string, int> parse_bits_for(const std::string& text) {
  const size_t equals = text.rfind('=');
  int bits = 0;
  if (equals != std::string::npos) {
    const char* begin = text.data() + equals + 1;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(begin, end, bits);
    if (error != std::errc() || stop != end) bits = 0;
  }
  if (bits < 2 || bits > 8 || equals == 0) {
    raise(ErrorCode::kBadOption,
          "--bits-for: \"{}\" must be PATTERN=BITS with 2 to 8 bits, for example '*down_proj*=4'",
          text);
  }
  return {text.substr(0, equals), bits};
}

void check_options(const QuantizeOptions& o) {
  if (o.group_size == 0 || o.group_size < -1) {
    raise(ErrorCode::kBadOption, "--group-size must be positive, or -1 for one scale per row");
  }
  if (o.solver == Solver::kGd && o.gd_batch_size % submodules::kAdamChunk != 0) {
    raise(ErrorCode::kBadOption, "--gd-batch-size must be a multiple of {}, found {}",
          submodules::kAdamChunk, o.gd_batch_size);
  }
  if (o.mlp_bits == 1) raise(ErrorCode::kBadOption, "--mlp-bits must be 2 to 8, or 0 for --bits");
  const std::vector<std::string> layers = layer_names();
  for (const std::string& name : o.qep_exclude) {
    if (name == "none" && o.qep_exclude.size() == 1) continue;
    if (std::ranges::find(layers, name) == layers.end()) {
      const std::vector<std::string_view> views(layers.begin(), layers.end());
      raise(ErrorCode::kBadOption, "--qep-exclude: unknown layer \"{}\", did you mean \"{}\"?",
            name, nearest(name, views));
    }
  }
  if (o.holdout == 0 && o.percdamp.size() > 1 && o.was_given("percdamp")) {
    raise(
        ErrorCode::kBadOption,
        "--percdamp: several values are chosen from on held-out sequences, and --holdout 0 leaves "
        "none; give one value");
  }
  if (!o.own_metric && o.output_feedback && o.was_given("output-feedback")) {
    raise(ErrorCode::kBadOption, "--output-feedback on has no effect with --own-metric off");
  }
  if (o.mse && o.scale_search && o.was_given("scale-search")) {
    raise(ErrorCode::kBadOption,
          "--scale-search on and --mse choose scales in two ways; leave one of them out");
  }
  const bool lpcd = !chosen_submodules(o).empty();
  if (o.hessian_from == HessianFrom::kOriginal && (o.qep || lpcd)) {
    raise(
        ErrorCode::kBadOption,
        "--hessian-from original carries no quantized activations; it needs --qep off --lpcd none");
  }
}

}  // namespace lpcd::pipeline
