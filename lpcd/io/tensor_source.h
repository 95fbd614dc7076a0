#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "lpcd/tensor/mat.h"
#include "lpcd/tensor/named_tensor.h"

namespace lpcd::io {

/// The form that a tensor has in its file.
struct StoredForm {
  std::string type;  ///< "BF16", "Q4_K", "int3"
  uint64_t bytes = 0;
};

/// Named tensors that can be read one at a time: a safetensors directory, a GGUF file, memory.
///
/// Threads   const methods may be called from several threads at once.
class TensorSource {
 public:
  virtual ~TensorSource() = default;

  /// All tensors, sorted by name.
  [[nodiscard]] const std::vector<TensorInfo>& tensors() const { return tensors_; }
  /// Null if there is no tensor of that name. O(log n).
  [[nodiscard]] const TensorInfo* find(std::string_view name) const;
  /// kMissingTensor if there is none.
  [[nodiscard]] const TensorInfo& at(std::string_view name) const;

  /// The stored bytes, in the type that at(name).dtype says.
  [[nodiscard]] virtual std::span<const std::byte> raw(std::string_view name) const = 0;
  /// The bytes of `name` are not needed for a while; mapped sources give the pages back.
  virtual void release(std::string_view name) const;
  /// What a tensor is in its file. Differs from at(name) where a source decodes: a layer of 3-bit
  /// codes with its scales is shown as F32, and stored as "int3" in far fewer bytes.
  [[nodiscard]] virtual StoredForm stored_form(std::string_view name) const;
  /// Where a tensor is stored, for messages: "model-00002-of-00003.safetensors".
  [[nodiscard]] virtual std::string location(std::string_view name) const = 0;

  /// Decodes F32, F16, BF16, F64 and every ggml block type to f32.
  ///
  /// Shapes    `out` has at(name).elements() elements.
  /// Numerics  exact, but F64 rounds to nearest; decode_ggml_blocks for block types.
  /// Errors    kMissingTensor, kUnsupportedModel for an integer type; NaN and Inf pass through
  ///           (check_finite is separate: an embedding table is checked once, not per read).
  virtual void read_f32(std::string_view name, std::span<float> out) const;
  /// Rows of a matrix [N, K] from `first` on, `out` being whole rows of K: any number of threads
  /// may read theirs at once. Not for tensors that have no rows of their own (has_rows).
  void read_f32_rows(std::string_view name, int64_t first, std::span<float> out) const;
  /// False where a matrix is decoded as a whole.
  [[nodiscard]] virtual bool has_rows(std::string_view name) const;

 protected:
  /// Sorts; kBadFile if a name appears twice. `where` names the source in messages.
  void set_tensors(std::vector<TensorInfo> tensors, std::string_view where);

 private:
  /// raw(name), if it can be decoded.
  [[nodiscard]] std::span<const std::byte> float_bytes(const TensorInfo& info) const;

  std::vector<TensorInfo> tensors_;
  std::string where_;
};

/// kNonFinite naming the tensor, its location and the first bad index, if any value is NaN or Inf.
/// `values` are the elements of the tensor from `offset` on.
void check_finite(std::span<const float> values, std::string_view name, std::string_view location,
                  size_t offset = 0);

/// Tensors held in memory: for tests and for models that are made, not read.
class MemoryTensorSource : public TensorSource {
 public:
  explicit MemoryTensorSource(std::vector<NamedTensor> tensors);
  [[nodiscard]] std::span<const std::byte> raw(std::string_view name) const override;
  [[nodiscard]] std::string location(std::string_view name) const override;

 private:
  std::unordered_map<std::string, std::vector<std::byte>> data_;
};

}  // namespace lpcd::io
