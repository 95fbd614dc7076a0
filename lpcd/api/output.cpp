#include "lpcd/api/output.h"

#include <algorithm>
#include <filesystem>
#include <map>

#include "lpcd/base/raise.h"

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

// Grids from the block records, without reading codes.
std::map<std::pair<int64_t, Role>, format::GridSpec> read_grids(const pipeline::Journal& journal,
                                                                int64_t blocks) {
  std::map<std::pair<int64_t, Role>, format::GridSpec> grids;
  for (int64_t b = 0; b < blocks; ++b) {
    const Json record = journal.read_record(b);
    for (const Json& entry : JsonFields(record, "record.json").array_at("stored")) {
      const JsonFields layer(entry, "record.json: stored");
      const std::string name = layer.string_at("role");
      for (const Role role : arch::kLinearRoles) {
        if (arch::role_name(role) != name) continue;
        grids[{b, role}] = {.bits = static_cast<int>(layer.int_at("bits", 2, 8)),
                            .group_size = layer.int_at("group_size", -1),
                            .symmetric = layer.bool_or("symmetric", true)};
      }
    }
  }
  return grids;
}

}  // namespace

std::vector<std::unique_ptr<format::OutputFormat>> resolve_formats(QuantizeOptions& options) {
  const auto take = [&](const char* name, auto& option, const auto& value,
                        const format::OutputFormat& format) {
    if (option != value && std::ranges::find(options.given, name) != options.given.end()) {
      raise(ErrorCode::kBadOption, "--{} contradicts --format {}; leave one of them out", name,
            format.text());
    }
    option = value;
  };
  std::vector<std::unique_ptr<format::OutputFormat>> formats;
  const format::OutputFormat* first = nullptr;
  for (const std::string& text : whole_formats(options.formats)) {
    formats.push_back(format::parse_output_format(text));
    const auto grid = formats.back()->grid();
    if (!grid) continue;
    if (first != nullptr && *first->grid() != *grid) {
      raise(ErrorCode::kBadOption, "--format: {} and {} store different grids; run once for each",
            first->text(), formats.back()->text());
    }
    first = formats.back().get();
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
  if (formats.empty()) {
    if (options.group_size < -1 || options.group_size == 0) {
      raise(ErrorCode::kBadOption, "--group-size must be positive, or -1 for one scale per row");
    }
    if (options.bits != 2 && options.bits != 3 && options.bits != 4 && options.bits != 8) {
      raise(ErrorCode::kBadOption,
            "--bits {}: the gptq format stores 2, 3, 4 or 8 bits; add --format dense:fp16",
            options.bits);
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

void write_output(const RunContext& ctx, const arch::Model& model, const text::Tokenizer* tokenizer,
                  const pipeline::Journal& journal, const format::OutputFormat& format,
                  const Json& meta, uint64_t max_shard_bytes, const std::string& directory) {
  const auto grids = read_grids(journal, model.config().blocks);
  JournalReader reader(journal);
  bundle::DirectoryContents contents;
  contents.model = &model;
  contents.tokenizer = tokenizer;
  contents.format = &format;
  contents.meta = meta;
  contents.max_shard_bytes = max_shard_bytes;
  contents.grid_of = [&](int64_t block, Role role) { return grids.at({block, role}); };
  contents.read_layer = [&](int64_t block, Role role) -> const format::QuantizedMatrix& {
    return reader.layer(block, role);
  };
  bundle::write_hf_directory(ctx, contents, directory);
}

void require_empty(const std::string& directory) {
  std::error_code error;
  if (fs::exists(directory, error) && !fs::is_directory(directory, error)) {
    raise(ErrorCode::kOutputExists, "{}: is a file; give another --out", directory);
  }
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    // What a run that died in its first moments leaves behind is ours.
    if (entry.path().filename() == ".lpcd" || entry.path().filename() == ".lpcd-lock") continue;
    raise(ErrorCode::kOutputExists, "{}: not empty and not a run of lpcd; give another --out",
          directory);
  }
}

}  // namespace lpcd::api
