#pragma once

#include <functional>
#include <string>

#include "lpcd/bundle/hf_directory.h"

namespace lpcd::bundle {

/// What to write into a GGUF file.
struct GgufContents {
  const arch::Model* model = nullptr;
  const format::OutputFormat* format = nullptr;
  /// Grid of a layer; not called if `read_layer` is empty.
  std::function<format::GridSpec(int64_t block, arch::Role role)> grid_of;
  LayerReader read_layer;  ///< empty: the model's own weights (a conversion)
  /// Type of the embedding and the head; nothing: as they are stored.
  std::function<std::optional<DType>(arch::Role role)> matrix_type;
};

/// Writes a complete GGUF file: hyper-parameters, tokenizer, chat template, tensors. Of a model
/// that came from a GGUF file all metadata are carried over but what says how it is quantized. Rows
/// of q and k are put in the order that the family has in GGUF files.
///
/// Vectors are F32. Embedding and head get the type of `matrix_type`: blocks by rounding to nearest
/// under the same search as the layers.
/// Memory    the layers of one block; the embedding as f32.
/// Errors    kWriteFailed; nothing appears under `path` before everything is written.
void write_gguf_file(const RunContext& ctx, const GgufContents& contents, const std::string& path);

/// Bytes of the file that write_gguf_file would write.
[[nodiscard]] uint64_t estimate_gguf_bytes(const GgufContents& contents);

/// "SmolLM2-135M-Q4_K_M.gguf": the model's name and the format.
[[nodiscard]] std::string gguf_file_name(const arch::Model& model,
                                         const format::OutputFormat& format);

/// True if there is a tokenizer to write: llama.cpp loads no file without one.
[[nodiscard]] bool has_vocabulary(const arch::Model& model);

/// Warnings about what a GGUF file of the model cannot say, before any work: empty as a rule.
/// Errors    kUnsupportedModel if its tokenizer cannot be written at all, or if llama.cpp does not
///           know its rope scaling in this family.
[[nodiscard]] std::string check_gguf(const arch::Model& model);

}  // namespace lpcd::bundle
