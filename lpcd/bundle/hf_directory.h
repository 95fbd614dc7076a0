#pragma once

#include <functional>
#include <string>
#include <vector>

#include "lpcd/arch/model.h"
#include "lpcd/base/context.h"
#include "lpcd/format/output_format.h"
#include "lpcd/text/tokenizer.h"

namespace lpcd::bundle {

/// Where the writer gets a quantized layer from; the reference is valid until the next call.
using LayerReader = std::function<const format::QuantizedMatrix&(int64_t block, arch::Role role)>;

/// What to write besides the weights.
struct DirectoryContents {
  const arch::Model* model = nullptr;
  const text::Tokenizer* tokenizer =
      nullptr;  ///< of a model from a GGUF file; else files are copied
  const format::OutputFormat* format = nullptr;
  /// Grid of a layer; not called if `read_layer` is empty.
  std::function<format::GridSpec(int64_t block, arch::Role role)> grid_of;
  LayerReader read_layer;  ///< empty: the model's own weights (a conversion)
  Json meta;               ///< goes under quantization_config.meta
  uint64_t max_shard_bytes = 5ULL << 30;
};

/// Writes a complete Hugging Face directory: weights in one file or shards with an index,
/// config.json with quantization_config (for gptq also as quantize_config.json), tokenizer and
/// generation files.
///
/// Tensors that are not quantized keep their stored type, unless the format has one type for all;
/// those of a GGUF file become F16. A tied head is not written.
/// Memory    the layers of one block.
/// Errors    kWriteFailed; nothing appears under its final name before everything is written.
void write_hf_directory(const RunContext& ctx, const DirectoryContents& contents,
                        const std::string& directory);

/// Files that a model directory holds besides weights and config.json, which write_hf_directory
/// copies: of the tokenizer, of generation, README.md; names in the directory.
/// Errors    kBadFile if one is a link that leads out of the directory (io::has_model_file).
[[nodiscard]] std::vector<std::string> companion_files(const std::string& directory);

/// True for what a write_hf_directory() that failed or was killed leaves beside final names:
/// temporary files, and the folder of named chat templates with nothing else in it.
[[nodiscard]] bool is_leftover(const std::string& path);

/// Removes what is_leftover() in `directory`. To be called under the io::DirectoryLock.
void remove_leftovers(const std::string& directory);

/// Bytes of the weights that write_hf_directory would write.
[[nodiscard]] uint64_t estimate_bytes(const DirectoryContents& contents);

}  // namespace lpcd::bundle
