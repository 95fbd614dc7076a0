#include <fmt/ranges.h>

#include <array>

#include "lpcd/base/options.h"
#include "lpcd/base/raise.h"
#include "lpcd/format/output_format.h"

namespace lpcd::format {

std::span<const FormatFamily> format_families() {
  // The one list to extend.
  static constexpr std::array<FormatFamily, 4> kFamilies = {{
      {"gptq", "gptq:4,g128", "gptq:2|3|4|8,gGROUP[,asym][,v2]", &parse_gptq},
      {"ct", "ct:4,g128", "ct:2..8,gGROUP[,asym]", &parse_compressed_tensors},
      {"gguf", "gguf:q4_k_m",
       "gguf:q2_k|q3_k_s|q3_k_m|q3_k_l|q4_k_s|q4_k_m|q5_k_s|q5_k_m|q6_k|q2_0|q4_0|q4_1|q5_0|q5_1|"
       "q8_0[,"
       "pure] "
       "or gguf:exact|f16|bf16|f32",
       &parse_gguf},
      {"dense", "dense:fp16", "dense:fp16|bf16|fp32", &parse_dense},
  }};
  return kFamilies;
}

namespace {

// "3" and "g64" of "gptq:3,g64".
std::vector<std::string_view> parts_of(std::string_view text) {
  std::vector<std::string_view> parts;
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos) return parts;
  std::string_view rest = text.substr(colon + 1);
  while (true) {
    const size_t comma = rest.find(',');
    parts.push_back(rest.substr(0, comma));
    if (comma == std::string_view::npos) return parts;
    rest.remove_prefix(comma + 1);
  }
}

}  // namespace

std::unique_ptr<OutputFormat> parse_output_format(std::string_view text) {
  const std::string_view family = text.substr(0, text.find(':'));
  const std::vector<std::string_view> parts = parts_of(text);
  std::vector<std::string_view> names;
  std::vector<std::string_view> patterns;
  for (const FormatFamily& f : format_families()) {
    names.push_back(f.name);
    patterns.push_back(f.pattern);
    if (f.name != family) continue;
    if (auto format = f.parse(parts)) return format;
    raise(ErrorCode::kBadOption, "--format: \"{}\" is not of the form {}; for example {}", text,
          f.pattern, f.example);
  }
  // "q4_k_m" as llama-quantize names it.
  const std::string gguf = fmt::format("gguf:{}", text);
  if (parse_gguf(parts_of(gguf)) != nullptr) {
    raise(ErrorCode::kBadOption, "--format: unknown format \"{}\", did you mean \"{}\"?", text,
          gguf);
  }
  raise(ErrorCode::kBadOption,
        "--format: unknown format \"{}\", did you mean \"{}\"? Known are: {}", text,
        nearest(family, names), fmt::join(patterns, ", "));
}

}  // namespace lpcd::format
