#include <filesystem>

#include "lpcd/api/machine.h"
#include "lpcd/api/output.h"
#include "lpcd/base/raise.h"
#include "lpcd/bundle/open_model.h"
#include "lpcd/io/file.h"
#include "lpcd/lpcd.h"

namespace lpcd {
namespace {

// The command that makes a run whose grid a format stores.
std::string remedy(const std::string& model, const format::OutputFormat& format) {
  return fmt::format("lpcd quantize {} --format {} --out DIR makes it", model, format.text());
}

void export_run(const RunContext& ctx, const pipeline::Journal& journal,
                const ExportOptions& options, const format::OutputFormat& format) {
  const Json run = journal.read_run();
  const JsonFields fields(run, options.source + "/.lpcd/run.json");
  const std::string path = fields.string_at("model");
  if (!fields.bool_or("finished", false)) {
    raise(ErrorCode::kBadModel,
          "{}: the run is not finished; go on with lpcd quantize {} --out {} --resume",
          options.source, path, options.source);
  }
  const arch::Model model = bundle::open_model(path);
  const JsonFields fingerprint(fields.object_at("fingerprint"), fields.where());
  if (fingerprint.string_at("model") != model.identity()) {
    raise(ErrorCode::kBadModel, "{}: not the model that {} was made from; put the original back",
          path, options.source);
  }
  const auto grid = format.grid();
  for (int64_t b = 0; grid && b < model.config().blocks; ++b) {
    for (const auto& [role, q] : journal.read_block(b)) {
      if (q.spec == *grid) continue;
      raise(ErrorCode::kBadOption, "{}: {} has {}, {} stores {}; {}", options.source,
            model.name(role, b), q.spec.text(), format.text(), grid->text(), remedy(path, format));
    }
  }
  const auto tokenizer = bundle::open_tokenizer(model);
  const Json meta = {{"quantizer", {"lpcd.cpp:" + version()}}};
  api::write_output(ctx, model, tokenizer ? &*tokenizer : nullptr, journal, format, meta,
                    parse_bytes(options.shard_size, "shard-size"), options.out);
}

}  // namespace

void export_model(const ExportOptions& options, const RunContext& outer) {
  const RunContext ctx = api::prepared(outer, outer.threads);
  const auto format = format::parse_output_format(options.format);
  if (options.out.empty()) raise(ErrorCode::kBadOption, "export needs --out DIR");
  api::require_empty(options.out);
  const pipeline::Journal journal(options.source);
  if (journal.exists()) {
    export_run(ctx, journal, options, *format);
    return;
  }
  const arch::Model model = bundle::open_model(options.source);
  if (format->grid()) {
    raise(ErrorCode::kBadOption, "{}: not a run of lpcd, so there are no codes to store; {}",
          options.source, remedy(options.source, *format));
  }
  const auto tokenizer = bundle::open_tokenizer(model);
  bundle::DirectoryContents contents;
  contents.model = &model;
  contents.tokenizer = tokenizer ? &*tokenizer : nullptr;
  contents.format = format.get();
  contents.max_shard_bytes = parse_bytes(options.shard_size, "shard-size");
  bundle::write_hf_directory(ctx, contents, options.out);
}

}  // namespace lpcd
