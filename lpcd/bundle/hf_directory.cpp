#include "lpcd/bundle/hf_directory.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>

#include "lpcd/base/raise.h"
#include "lpcd/io/file.h"
#include "lpcd/io/gguf.h"
#include "lpcd/io/model_file.h"
#include "lpcd/io/safetensors.h"
#include "lpcd/io/system_error.h"

namespace lpcd::bundle {
namespace {

namespace fs = std::filesystem;
using arch::Role;

// Files of a model directory that belong to the model but hold no weights: copied byte for byte.
constexpr std::array<const char*, 11> kCompanions = {"generation_config.json",
                                                     "tokenizer.json",
                                                     "tokenizer_config.json",
                                                     "special_tokens_map.json",
                                                     "added_tokens.json",
                                                     "tokenizer.model",
                                                     "vocab.json",
                                                     "merges.txt",
                                                     "chat_template.jinja",
                                                     "chat_template.json",
                                                     "README.md"};
// The same: chat templates with other names than "default".
constexpr std::string_view kTemplateFolder = "additional_chat_templates";
constexpr uint64_t kMaxCompanionBytes = 1ULL << 30;

std::string_view dtype_text(DType type) {
  switch (type) {
    case DType::kF16:
      return "float16";
    case DType::kBF16:
      return "bfloat16";
    default:
      return "float32";
  }
}

// Encoded tensors that the writer has not asked for yet: it takes one at a time, the layers of a
// block together. In a file all codes stand in front of the scales, which wait here, so that no
// block is read and encoded once more for them; they are small.
class BlockEncoder {
 public:
  explicit BlockEncoder(const DirectoryContents& contents) : contents_(contents) {}

  std::vector<std::byte> take(int64_t block, Role role, const std::string& tensor) {
    if (!encoded_.contains(tensor)) {
      if (block != block_) {
        std::erase_if(encoded_, [](const auto& e) { return e.second.info.dtype != DType::kF16; });
      }
      block_ = block;
      const std::string name = contents_.model->name(role, block);
      for (NamedTensor& t : contents_.format->encode(name, contents_.read_layer(block, role))) {
        encoded_.insert_or_assign(t.info.name, std::move(t));
      }
    }
    return std::move(encoded_.extract(tensor).mapped().data);
  }

 private:
  const DirectoryContents& contents_;
  int64_t block_ = -1;
  std::map<std::string, NamedTensor> encoded_;
};

DType dense_dtype(const DirectoryContents& contents, Role role, int64_t block) {
  if (const auto type = contents.format->dense_type()) return *type;
  const DType stored = contents.model->stored(role, block).dtype;
  const bool plain = stored == DType::kF16 || stored == DType::kBF16 || stored == DType::kF32;
  return contents.model->gguf() == nullptr && plain ? stored : DType::kF16;
}

// Block by block, so that a shard holds whole ones: each is read from the run for one shard or two.
std::vector<io::TensorProducer> list_tensors(const DirectoryContents& contents,
                                             const std::shared_ptr<BlockEncoder>& encoder) {
  const arch::Model& model = *contents.model;
  std::vector<io::TensorProducer> tensors;
  const auto add = [&](Role role, int64_t block) {
    const std::string name = model.name(role, block);
    const auto shape = model.config().shape(role);
    if (arch::is_linear_role(role) && contents.read_layer) {
      const auto infos =
          contents.format->describe(name, shape[0], shape[1], contents.grid_of(block, role));
      for (const TensorInfo& info : infos) {
        tensors.push_back({info, [encoder, block, role, tensor = info.name] {
                             return encoder->take(block, role, tensor);
                           }});
      }
      return;
    }
    const DType type = dense_dtype(contents, role, block);
    tensors.push_back({{name, type, shape}, [&model, role, block, name, type] {
                         const Mat m = model.read(role, block);
                         return format::encode_dense(
                             name, {m.data(), static_cast<size_t>(m.size())}, type);
                       }});
  };
  const auto has = [&](Role role, bool in_block) {
    return model.config().has(role) && arch::is_block_role(role) == in_block;
  };
  for (const arch::RoleNames& names : model.architecture().names()) {
    if (has(names.role, false)) add(names.role, 0);
  }
  for (int64_t block = 0; block < model.config().blocks; ++block) {
    for (const arch::RoleNames& names : model.architecture().names()) {
      if (has(names.role, true)) add(names.role, block);
    }
  }
  return tensors;
}

void add_text(io::PendingFiles& pending, const std::string& path, std::string_view text) {
  io::AtomicFile file(path);
  file.write(text);
  file.sync();
  pending.add(std::move(file));
}

// The dtype that transformers should load the model in.
std::string_view model_dtype(const DirectoryContents& contents) {
  return dtype_text(dense_dtype(contents, Role::kEmbedding, 0));
}

Json make_config(const DirectoryContents& contents) {
  Json config = contents.model->hf_config();
  config.erase("quantization_config");
  const char* key = config.contains("dtype") ? "dtype" : "torch_dtype";
  config[key] = model_dtype(contents);
  if (!contents.read_layer) return config;
  std::vector<format::LayerGrid> layers;
  for (int64_t b = 0; b < contents.model->config().blocks; ++b) {
    for (const Role role : arch::kLinearRoles) {
      layers.push_back({contents.model->name(role, b), contents.grid_of(b, role)});
    }
  }
  Json quantization = contents.format->quantization_config(layers, contents.meta);
  if (!quantization.is_null()) config["quantization_config"] = std::move(quantization);
  return config;
}

// tokenizer_config.json and generation_config.json for a model that came from a GGUF file.
void add_files_from_gguf(const DirectoryContents& contents, const std::string& directory,
                         io::PendingFiles& pending) {
  const io::GgufFile& file = *contents.model->gguf();
  Json generation = Json::object();
  Json config = {{"tokenizer_class", "PreTrainedTokenizerFast"},
                 {"clean_up_tokenization_spaces", false},
                 {"model_max_length", contents.model->config().max_positions}};
  const auto* tokens = file.find_key("tokenizer.ggml.tokens");
  const auto* texts = tokens == nullptr ? nullptr : std::get_if<std::vector<std::string>>(tokens);
  for (const auto& [key, name, token] : {std::tuple{"bos", "bos_token_id", "bos_token"},
                                         {"eos", "eos_token_id", "eos_token"},
                                         {"unknown", "", "unk_token"},
                                         {"padding", "pad_token_id", "pad_token"}}) {
    const std::string id_key = fmt::format("tokenizer.ggml.{}_token_id", key);
    if (file.find_key(id_key) == nullptr) continue;
    const int64_t id = file.int_at(id_key);
    if (id < 0 || id >= contents.model->config().vocab_size) continue;  // none
    if (*name != '\0') generation[name] = id;
    if (texts != nullptr && std::cmp_less(id, texts->size())) {
      config[token] = (*texts)[static_cast<size_t>(id)];
    }
  }
  const std::string chat = file.string_or("tokenizer.chat_template", "");
  if (!chat.empty()) config["chat_template"] = chat;
  if (contents.tokenizer != nullptr) {
    add_text(pending, directory + "/tokenizer.json", contents.tokenizer->to_json());
    add_text(pending, directory + "/tokenizer_config.json", dump_json(config, 2));
  }
  add_text(pending, directory + "/generation_config.json", dump_json(generation, 2));
}

void add_companions(const DirectoryContents& contents, const std::string& directory,
                    io::PendingFiles& pending) {
  if (contents.model->gguf() != nullptr) {
    add_files_from_gguf(contents, directory, pending);
    return;
  }
  for (const std::string& name : companion_files(contents.model->path())) {
    if (name.starts_with(kTemplateFolder)) {
      io::make_directories(fmt::format("{}/{}", directory, kTemplateFolder));
    }
    add_text(pending, directory + "/" + name,
             io::read_text_file(contents.model->path() + "/" + name, kMaxCompanionBytes));
  }
}

}  // namespace

std::vector<std::string> companion_files(const std::string& directory) {
  const fs::path folder(directory);
  std::vector<std::string> templates;
  std::error_code error;  // there is no such folder, as a rule
  for (fs::directory_iterator it(folder / kTemplateFolder, error), end; !error && it != end;
       it.increment(error)) {
    if (it->path().extension() == ".jinja") {
      templates.push_back(fmt::format("{}/{}", kTemplateFolder, it->path().filename().string()));
    }
  }
  if (error && error != std::errc::no_such_file_or_directory &&
      error != std::errc::not_a_directory) {
    io::raise_read_error((folder / kTemplateFolder).string(), "list the directory", error.value());
  }
  std::ranges::sort(templates);
  std::vector<std::string> names(kCompanions.begin(), kCompanions.end());
  names.insert(names.end(), templates.begin(), templates.end());
  std::erase_if(names, [&](const std::string& name) {
    return !io::has_model_file(directory, name) || !fs::is_regular_file(folder / name, error);
  });
  return names;
}

bool is_leftover(const std::string& path) {
  const fs::path entry(path);
  if (io::is_temporary(entry.filename().string())) return true;
  std::error_code error;
  if (entry.filename() != kTemplateFolder || !fs::is_directory(fs::symlink_status(entry, error))) {
    return false;
  }
  fs::directory_iterator it(entry, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    if (!io::is_temporary(it->path().filename().string())) return false;
  }
  return !error;
}

void remove_leftovers(const std::string& directory) {
  io::remove_temporaries(directory);
  const std::string folder = fmt::format("{}/{}", directory, kTemplateFolder);
  if (!is_leftover(folder)) return;
  io::remove_temporaries(folder);
  std::error_code error;  // an empty folder is in nobody's way
  fs::remove(folder, error);
}

uint64_t estimate_bytes(const DirectoryContents& contents) {
  return io::safetensors_bytes(list_tensors(contents, nullptr), contents.max_shard_bytes);
}

void write_hf_directory(const RunContext& ctx, const DirectoryContents& contents,
                        const std::string& directory) {
  io::make_directories(directory);
  auto tensors = list_tensors(contents, std::make_shared<BlockEncoder>(contents));
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
  io::write_safetensors(directory, "model", std::move(tensors), contents.max_shard_bytes, pending);
  add_companions(contents, directory, pending);
  const Json config = make_config(contents);
  if (config.contains("quantization_config") &&
      config["quantization_config"].value("quant_method", "") == "gptq") {
    add_text(pending, directory + "/quantize_config.json",
             dump_json(config["quantization_config"], 2) + "\n");
  }
  // Last: a directory without config.json is not a model to anyone.
  add_text(pending, directory + "/config.json", dump_json(config, 2) + "\n");
  pending.commit();
}

}  // namespace lpcd::bundle
