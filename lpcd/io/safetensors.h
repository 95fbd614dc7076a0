#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lpcd/io/file.h"
#include "lpcd/io/tensor_source.h"

namespace lpcd::io {

/// Opens one .safetensors file.
///
/// The header is validated as a whole before anything is used: length within the file and at most
/// 100 MB, UTF-8 JSON object, no key twice, `__metadata__` a map of strings, known dtypes, offsets
/// that cover the data section from 0 to its end without holes or overlaps, shape times dtype equal
/// to the offsets. Stricter than the reference reader only in refusing duplicate keys.
/// Errors    kBadFile naming file and field; kUnsupportedModel for a dtype that the format has but
///           lpcd does not read (FP8 and the like); kFileNotFound, kReadFailed.
[[nodiscard]] std::unique_ptr<TensorSource> open_safetensors(const std::string& path);

/// Opens the weights of a Hugging Face directory: model.safetensors.index.json with its shards, or
/// model.safetensors, or the only *.safetensors file there.
///
/// Shard names are plain names of regular files in the directory: `../`, absolute paths and links
/// that lead out of it are refused. Every tensor of the index must be in the shard it names, and
/// every tensor of a shard in the index. (Links that stay inside the directory are fine; the
/// Hugging Face cache links out of its snapshot folders, so `DIR/../../blobs/` is accepted as well
/// when DIR is such a snapshot folder.)
/// Errors    those of open_safetensors. With an index, all mismatches in one message:
///           kFileNotFound for shards that are not there, kMissingTensor for tensors that are in
///           none, kBadFile for tensors in two shards, in another than the index says, or not in
///           the index. kBadModel if it is not clear which files are meant: several and no index,
///           or an index of others beside model.safetensors.
[[nodiscard]] std::unique_ptr<TensorSource> open_safetensors_directory(
    const std::string& directory);

/// One tensor to be written: its bytes are asked for when its turn comes, once.
struct TensorProducer {
  TensorInfo info;
  std::function<std::vector<std::byte>()> bytes;
};

/// Files of a finished safetensors model, not yet visible: commit() them when all else is written.
class PendingFiles {
 public:
  void add(AtomicFile file) { files_.push_back(std::move(file)); }
  /// Syncs all files, then renames in the order added. Index and configuration are added last, so
  /// that a crash leaves old files or complete ones, and no index that names a file that is not
  /// there. Of several files, an older version of the last is removed first: a crash in between
  /// then leaves a model that does not load, not an old index over new shards.
  void commit();
  [[nodiscard]] uint64_t total_bytes() const;

 private:
  std::vector<AtomicFile> files_;
};

/// Writes tensors to DIR/STEM.safetensors, or to DIR/STEM-00001-of-0000N.safetensors with
/// STEM.safetensors.index.json when the data exceed `max_shard_bytes`. Shards fill up in the order
/// given (that of the model, as a rule); a tensor above the limit gets a shard of its own.
///
/// The bytes are those of the reference writer (`save_file` with metadata {"format": "pt"}): within
/// a file tensors stand by dtype, widest first, then by name; the header is padded with spaces
/// to 8. Producers run in the order of the files.
/// Memory    one tensor at a time.
/// Errors    kWriteFailed; kInternal if a producer returns the wrong number of bytes, for a name
///           given twice and for block types, which safetensors does not have.
void write_safetensors(const std::string& directory, const std::string& stem,
                       std::vector<TensorProducer> tensors, uint64_t max_shard_bytes,
                       PendingFiles& pending);

/// Bytes of the files, without the index, that write_safetensors() would write; no producer runs.
[[nodiscard]] uint64_t safetensors_bytes(std::vector<TensorProducer> tensors,
                                         uint64_t max_shard_bytes);

}  // namespace lpcd::io
