#include "lpcd/bundle/gguf_output.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>

#include "lpcd/base/raise.h"
#include "lpcd/format/ggml_fit.h"
#include "lpcd/io/gguf.h"
#include "lpcd/io/gguf_writer.h"
#include "lpcd/io/model_file.h"
#include "lpcd/linalg/parallel.h"
#include "lpcd/nn/ops.h"
#include "lpcd/text/gguf_export.h"

namespace lpcd::bundle {
namespace {

using arch::ModelConfig;
using arch::Role;

constexpr const char* kRopeTable = "rope_freqs.weight";

std::string model_name(const arch::Model& model) {
  std::filesystem::path path = std::filesystem::absolute(model.path()).lexically_normal();
  if (path.filename().empty()) path = path.parent_path();
  if (model.gguf() != nullptr) return path.stem().string();
  // The Hugging Face cache: models--OWNER--NAME/snapshots/REVISION.
  const std::string cached = path.parent_path().parent_path().filename().string();
  if (path.parent_path().filename() == "snapshots" && cached.starts_with("models--")) {
    return cached.substr(cached.rfind("--") + 2);
  }
  return path.filename().string();
}

// ---- metadata -----------------------------------------------------------------------------------

void add_hyper_parameters(const arch::Model& model, io::GgufMetadata& m) {
  const ModelConfig& c = model.config();
  const std::string arch(model.architecture().name());
  const auto key = [&](const char* name) { return arch + "." + name; };
  m.set_string("general.architecture", arch);
  m.set_string("general.type", "model");
  m.set_string("general.name", model_name(model));
  m.set_u32(key("context_length"), c.max_positions);
  m.set_u32(key("embedding_length"), c.hidden);
  m.set_u32(key("block_count"), c.blocks);
  m.set_u32(key("feed_forward_length"), c.ffn);
  m.set_u32(key("attention.head_count"), c.heads);
  m.set_u32(key("attention.head_count_kv"), c.kv_heads);
  m.set_u32(key("attention.key_length"), c.head_dim);
  m.set_u32(key("attention.value_length"), c.head_dim);
  m.set_f32(key("attention.layer_norm_rms_epsilon"), static_cast<double>(c.rms_eps));
  m.set_u32(key("rope.dimension_count"), c.head_dim);
  m.set_f32(key("rope.freq_base"), c.rope_theta);
  if (c.rope_scaling.kind == nn::RopeScaling::Kind::kLinear) {
    m.set_string(key("rope.scaling.type"), "linear");
    m.set_f32(key("rope.scaling.factor"), c.rope_scaling.factor);
  }
  m.set_u32(key("vocab_size"), c.vocab_size);
}

void add_vocabulary(const text::ExportedVocabulary& exported, io::GgufMetadata& m) {
  const text::GgufVocabulary& v = exported.vocabulary;
  const std::string prefix = "tokenizer.ggml.";
  m.set_string(prefix + "model", v.model);
  m.set_string(prefix + "pre", v.model == "llama" ? "default" : v.pre);
  m.set_strings(prefix + "tokens", v.tokens);
  m.set_i32s(prefix + "token_type", v.token_types);
  if (!v.merges.empty()) m.set_strings(prefix + "merges", v.merges);
  if (!v.scores.empty()) m.set_f32s(prefix + "scores", v.scores);
  const auto id = [&](const char* name, std::optional<int64_t> value) {
    if (value) m.set_u32(prefix + name, *value);
  };
  id("bos_token_id", v.bos_id);
  id("eos_token_id", v.eos_id);
  id("unknown_token_id", v.unknown_id);
  id("padding_token_id", exported.padding_id);
  if (v.add_bos) m.set_bool(prefix + "add_bos_token", *v.add_bos);
  if (v.add_eos) m.set_bool(prefix + "add_eos_token", *v.add_eos);
  if (v.add_space_prefix) m.set_bool(prefix + "add_space_prefix", *v.add_space_prefix);
  if (!exported.chat_template.empty()) {
    m.set_string("tokenizer.chat_template", exported.chat_template);
  }
}

// Ids that config.json names where the tokenizer's files do not.
void add_ids_of_config(const Json& config, int64_t vocab_size, io::GgufMetadata& m) {
  for (const auto& [from, to] : {std::pair{"bos_token_id", "tokenizer.ggml.bos_token_id"},
                                 {"eos_token_id", "tokenizer.ggml.eos_token_id"},
                                 {"pad_token_id", "tokenizer.ggml.padding_token_id"}}) {
    if (m.has(to) || !config.contains(from)) continue;
    const Json& value = config[from];
    const Json& first = value.is_array() && !value.empty() ? value[0] : value;
    if (first.is_number_integer() && first >= 0 && first < vocab_size) {
      m.set_u32(to, first.get<int64_t>());
    }
  }
}

void carry_over(const io::GgufFile& file, io::GgufMetadata& m) {
  for (const auto& [key, ignored] : file.metadata()) {
    // What says how that file was quantized or laid out.
    const bool stale = key == "general.alignment" || key == "general.file_type" ||
                       key.starts_with("quantize.") || key.starts_with("split.");
    if (!stale) m.set_raw(key, file.raw_value(key));
  }
}

io::GgufMetadata make_metadata(const GgufContents& contents, int64_t file_type) {
  const arch::Model& model = *contents.model;
  io::GgufMetadata m;
  if (model.gguf() != nullptr) {
    carry_over(*model.gguf(), m);
  } else {
    add_hyper_parameters(model, m);
    if (const auto v = text::export_vocabulary(model.path(), model.config().vocab_size)) {
      add_vocabulary(*v, m);
      add_ids_of_config(model.hf_config(), model.config().vocab_size, m);
    }
  }
  m.set_u32("general.file_type", file_type);
  m.set_u32("general.quantization_version", 2);
  return m;
}

// ---- tensors ------------------------------------------------------------------------------------

// Rows of each head in the order of GGUF files: row 2i is row i, row 2i + 1 is row i + d/2.
std::vector<std::byte> interleave_rows(const std::vector<std::byte>& bytes, int64_t rows,
                                       int64_t head_dim) {
  const size_t row_bytes = bytes.size() / static_cast<size_t>(rows);
  std::vector<std::byte> out(bytes.size());
  for (int64_t head = 0; head < rows; head += head_dim) {
    for (int64_t i = 0; i < head_dim; ++i) {
      const int64_t from = head + i / 2 + (i % 2) * (head_dim / 2);
      std::memcpy(out.data() + static_cast<size_t>(head + i) * row_bytes,
                  bytes.data() + static_cast<size_t>(from) * row_bytes, row_bytes);
    }
  }
  return out;
}

std::vector<std::byte> quantize_matrix(const RunContext& ctx, const Mat& w, DType type) {
  constexpr int64_t kRows = 64;
  const DTypeInfo& info = dtype_info(type);
  const auto row_bytes = static_cast<size_t>(w.cols() / info.block_elems * info.block_bytes);
  std::vector<std::byte> out(static_cast<size_t>(w.rows()) * row_bytes);
  linalg::parallel_for(ctx, ceil_div(w.rows(), kRows), [&](int64_t task) {
    const int64_t first = task * kRows;
    const int64_t count = std::min(kRows, w.rows() - first);
    format::quantize_rows(w.view().rows_range(first, count), {}, type, {},
                          {out.data() + static_cast<size_t>(first) * row_bytes,
                           static_cast<size_t>(count) * row_bytes});
  });
  return out;
}

class TensorList {
 public:
  TensorList(const RunContext& ctx, const GgufContents& contents)
      : ctx_(ctx), contents_(contents), model_(*contents.model) {}

  // In the order of llama.cpp's converter: embedding, blocks, norm and head.
  std::vector<io::TensorProducer> make() {
    add_rope_table();
    add(Role::kEmbedding, 0);
    for (int64_t block = 0; block < model_.config().blocks; ++block) {
      for (const arch::RoleNames& names : model_.architecture().names()) {
        if (arch::is_block_role(names.role)) add(names.role, block);
      }
    }
    add(Role::kFinalNorm, 0);
    add(Role::kHead, 0);
    return std::move(tensors_);
  }

  /// The block type that most weights have, or F16.
  [[nodiscard]] DType main_type() const {
    const auto most =
        std::ranges::max_element(elements_, {}, [](const auto& entry) { return entry.second; });
    return most == elements_.end() ? DType::kF16 : most->first;
  }

 private:
  // llama3 scaling is a table of divisors.
  void add_rope_table() {
    const ModelConfig& c = model_.config();
    std::vector<float> divisors = c.rope_divisors;
    if (divisors.empty() && c.rope_scaling.kind == nn::RopeScaling::Kind::kLlama3) {
      const auto plain = nn::rope_frequencies(c.head_dim, c.rope_theta, {}, {});
      const auto scaled = nn::rope_frequencies(c.head_dim, c.rope_theta, c.rope_scaling, {});
      for (size_t i = 0; i < plain.size(); ++i) divisors.push_back(plain[i] / scaled[i]);
    }
    if (divisors.empty()) return;
    io::TensorProducer table;
    table.info.name = kRopeTable;
    table.info.shape.push_back(static_cast<int64_t>(divisors.size()));
    table.bytes = [divisors] { return format::encode_dense(kRopeTable, divisors, DType::kF32); };
    tensors_.push_back(std::move(table));
  }

  void add(Role role, int64_t block) {
    if (!model_.config().has(role)) return;
    const auto shape = model_.config().shape(role);
    const std::string name = arch::gguf_name(model_.architecture(), role, block);
    const bool permuted =
        model_.architecture().gguf_permutes_qk() &&
        (role == Role::kQ || role == Role::kK || role == Role::kQBias || role == Role::kKBias);
    const auto in_order = [permuted, rows = shape[0],
                           d = model_.config().head_dim](std::vector<std::byte>&& bytes) {
      return permuted ? interleave_rows(bytes, rows, d) : std::move(bytes);
    };
    if (arch::is_linear_role(role) && contents_.read_layer) {
      const format::GridSpec grid = contents_.grid_of(block, role);
      const DType type = contents_.format->describe(name, shape[0], shape[1], grid)[0].dtype;
      elements_[type] += shape[0] * shape[1];
      tensors_.push_back({{name, type, shape}, [this_ = contents_, name, block, role, in_order] {
                            auto encoded =
                                this_.format->encode(name, this_.read_layer(block, role));
                            return in_order(std::move(encoded[0].data));
                          }});
      return;
    }
    const DType stored = model_.stored(role, block).dtype;
    DType type = shape.size() == 1 ? DType::kF32 : type_of(role, stored);
    // As it is, block types too; but for layers of codes that are decoded as they are read.
    const std::string stored_name = model_.stored(role, block).name;
    const bool decoded = model_.source().stored_form(stored_name).type != dtype_info(stored).name;
    if (type == stored && !decoded && (model_.gguf() != nullptr || !permuted)) {
      tensors_.push_back({{name, type, shape}, [&model = model_, role, block] {
                            const auto raw = model.source().raw(model.stored(role, block).name);
                            return std::vector<std::byte>(raw.begin(), raw.end());
                          }});
      return;
    }
    tensors_.push_back(
        {{name, type, shape}, [&ctx = ctx_, &model = model_, role, block, name, type, in_order] {
           const Mat w = model.read(role, block);
           if (is_block_quantized(type)) return in_order(quantize_matrix(ctx, w, type));
           return in_order(
               format::encode_dense(name, {w.data(), static_cast<size_t>(w.size())}, type));
         }});
  }

  [[nodiscard]] DType type_of(Role role, DType stored) const {
    if (const auto type = contents_.format->dense_type()) return *type;
    if (contents_.matrix_type && !arch::is_block_role(role)) {
      if (const auto type = contents_.matrix_type(role)) return *type;
    }
    // Plain floats, and from a GGUF file blocks too, are fine as they are.
    const bool block = is_block_quantized(stored) && model_.gguf() != nullptr;
    const bool plain = stored == DType::kF16 || stored == DType::kBF16 || stored == DType::kF32;
    return block || plain ? stored : DType::kF16;
  }

  const RunContext& ctx_;
  const GgufContents& contents_;
  const arch::Model& model_;
  std::vector<io::TensorProducer> tensors_;
  std::map<DType, int64_t> elements_;  // of the layers, by type
};

int64_t file_type_of(const GgufContents& contents, const TensorList& list) {
  if (contents.format->file_type() >= 0) return contents.format->file_type();
  switch (list.main_type()) {
    case DType::kQ4_0:
      return 2;
    case DType::kQ5_0:
      return 8;
    case DType::kQ8_0:
      return 7;
    case DType::kQ2_0:
      return 41;
    default:
      return 1;
  }
}

}  // namespace

void write_gguf_file(const RunContext& ctx, const GgufContents& contents, const std::string& path) {
  TensorList list(ctx, contents);
  auto tensors = list.make();
  const io::GgufMetadata metadata = make_metadata(contents, file_type_of(contents, list));
  const auto total = static_cast<double>(tensors.size());
  auto written = std::make_shared<double>(0);
  for (io::TensorProducer& t : tensors) {
    t.bytes = [&ctx, inner = std::move(t.bytes), written, total] {
      ctx.throw_if_cancelled();
      *written += 1;
      ctx.report({.stage = "write", .item = "tensors", .done = *written, .total = total});
      return inner();
    };
  }
  io::PendingFiles pending;
  io::write_gguf(path, metadata, std::move(tensors), pending);
  pending.commit();
}

uint64_t estimate_gguf_bytes(const GgufContents& contents) {
  const RunContext ctx;
  TensorList list(ctx, contents);
  const auto tensors = list.make();
  return io::gguf_sizes(make_metadata(contents, file_type_of(contents, list)), tensors).file;
}

std::string gguf_file_name(const arch::Model& model, const format::OutputFormat& format) {
  std::string type = format.text().substr(format.text().find(':') + 1);
  for (char& c : type)
    c = c == ',' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  // A GGUF file's name often ends in its own type.
  std::string name = model_name(model);
  if (const size_t dot = name.find_last_of('.');
      model.gguf() != nullptr && dot != std::string::npos) {
    const char after = dot + 1 < name.size() ? name[dot + 1] : '\0';
    if (after == 'Q' || after == 'q' || after == 'F' || after == 'f' || after == 'B' ||
        after == 'b') {
      name.resize(dot);
    }
  }
  return name + "-" + type + ".gguf";
}

bool has_vocabulary(const arch::Model& model) {
  return model.gguf() != nullptr ? model.gguf()->find_key("tokenizer.ggml.tokens") != nullptr
                                 : io::has_model_file(model.path(), "tokenizer.json");
}

std::string check_gguf(const arch::Model& model) {
  const ModelConfig& c = model.config();
  const bool needs_table =
      !c.rope_divisors.empty() || c.rope_scaling.kind == nn::RopeScaling::Kind::kLlama3;
  if (needs_table && !model.architecture().gguf_has_rope_table()) {
    raise(ErrorCode::kUnsupportedModel,
          "{}: llama3 rope scaling of a {} model cannot be written to GGUF: llama.cpp would not "
          "load the file; use --format ct:4,g128",
          model.path(), model.architecture().name());
  }
  if (!has_vocabulary(model)) {
    return fmt::format("{}: no {}; the GGUF file gets no tokenizer, and llama.cpp will not load it",
                       model.path(),
                       model.gguf() != nullptr ? "tokenizer.ggml.tokens" : "tokenizer.json");
  }
  if (model.gguf() != nullptr) return "";
  const auto vocabulary = text::export_vocabulary(model.path(), c.vocab_size);
  if (vocabulary->pre_is_known) return "";
  return fmt::format(
      "{}: the tokenizer cuts text in a way that has no name in GGUF; the file says \"{}\", the "
      "nearest, and llama.cpp will give some texts other tokens",
      model.path(), vocabulary->vocabulary.pre);
}

}  // namespace lpcd::bundle
