#pragma once

#include <array>
#include <functional>
#include <memory>
#include <string>

#include "lpcd/arch/arch.h"
#include "lpcd/base/context.h"
#include "lpcd/base/json.h"
#include "lpcd/io/tensor_source.h"
#include "lpcd/tensor/mat.h"

namespace lpcd::arch {

/// The f32 tensors of one block; roles that the model does not have are empty.
struct BlockWeights {
  std::array<Mat, kRoleCount> tensors;

  Mat& operator[](Role role) { return tensors[static_cast<size_t>(role)]; }
  const Mat& operator[](Role role) const { return tensors[static_cast<size_t>(role)]; }
  /// A norm's weights or a layer's bias as a vector.
  [[nodiscard]] std::span<const float> vector(Role role) const {
    const Mat& m = (*this)[role];
    return {m.data(), static_cast<size_t>(m.size())};
  }
};

/// A checkpoint whose configuration is understood and whose tensors are all there, in the right
/// shapes. Weights stay where they are until they are read.
///
/// Rows and names are those of Hugging Face, whatever the file: the q/k permutation of Llama GGUF
/// files is undone on reading.
/// Threads   const methods may be called from several threads at once.
class Model {
 public:
  /// From tensors with Hugging Face names and their config.json. A `quantization_config` in it is
  /// the business of whoever made `source`, and ignored here.
  /// A head that is stored and not a copy of the embedding is not tied, whatever the key says.
  /// Errors    as Architecture::from_hf; kMissingTensor and kShapeMismatch name every bad tensor;
  ///           kUnsupportedModel for another class in `architectures` and for tensors that would
  ///           be left out.
  static Model from_hf(std::shared_ptr<const io::TensorSource> source, Json config,
                       const std::string& path);
  /// From a GGUF file.
  static Model from_gguf(const std::string& path);

  [[nodiscard]] const ModelConfig& config() const { return config_; }
  [[nodiscard]] const Architecture& architecture() const { return *architecture_; }
  /// Directory or file that the model was opened from.
  [[nodiscard]] const std::string& path() const { return path_; }
  /// The GGUF file, or null for a Hugging Face directory.
  [[nodiscard]] const io::GgufFile* gguf() const { return gguf_; }
  /// Where the tensors are read from.
  [[nodiscard]] const io::TensorSource& source() const { return *source_; }
  /// config.json; made from the metadata for a GGUF file.
  [[nodiscard]] const Json& hf_config() const { return hf_config_; }

  /// Hugging Face name of a role's tensor.
  [[nodiscard]] std::string name(Role role, int64_t block = 0) const;
  /// Stored type and shape of a role's tensor.
  [[nodiscard]] const TensorInfo& stored(Role role, int64_t block = 0) const;

  /// Shapes    [N, K]; a vector is [1, D].
  /// Threads   Those of the context, if there is one: rows of large matrices are decoded side by
  /// side. Errors    kNonFinite naming tensor and file if a value is NaN or Inf.
  [[nodiscard]] Mat read(Role role, int64_t block = 0, const RunContext* ctx = nullptr) const;
  [[nodiscard]] BlockWeights read_block(int64_t block, const RunContext* ctx = nullptr) const;

  /// Reads every tensor once, so that what is damaged in the last block is not found after a night.
  ///
  /// Memory    a few MiB a thread and the mapped pages of one tensor; the f32 size of a tensor that
  ///           is decoded as a whole.
  /// Errors    kNonFinite as read(); kCancelled.
  void check_values(const RunContext& ctx) const;

  /// Parameters of all tensors the architecture uses.
  [[nodiscard]] int64_t parameters() const;
  /// Bytes of those tensors as stored.
  [[nodiscard]] uint64_t stored_bytes() const;

  /// 128-bit hash, in hex, of configuration, tensor table and samples of every tensor's bytes (its
  /// first and last 4 KiB): tells two checkpoints apart without reading all of a large one.
  [[nodiscard]] std::string identity() const;

 private:
  Model() = default;
  void check_tensors() const;
  /// Biases, adapters and further heads are told by their tensors alone: none may be overlooked.
  void refuse_other_tensors() const;
  /// True for a tensor outside the architecture that the model is the same without.
  [[nodiscard]] bool changes_nothing(const TensorInfo& info) const;
  [[nodiscard]] std::string source_name(Role role, int64_t block) const;
  /// Calls fn(role, block) for every tensor of the model, in a fixed order.
  void for_each_tensor(const std::function<void(Role, int64_t)>& fn) const;

  std::string path_;
  std::shared_ptr<const io::TensorSource> source_;
  const io::GgufFile* gguf_ = nullptr;
  const Architecture* architecture_ = nullptr;
  ModelConfig config_;
  Json hf_config_;
};

}  // namespace lpcd::arch
