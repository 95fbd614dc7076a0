#include "lpcd/api/output.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "lpcd/base/raise.h"
#include "lpcd/bundle/hf_directory.h"
#include "lpcd/bundle/open_model.h"
#include "lpcd/io/file.h"
#include "lpcd/pipeline/ggml_types.h"

namespace lpcd::api {
namespace {

namespace fs = std::filesystem;
using arch::Role;

// Layers of a finished run, one block in memory.
class JournalReader {
 public:
  explicit JournalReader(const pipeline::Journal& journal) : journal_(journal) {}

  const format::QuantizedMatrix& layer(int64_t block, Role role) {
    if (block != block_) {
      layers_ = journal_.read_block(block);
      block_ = block;
    }
    return layers_.at(role);
  }

 private:
  const pipeline::Journal& journal_;
  int64_t block_ = -1;
  pipeline::QuantizedLayers layers_;
};

// "gptq:3,g64,dense:fp16", cut at any commas, as whole formats: each begins with its family.
std::vector<std::string> whole_formats(const std::vector<std::string>& parts) {
  std::vector<std::string> formats;
  for (const std::string& part : parts) {
    std::string_view rest = part;
    while (!rest.empty()) {
      const std::string_view piece = rest.substr(0, rest.find(','));
      rest.remove_prefix(std::min(rest.size(), piece.size() + 1));
      if (formats.empty() || piece.find(':') != std::string_view::npos) {
        formats.emplace_back(piece);
      } else {
        formats.back().append(",").append(piece);
      }
    }
  }
  return formats;
}

}  // namespace

std::vector<std::unique_ptr<format::OutputFormat>> resolve_formats(QuantizeOptions& options) {
  const auto take = [&](const char* name, auto& option, const auto& value,
                        const format::OutputFormat& format) {
    if (option != value && options.was_given(name)) {
      raise(ErrorCode::kBadOption, "--{} contradicts --format {}; leave one of them out", name,
            format.text());
    }
    option = value;
  };
  // Types of ggml decide what these options would.
  const auto refuse_integer_options = [&](const std::string& chosen) {
    for (const char* name : {"bits", "group-size", "sym"}) {
      if (!options.was_given(name)) continue;
      raise(ErrorCode::kBadOption,
            "--{} has no effect with {}, whose types decide; leave it out, or name types with "
            "--tensor-type PATTERN=TYPE",
            name, chosen);
    }
  };
  std::vector<std::unique_ptr<format::OutputFormat>> formats;
  const format::OutputFormat* first = nullptr;  // with an integer grid
  const format::OutputFormat* mix = nullptr;    // with a mix of ggml types
  if (std::ranges::find(options.formats, "") != options.formats.end()) {
    raise(ErrorCode::kBadOption,
          "--format: a part is empty; leave the option out for gptq at --bits and --group-size");
  }
  for (const std::string& text : whole_formats(options.formats)) {
    formats.push_back(format::parse_output_format(text));
    const auto grid = formats.back()->grid();
    const std::string recipe = formats.back()->recipe();
    if (!grid && recipe.empty()) continue;
    if (mix != nullptr ? mix->recipe() != recipe : first != nullptr && !recipe.empty()) {
      raise(ErrorCode::kBadOption, "--format: {} and {} store different grids; run once for each",
            (mix != nullptr ? mix : first)->text(), formats.back()->text());
    }
    if (!grid) {
      mix = formats.back().get();
      // "q4_k" and "q4_k_m" are the same.
      if (const auto given = format::Recipe::parse(options.grid)) options.grid = given->text();
      take("grid", options.grid, recipe, *mix);
      refuse_integer_options("--format " + mix->text());
      continue;
    }
    if (first != nullptr && *first->grid() != *grid) {
      raise(ErrorCode::kBadOption, "--format: {} and {} store different grids; run once for each",
            first->text(), formats.back()->text());
    }
    first = formats.back().get();
    take("grid", options.grid, std::string("int"), *first);
    take("bits", options.bits, grid->bits, *first);
    take("group-size", options.group_size, grid->group_size, *first);
    take("sym", options.symmetric, grid->symmetric, *first);
    if (options.preset == Preset::kOnecomp && formats.back()->text().starts_with("gptq:") &&
        !grid->symmetric && !formats.back()->text().ends_with(",v2")) {
      raise(ErrorCode::kBadOption,
            "--preset onecomp chooses zero points of 0, which readers of gptq v1 decode in "
            "different ways; use --format {},v2 or --format ct:{}",
            formats.back()->text(), formats.back()->text().substr(5));
    }
  }
  if (formats.empty() && options.grid != "int") {
    refuse_integer_options("--grid " + options.grid);
    options.grid = pipeline::parse_recipe(options.grid).text();
    formats.push_back(format::parse_output_format("gguf:" + options.grid));
  }
  if (formats.empty()) {
    if (options.group_size < -1 || options.group_size == 0) {
      raise(ErrorCode::kBadOption, "--group-size must be positive, or -1 for one scale per row");
    }
    if (options.bits != 2 && options.bits != 3 && options.bits != 4 && options.bits != 8) {
      raise(ErrorCode::kBadOption,
            "--bits {}: the gptq format stores 2, 3, 4 or 8 bits; use --format ct:{},g{}{}",
            options.bits, options.bits, options.group_size, options.symmetric ? "" : ",asym");
    }
    formats.push_back(
        format::parse_output_format(fmt::format("gptq:{},g{}{}", options.bits, options.group_size,
                                                options.symmetric                    ? ""
                                                : options.preset == Preset::kOnecomp ? ",asym,v2"
                                                                                     : ",asym")));
  }
  options.formats.clear();
  for (const auto& f : formats) options.formats.push_back(f->text());
  return formats;
}

void check_formats(const arch::Model& model, const pipeline::Plan& plan,
                   const std::vector<std::unique_ptr<format::OutputFormat>>& formats) {
  for (const auto& format : formats) {
    // Known now, and otherwise found by encode() when all the work is done.
    if (plan.solver.reference && format->container() == format::Container::kGguf &&
        !format->dense_type()) {
      raise(ErrorCode::kBadOption,
            "--format {}: --preset onecomp rounds weights to f16, which blocks cannot hold; use "
            "gguf:f16, or leave out the preset",
            format->text());
    }
    for (const pipeline::LayerPlan& layer : plan.layers[0]) {
      const auto shape = model.config().shape(layer.role);
      format->check(layer.name, shape[0], shape[1], layer.grid);
    }
    for (const auto& block : plan.layers) {
      for (const pipeline::LayerPlan& layer : block) {
        const auto shape = model.config().shape(layer.role);
        format->check(layer.name, shape[0], shape[1], layer.grid);
      }
    }
  }
}

std::string output_directory(const std::string& out, const format::OutputFormat& format,
                             size_t format_count) {
  if (format_count == 1) return out;
  std::string name = format.text();
  std::ranges::replace_if(name, [](char c) { return c == ':' || c == ','; }, '-');
  return out + "/" + name;
}

std::string output_path(const arch::Model& model, const format::OutputFormat& format,
                        const std::string& directory) {
  if (format.container() != format::Container::kGguf) return directory;
  return directory + "/" + bundle::gguf_file_name(model, format);
}

std::optional<text::Tokenizer> tokenizer_to_copy(const RunContext& ctx, const arch::Model& model,
                                                 bool directory) {
  try {
    return bundle::open_tokenizer(model);
  } catch (const Error& e) {
    if (model.gguf() != nullptr && directory) throw;
    ctx.warn(fmt::format("the tokenizer is not read, and copied as it is: {}", e.what()));
    return std::nullopt;
  }
}

bool warn_of_gguf(const RunContext& ctx, const arch::Model& model,
                  const format::OutputFormat& format) {
  if (format.container() != format::Container::kGguf) return false;
  const std::string warning = bundle::check_gguf(model);
  if (!warning.empty()) ctx.warn(warning);
  return !warning.empty();
}

// Grids from the block records, without reading codes.
LayerGrids read_grids(const pipeline::Journal& journal, int64_t blocks) {
  LayerGrids grids;
  for (int64_t b = 0; b < blocks; ++b) {
    const Json record = journal.read_record(b);
    for (const Json& entry : JsonFields(record, "record.json").array_at("stored")) {
      const JsonFields layer(entry, "record.json: stored");
      const std::string name = layer.string_at("role");
      for (const Role role : arch::kLinearRoles) {
        if (arch::role_name(role) != name) continue;
        grids[{b, role}] = pipeline::stored_grid(layer);
      }
    }
  }
  return grids;
}

std::function<std::optional<DType>(Role)> matrix_types(
    const arch::Model& model, const format::OutputFormat& format,
    const std::vector<std::string>& tensor_types) {
  return [&model, recipe = format.recipe(),
          types = pipeline::TensorTypes(tensor_types)](Role role) -> std::optional<DType> {
    if (recipe.empty()) return types.find(model, role, 0);
    return pipeline::ggml_type_of(model, pipeline::parse_recipe(recipe), types, role, 0);
  };
}

std::string write_output(const RunContext& ctx, const OutputJob& job,
                         const format::OutputFormat& format, const std::string& directory) {
  const auto grids = read_grids(job.journal, job.model.config().blocks);
  JournalReader reader(job.journal);
  const auto grid_of = [&](int64_t block, Role role) { return grids.at({block, role}); };
  const auto read_layer = [&](int64_t block, Role role) -> const format::QuantizedMatrix& {
    return reader.layer(block, role);
  };
  if (format.container() == format::Container::kGguf) {
    io::make_directories(directory);
    const std::string path = output_path(job.model, format, directory);
    bundle::write_gguf_file(ctx,
                            {.model = &job.model,
                             .format = &format,
                             .grid_of = grid_of,
                             .read_layer = read_layer,
                             .matrix_type = matrix_types(job.model, format, job.tensor_types)},
                            path);
    return path;
  }
  bundle::DirectoryContents contents;
  contents.model = &job.model;
  contents.tokenizer = job.tokenizer;
  contents.format = &format;
  contents.meta = job.meta;
  contents.max_shard_bytes = job.max_shard_bytes;
  contents.grid_of = grid_of;
  contents.read_layer = read_layer;
  bundle::write_hf_directory(ctx, contents, directory);
  return directory;
}

void warn_without_lock(const RunContext& ctx, const io::DirectoryLock& lock) {
  if (lock.held()) return;
  ctx.warn("the file system of --out has no locks: make sure that no other process writes there");
}

void require_empty(const std::string& directory) {
  std::error_code error;
  if (fs::exists(directory, error) && !fs::is_directory(directory, error)) {
    raise(ErrorCode::kOutputExists, "{}: is a file; give another --out", directory);
  }
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    // What a process that died early leaves behind is ours.
    const std::string name = entry.path().filename().string();
    if (name == ".lpcd" || name == ".lpcd-lock" || bundle::is_leftover(entry.path().string())) {
      continue;
    }
    raise(ErrorCode::kOutputExists, "{}: not empty and not a run of lpcd; give another --out",
          directory);
  }
}

}  // namespace lpcd::api
