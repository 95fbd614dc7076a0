#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lpcd/arch/model.h"
#include "lpcd/text/tokenizer.h"

namespace lpcd::bundle {

/// Opens whatever the command takes as a model: a Hugging Face directory (also one in the
/// gptq or pack-quantized layout, whose layers are decoded as they are read) or a GGUF file.
///
/// Errors    kFileNotFound, kReadFailed; kBadModel for a directory without config.json (runs of
///           ours, unfinished or with several formats, are recognised and named);
///           kUnsupportedModel for a quantization method we cannot read; those of arch::Model.
[[nodiscard]] arch::Model open_model(const std::string& path);

/// What open_model takes in the folders of a directory: the formats of a run that wrote several.
/// Sorted; empty if the directory is a model itself.
[[nodiscard]] std::vector<std::string> models_below(const std::string& directory);

/// The model's tokenizer, from tokenizer.json or GGUF metadata; nothing if it has none.
/// Errors    kBadModel if the tokenizer has more tokens than the model has embeddings.
[[nodiscard]] std::optional<text::Tokenizer> open_tokenizer(const arch::Model& model);

}  // namespace lpcd::bundle
