#include "lpcd/eval/evaluate.h"

#include <chrono>
#include <cmath>

#include "lpcd/api/machine.h"
#include "lpcd/base/raise.h"
#include "lpcd/bundle/open_model.h"
#include "lpcd/calib/dataset.h"
#include "lpcd/calib/self_sample.h"
#include "lpcd/lpcd.h"
#include "lpcd/pipeline/plan.h"

namespace lpcd {
namespace {

eval::Windows load_windows(const EvaluateOptions& o, const RunContext& ctx,
                           const arch::Model& model, const arch::Model* reference,
                           const std::optional<text::Tokenizer>& tokenizer) {
  const auto mode = o.ppl_mode == PplMode::kLlamaCpp ? eval::PerplexityMode::kLlamaCpp
                                                     : eval::PerplexityMode::kWindows;
  const auto leading = tokenizer ? tokenizer->leading_id() : std::nullopt;
  calib::DatasetOptions d{
      .samples = o.samples, .seq_len = o.seq_len, .seed = o.seed, .text_key = o.text_key};
  if (o.ppl == "self") {
    const calib::Dataset data = calib::sample_from_model(
        ctx, reference != nullptr ? *reference : model, tokenizer ? &*tokenizer : nullptr, d, 1.0,
        pipeline::available_memory() / 2);
    return eval::make_windows(data.ids, o.seq_len, o.max_tokens, mode, leading, "self");
  }
  if (o.ppl.ends_with(".safetensors")) {
    d.samples = int64_t{1} << 40;
    const calib::Dataset data = calib::load_dataset(o.ppl, nullptr, d);
    return eval::make_windows(data.ids, data.seq_len, o.max_tokens, mode, leading, o.ppl);
  }
  return eval::make_windows(
      calib::tokenize_file(o.ppl, tokenizer ? &*tokenizer : nullptr, o.text_key), o.seq_len,
      o.max_tokens, mode, leading, o.ppl);
}

Json to_json(const EvaluateOptions& o, const EvaluateResult& r) {
  Json json = {{"model", o.model},
               {"text", o.ppl},
               {"ppl_mode", EnumNames<PplMode>::values[static_cast<size_t>(o.ppl_mode)]},
               {"seq_len", o.seq_len},
               {"windows", r.windows},
               {"tokens", r.tokens},
               {"perplexity", r.perplexity},
               {"perplexity_error", r.perplexity_error},
               {"seconds", r.seconds},
               {"peak_memory_bytes", api::peak_memory()}};
  if (r.reference) {
    json["reference"] = {{"model", o.reference},
                         {"perplexity", r.reference->perplexity},
                         {"perplexity_error", r.reference->perplexity_error},
                         {"kl_mean", r.reference->kl_mean},
                         {"kl_error", r.reference->kl_error},
                         {"kl_median", r.reference->kl_median},
                         {"kl_p99", r.reference->kl_p99},
                         {"top1_agreement", r.reference->top1_agreement}};
  }
  return json;
}

std::string summarize(const EvaluateOptions& o, const EvaluateResult& r) {
  std::string text = fmt::format("text            {}, {} windows of {} tokens, {} scored\n", o.ppl,
                                 r.windows, o.seq_len, r.tokens);
  text += fmt::format("perplexity      {:.4f} +- {:.4f}\n", r.perplexity, r.perplexity_error);
  if (r.reference) {
    const auto& ref = *r.reference;
    text += fmt::format("reference       {:.4f} +- {:.4f}\n", ref.perplexity, ref.perplexity_error);
    text += fmt::format("KL divergence   {:.5f} +- {:.5f} nats (median {:.5f}, 99 % {:.5f})\n",
                        ref.kl_mean, ref.kl_error, ref.kl_median, ref.kl_p99);
    text += fmt::format("top-1 agreement {:.2f} %\n", 100 * ref.top1_agreement);
  }
  text += fmt::format("time            {}, peak memory {}\n", format_duration(r.seconds),
                      format_bytes(api::peak_memory()));
  return text;
}

}  // namespace

EvaluateResult evaluate(const EvaluateOptions& options, const RunContext& outer) {
  const auto start = std::chrono::steady_clock::now();
  const RunContext ctx = api::prepared(outer, options.threads);
  const arch::Model model = bundle::open_model(options.model);
  std::optional<arch::Model> reference;
  if (!options.reference.empty()) reference = bundle::open_model(options.reference);
  std::optional<text::Tokenizer> tokenizer = bundle::open_tokenizer(model);
  if (!tokenizer && reference) tokenizer = bundle::open_tokenizer(*reference);

  EvaluateOptions resolved = options;
  const eval::Windows windows =
      load_windows(options, ctx, model, reference ? &*reference : nullptr, tokenizer);
  resolved.seq_len = windows.seq_len;
  if (windows.seq_len > model.config().max_positions) {
    raise(ErrorCode::kBadOption, "--seq-len {} is beyond the model's {} positions", windows.seq_len,
          model.config().max_positions);
  }
  const eval::Comparison c = eval::compare(ctx, model, reference ? &*reference : nullptr, windows);
  EvaluateResult result;
  result.windows = windows.count();
  result.tokens = c.model.tokens;
  result.perplexity = c.model.perplexity();
  result.perplexity_error = c.model.perplexity() * c.model.nll_error;
  if (c.divergence) {
    result.reference = EvaluateResult::Reference{
        .perplexity = c.reference->perplexity(),
        .perplexity_error = c.reference->perplexity() * c.reference->nll_error,
        .kl_mean = c.divergence->kl_mean,
        .kl_error = c.divergence->kl_error,
        .kl_median = c.divergence->kl_median,
        .kl_p99 = c.divergence->kl_p99,
        .top1_agreement = c.divergence->top1_agreement};
  }
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  result.json = dump_json(to_json(resolved, result), 1);
  result.summary = summarize(resolved, result);
  return result;
}

}  // namespace lpcd
