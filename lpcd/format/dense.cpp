#include <cmath>
#include <cstring>

#include "lpcd/base/raise.h"
#include "lpcd/format/output_format.h"
#include "lpcd/tensor/half.h"

// Decoded weights as ordinary tensors, for any tool.

namespace lpcd::format {
namespace {

class Dense final : public OutputFormat {
 public:
  Dense(DType type, std::string_view name) : type_(type), name_(name) {}

  std::string text() const override { return "dense:" + name_; }
  std::optional<GridSpec> grid() const override { return std::nullopt; }
  void check(const std::string& /*name*/, int64_t /*rows*/, int64_t /*cols*/,
             const GridSpec& /*grid*/) const override {}
  std::vector<TensorInfo> describe(const std::string& name, int64_t rows, int64_t cols,
                                   const GridSpec& /*grid*/) const override {
    return {{name, type_, {rows, cols}}};
  }
  std::vector<NamedTensor> encode(const std::string& name,
                                  const QuantizedMatrix& q) const override {
    const Mat w = q.decode();
    std::vector<NamedTensor> tensors(1);
    tensors[0].info = {name, type_, {q.rows, q.cols}};
    tensors[0].data = encode_dense(name, {w.data(), static_cast<size_t>(w.size())}, type_);
    return tensors;
  }
  std::optional<DType> dense_type() const override { return type_; }
  Json quantization_config(std::span<const LayerGrid> /*layers*/,
                           const Json& /*meta*/) const override {
    return nullptr;
  }

 private:
  DType type_;
  std::string name_;
};

}  // namespace

std::unique_ptr<OutputFormat> parse_dense(std::span<const std::string_view> parts) {
  if (parts.size() != 1) return nullptr;
  if (parts[0] == "fp16") return std::make_unique<Dense>(DType::kF16, parts[0]);
  if (parts[0] == "bf16") return std::make_unique<Dense>(DType::kBF16, parts[0]);
  if (parts[0] == "fp32") return std::make_unique<Dense>(DType::kF32, parts[0]);
  return nullptr;
}

std::vector<std::byte> encode_dense(const std::string& name, std::span<const float> values,
                                    DType type) {
  std::vector<std::byte> bytes(values.size() * static_cast<size_t>(dtype_info(type).block_bytes));
  if (type == DType::kF32) {
    std::memcpy(bytes.data(), values.data(), bytes.size());
    return bytes;
  }
  LPCD_CHECK(type == DType::kF16 || type == DType::kBF16);
  const bool f16 = type == DType::kF16;
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t half = f16 ? f32_to_f16(values[i]) : f32_to_bf16(values[i]);
    if (f16 && (half & 0x7C00U) == 0x7C00U) {
      raise(ErrorCode::kNonFinite, "{}: value {} does not fit F16; write dense:bf16 or dense:fp32",
            name, values[i]);
    }
    std::memcpy(bytes.data() + 2 * i, &half, 2);
  }
  return bytes;
}

float float_at(std::span<const std::byte> data, DType type, size_t i) {
  if (type == DType::kF32) {
    float value = 0;
    std::memcpy(&value, data.data() + 4 * i, 4);
    return value;
  }
  uint16_t half = 0;
  std::memcpy(&half, data.data() + 2 * i, 2);
  return type == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

}  // namespace lpcd::format
