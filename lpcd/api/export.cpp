#include "lpcd/api/boundary.h"
#include "lpcd/api/machine.h"
#include "lpcd/api/output.h"
#include "lpcd/base/raise.h"
#include "lpcd/bundle/hf_directory.h"
#include "lpcd/bundle/open_model.h"
#include "lpcd/io/file.h"
#include "lpcd/lpcd.h"
#include "lpcd/pipeline/ggml_types.h"

namespace lpcd {
namespace {

// The directory to write to, made and locked, without what a killed export left in it.
class OutputDirectory {
 public:
  OutputDirectory(const RunContext& ctx, const std::string& path) : lock_(made(path)) {
    api::warn_without_lock(ctx, lock_);
    check(path);  // another process may have been faster
    bundle::remove_leftovers(path);
  }

  static void check(const std::string& path) {
    if (pipeline::Journal(path).exists()) {
      raise(ErrorCode::kOutputExists, "{}: holds a run; give another --out", path);
    }
    api::require_empty(path);
  }

 private:
  static const std::string& made(const std::string& path) {
    io::make_directories(path);
    return path;
  }

  io::DirectoryLock lock_;
};

// The command that makes a run whose grid a format stores.
std::string remedy(const std::string& model, const format::OutputFormat& format) {
  return fmt::format("lpcd quantize {} --format {} --out DIR makes it", shell_word(model),
                     format.text());
}

// Every layer of the run must be on the grid that the format stores.
void check_grids(const arch::Model& model, const api::LayerGrids& grids,
                 const format::OutputFormat& format, const std::string& run_grid,
                 const std::vector<std::string>& tensor_types, const std::string& source,
                 const std::string& path) {
  const std::string recipe = format.recipe();
  const pipeline::TensorTypes types(tensor_types);
  for (const auto& [layer, grid] : grids) {
    const auto& [block, role] = layer;
    const auto shape = model.config().shape(role);
    const std::string name = model.name(role, block);
    std::string stores;
    if (format.grid() && !(*format.grid() == grid)) stores = format.grid()->text();
    if (!recipe.empty() && recipe != run_grid) {
      const DType type =
          pipeline::ggml_type_of(model, pipeline::parse_recipe(recipe), types, role, block);
      if (format::exact_ggml_type(grid, shape[1]) != type) {
        stores = format::GridSpec::of_block(type).text();
      }
    }
    if (!stores.empty()) {
      raise(ErrorCode::kBadOption, "{}: {} has {}, {} stores {}; {}", source, name, grid.text(),
            format.text(), stores, remedy(path, format));
    }
    format.check(name, shape[0], shape[1], grid);
  }
}

// What is not quantized, tokenizer and configuration are read from the original.
arch::Model open_original(const std::string& path, const ExportOptions& options) {
  if (!io::exists(path)) {
    raise(ErrorCode::kFileNotFound,
          "{}: its original model is not at {} any more; put it back, or say where it is now with "
          "--model",
          options.source, path);
  }
  return bundle::open_model(path);
}

std::string export_run(const RunContext& ctx, const pipeline::Journal& journal,
                       const ExportOptions& options, const format::OutputFormat& format) {
  const Json run = journal.read_run();
  const JsonFields fields(run, options.source + "/.lpcd/run.json");
  const std::string path = options.model.empty() ? fields.string_at("model") : options.model;
  // With all blocks there, the outputs may be missing: a run that could not write them is rescued
  // like this.
  const int64_t committed = journal.committed_blocks();
  if (!fields.bool_or("finished", false) && committed < fields.int_at("blocks", 1)) {
    raise(ErrorCode::kBadModel,
          "{}: the run is not finished; go on with lpcd quantize {} --out {} --resume and the "
          "options it was started with (lpcd inspect {} lists them)",
          options.source, shell_word(path), shell_word(options.source), shell_word(options.source));
  }
  const arch::Model model = open_original(path, options);
  if (committed < model.config().blocks) {
    raise(ErrorCode::kBadModel,
          "{}: block {} is not there any more; lpcd quantize {} --out {} --resume with the options "
          "of the run makes it again",
          options.source, committed, shell_word(path), shell_word(options.source));
  }
  const JsonFields fingerprint(fields.object_at("fingerprint"), fields.where());
  if (fingerprint.string_at("model") != model.identity()) {
    raise(ErrorCode::kBadModel,
          "{}: not the model that {} was made from; put the original back, or name it with --model",
          path, options.source);
  }
  const Json& numeric = fingerprint.object_at("options");
  const auto tensor_types = numeric.value("tensor-type", std::vector<std::string>());
  check_grids(model, api::read_grids(journal, model.config().blocks), format,
              numeric.value("grid", "int"), tensor_types, options.source, path);
  const auto tokenizer =
      api::tokenizer_to_copy(ctx, model, format.container() == format::Container::kSafetensors);
  api::warn_of_gguf(ctx, model, format);
  const OutputDirectory locked(ctx, options.out);
  return api::write_output(ctx,
                           {.model = model,
                            .tokenizer = tokenizer ? &*tokenizer : nullptr,
                            .journal = journal,
                            .tensor_types = tensor_types,
                            .meta = {{"quantizer", {"lpcd.cpp:" + version()}}},
                            .max_shard_bytes = parse_bytes(options.shard_size, "shard-size")},
                           format, options.out);
}

std::string export_model_unguarded(const ExportOptions& options, const RunContext& outer) {
  const RunContext ctx = api::prepared(outer, outer.threads);
  const auto format = format::parse_output_format(options.format);
  if (options.out.empty()) raise(ErrorCode::kBadOption, "export needs --out DIR");
  OutputDirectory::check(options.out);
  const pipeline::Journal journal(options.source);
  if (journal.exists()) return export_run(ctx, journal, options, *format);
  if (!options.model.empty()) {
    raise(ErrorCode::kBadOption,
          "--model: {} is not a run of lpcd, and needs no original; leave it "
          "out",
          options.source);
  }
  const arch::Model model = bundle::open_model(options.source);
  const bool plain = format->dense_type().has_value();
  if (!plain) {
    raise(ErrorCode::kBadOption, "{}: not a run of lpcd, so there are no codes to store; {}",
          options.source, remedy(options.source, *format));
  }
  api::warn_of_gguf(ctx, model, *format);
  const OutputDirectory locked(ctx, options.out);
  const std::string path = api::output_path(model, *format, options.out);
  if (format->container() == format::Container::kGguf) {
    bundle::write_gguf_file(ctx, {.model = &model, .format = format.get()}, path);
    return path;
  }
  const auto tokenizer = api::tokenizer_to_copy(ctx, model, true);
  bundle::DirectoryContents contents;
  contents.model = &model;
  contents.tokenizer = tokenizer ? &*tokenizer : nullptr;
  contents.format = format.get();
  contents.max_shard_bytes = parse_bytes(options.shard_size, "shard-size");
  bundle::write_hf_directory(ctx, contents, options.out);
  return path;
}

}  // namespace

std::string export_model(const ExportOptions& options, const RunContext& outer) {
  return api::with_typed_errors([&] { return export_model_unguarded(options, outer); });
}

}  // namespace lpcd
