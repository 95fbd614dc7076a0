#include "lpcd/bundle/open_model.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "lpcd/base/raise.h"
#include "lpcd/bundle/hf_directory.h"
#include "lpcd/bundle/quantized_source.h"
#include "lpcd/io/file.h"
#include "lpcd/io/gguf.h"
#include "lpcd/io/safetensors.h"

namespace lpcd::bundle {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMaxConfigBytes = 16ULL << 20;

// A run whose format is gguf leaves one such file in its directory.
std::optional<std::string> only_gguf_file(const std::string& directory) {
  std::optional<std::string> found;
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (entry.path().extension() != ".gguf") continue;
    if (found) return std::nullopt;
    found = entry.path().string();
  }
  return found;
}

bool is_model_directory(const std::string& path) {
  return io::exists(path + "/config.json") || only_gguf_file(path);
}

// The path is a directory without a model: says why, where that is known.
[[noreturn]] void refuse_directory(const std::string& path) {
  const std::string run_path = path + "/.lpcd/run.json";
  if (!io::exists(run_path)) {
    raise(ErrorCode::kBadModel,
          "{}: no config.json; give a Hugging Face model directory or a GGUF file", path);
  }
  const std::vector<std::string> models = models_below(path);
  if (!models.empty()) {
    raise(ErrorCode::kBadModel, "{}: a run with several formats; give one of them: {}", path,
          fmt::join(models, ", "));
  }
  const Json run = parse_json(io::read_text_file(run_path, kMaxConfigBytes), run_path);
  if (JsonFields(run, run_path).bool_or("finished", false)) {
    raise(ErrorCode::kBadModel,
          "{}: a finished run whose model is gone; lpcd export {} --format F --out DIR writes it "
          "again",
          path, path);
  }
  raise(ErrorCode::kBadModel,
        "{}: an unfinished run; finish it with lpcd quantize ... --out {} --resume and the options "
        "it was started with (lpcd inspect {} lists them)",
        path, path, path);
}

arch::Model open_directory(const std::string& path) {
  const std::string config_path = path + "/config.json";
  if (!io::exists(config_path)) {
    if (const auto file = only_gguf_file(path)) return arch::Model::from_gguf(*file);
    refuse_directory(path);
  }
  (void)companion_files(path);  // a link that an output would not get is refused now
  Json config = parse_json(io::read_text_file(config_path, kMaxConfigBytes), config_path);
  std::shared_ptr<const io::TensorSource> source = io::open_safetensors_directory(path);
  const JsonFields fields(config, config_path);
  if (const Json* quantization = fields.find("quantization_config")) {
    const JsonFields q(*quantization, config_path + ": quantization_config");
    const std::string method = q.string_or("quant_method", "");
    if (method == "gptq") {
      source = open_gptq_source(std::move(source), *quantization, config_path);
    } else if (method == "compressed-tensors") {
      source = open_packed_source(std::move(source), *quantization, config_path);
    } else {
      raise(ErrorCode::kUnsupportedModel,
            "{}: already quantized with \"{}\"; start from the original checkpoint", path, method);
    }
  }
  return arch::Model::from_hf(std::move(source), std::move(config), path);
}

}  // namespace

std::vector<std::string> models_below(const std::string& directory) {
  std::vector<std::string> models;
  if (is_model_directory(directory)) return models;
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (!entry.is_directory()) continue;
    const std::string path = entry.path().string();
    if (io::exists(path + "/config.json")) {
      models.push_back(path);
    } else if (const auto file = only_gguf_file(path)) {
      models.push_back(*file);
    }
  }
  std::ranges::sort(models);
  return models;
}

arch::Model open_model(const std::string& path) {
  if (!io::exists(path)) {
    raise(
        ErrorCode::kFileNotFound,
        "{}: no such file or directory; nothing is downloaded: give a GGUF file, or the directory "
        "that holds config.json",
        path);
  }
  if (fs::is_directory(path)) return open_directory(path);
  if (io::is_gguf_file(path)) return arch::Model::from_gguf(path);
  raise(ErrorCode::kBadFile,
        "{}: not a GGUF file; for safetensors give the directory that holds config.json", path);
}

std::optional<text::Tokenizer> open_tokenizer(const arch::Model& model) {
  std::optional<text::Tokenizer> tokenizer;
  if (model.gguf() != nullptr) {
    if (model.gguf()->find_key("tokenizer.ggml.tokens") == nullptr) return std::nullopt;
    tokenizer = text::Tokenizer::from_gguf(*model.gguf());
  } else {
    tokenizer = text::Tokenizer::from_directory(model.path());
  }
  // Some checkpoints have a "<pad>" or two that nobody gave a row of the embedding. Whoever embeds
  // a text checks its ids.
  constexpr int64_t kWithoutRow = 16;
  if (tokenizer && tokenizer->vocab_size() > model.config().vocab_size + kWithoutRow) {
    raise(ErrorCode::kBadModel,
          "{}: the tokenizer has {} tokens, the model embeds {}; they do not belong together",
          model.path(), tokenizer->vocab_size(), model.config().vocab_size);
  }
  return tokenizer;
}

}  // namespace lpcd::bundle
