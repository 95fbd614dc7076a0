#pragma once

#include <memory>
#include <string>
#include <vector>

#include "lpcd/bundle/hf_directory.h"
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

/// Writes one format of a finished run.
void write_output(const RunContext& ctx, const arch::Model& model, const text::Tokenizer* tokenizer,
                  const pipeline::Journal& journal, const format::OutputFormat& format,
                  const Json& meta, uint64_t max_shard_bytes, const std::string& directory);

/// Throws kOutputExists unless the directory is absent, or holds nothing but what a run of ours
/// leaves when it dies before its first commit.
void require_empty(const std::string& directory);

}  // namespace lpcd::api
