#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lpcd/bundle/gguf_output.h"
#include "lpcd/bundle/hf_directory.h"
#include "lpcd/io/file.h"
#include "lpcd/pipeline/journal.h"

namespace lpcd::api {

/// Formats of a run: as asked for, or gptq at the chosen grid. Takes the grid that a format states
/// into the options.
/// Errors    kBadOption if two formats need different grids.
[[nodiscard]] std::vector<std::unique_ptr<format::OutputFormat>> resolve_formats(
    QuantizeOptions& options);

/// Checks every layer of the plan against every format.
void check_formats(const arch::Model& model, const pipeline::Plan& plan,
                   const std::vector<std::unique_ptr<format::OutputFormat>>& formats);

/// Directory of one format: `out` itself for a single one, else out/gptq-3-g64.
[[nodiscard]] std::string output_directory(const std::string& out,
                                           const format::OutputFormat& format, size_t format_count);

/// Where the model of one format can be opened: its directory, or the GGUF file in it.
[[nodiscard]] std::string output_path(const arch::Model& model, const format::OutputFormat& format,
                                      const std::string& directory);

/// The model's tokenizer where no text is read: the files of a Hugging Face directory, and the
/// metadata of a GGUF file, are copied as they are, so that one which this version cannot read is a
/// warning. From GGUF to a directory (`directory`) it has to be read.
[[nodiscard]] std::optional<text::Tokenizer> tokenizer_to_copy(const RunContext& ctx,
                                                               const arch::Model& model,
                                                               bool directory);

/// Warns of a GGUF file that llama.cpp will not load, or reads with another tokenizer. True if it
/// did.
bool warn_of_gguf(const RunContext& ctx, const arch::Model& model,
                  const format::OutputFormat& format);

/// Types that a format gives to embedding and head, by its mix and --tensor-type.
[[nodiscard]] std::function<std::optional<DType>(arch::Role)> matrix_types(
    const arch::Model& model, const format::OutputFormat& format,
    const std::vector<std::string>& tensor_types);

/// Grids of all layers of a run, from the block records.
using LayerGrids = std::map<std::pair<int64_t, arch::Role>, format::GridSpec>;
[[nodiscard]] LayerGrids read_grids(const pipeline::Journal& journal, int64_t blocks);

/// What write_output needs to know besides the format.
struct OutputJob {
  const arch::Model& model;
  const text::Tokenizer* tokenizer;
  const pipeline::Journal& journal;
  const std::vector<std::string>& tensor_types;
  Json meta;
  uint64_t max_shard_bytes;
};

/// Writes one format of a finished run into a directory. Returns its output_path.
[[nodiscard]] std::string write_output(const RunContext& ctx, const OutputJob& job,
                                       const format::OutputFormat& format,
                                       const std::string& directory);

/// Warns where the file system has no locks.
void warn_without_lock(const RunContext& ctx, const io::DirectoryLock& lock);

/// Throws kOutputExists unless the directory is absent, or holds nothing but what a process of ours
/// leaves when it dies before its first commit.
void require_empty(const std::string& directory);

}  // namespace lpcd::api
