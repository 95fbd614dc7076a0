#include <algorithm>
#include <random>

#include "lpcd/api/boundary.h"
#include "lpcd/api/machine.h"
#include "lpcd/arch/decoder.h"
#include "lpcd/base/control_group.h"
#include "lpcd/base/raise.h"
#include "lpcd/bundle/open_model.h"
#include "lpcd/calib/dataset.h"
#include "lpcd/calib/self_sample.h"
#include "lpcd/lpcd.h"

namespace lpcd {
namespace {

// Length of the longest prefix of `text` that does not end inside a character, seen as U+FFFD at
// the end of a decoded text whose last token holds part of a character.
size_t complete_prefix(const std::string& text) {
  constexpr std::string_view kReplacement = "\xEF\xBF\xBD";
  size_t size = text.size();
  while (size >= kReplacement.size() &&
         std::string_view(text).substr(size - kReplacement.size(), kReplacement.size()) ==
             kReplacement) {
    size -= kReplacement.size();
  }
  return size;
}

std::string generate_unguarded(const GenerateOptions& options, const RunContext& outer,
                               const std::function<void(std::string_view)>& on_text) {
  const RunContext ctx = api::prepared(outer, outer.threads);
  const arch::Model model = bundle::open_model(options.model);
  const auto tokenizer = bundle::open_tokenizer(model);
  if (!tokenizer) {
    raise(ErrorCode::kBadModel, "{}: no tokenizer.json; generate needs one", options.model);
  }
  std::vector<int32_t> ids = tokenizer->encode(options.prompt, text::SpecialTokens::kAdd);
  if (ids.empty()) {
    raise(ErrorCode::kBadText,
          "the prompt is empty and the model has no token to begin with; give --prompt");
  }
  calib::check_ids(ids, model.config().vocab_size, "prompt");
  const int64_t length = static_cast<int64_t>(ids.size()) + options.tokens;
  if (length > model.config().max_positions) {
    raise(ErrorCode::kBadOption, "prompt and --tokens make {} positions, the model has {}", length,
          model.config().max_positions);
  }
  arch::Decoder decoder(model, 1, length, available_memory() / 2, &ctx);
  std::mt19937_64 rng(options.seed);
  const size_t prompt_size = ids.size();
  std::string shown;
  for (size_t at = 0; at < ids.size(); ++at) {
    ctx.throw_if_cancelled();
    const FloatView logits = decoder.step(ctx, {&ids[at], 1});
    if (at + 1 < prompt_size) continue;
    const std::string text = tokenizer->decode(ids);
    const size_t complete = complete_prefix(text);
    if (complete > shown.size()) {
      if (on_text) on_text(std::string_view(text).substr(shown.size(), complete - shown.size()));
      shown = text.substr(0, complete);
    }
    if (std::cmp_greater_equal(ids.size() - prompt_size, options.tokens)) break;
    const double uniform = static_cast<double>(rng() >> 11) * 0x1.0p-53;
    const int32_t next = calib::draw_token({logits.data(), static_cast<size_t>(logits.cols())},
                                           options.temperature, uniform);
    if (std::ranges::find(tokenizer->end_ids(), next) != tokenizer->end_ids().end()) break;
    ids.push_back(next);
  }
  return tokenizer->decode(ids);
}

}  // namespace

std::string generate(const GenerateOptions& options, const RunContext& outer,
                     const std::function<void(std::string_view)>& on_text) {
  return api::with_typed_errors([&] {
    check_ranges(options);
    return generate_unguarded(options, outer, on_text);
  });
}

}  // namespace lpcd
