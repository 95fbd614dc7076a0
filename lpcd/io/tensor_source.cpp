#include "lpcd/io/tensor_source.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <utility>

#include "lpcd/base/checked.h"
#include "lpcd/base/raise.h"
#include "lpcd/tensor/ggml_blocks.h"
#include "lpcd/tensor/half.h"

namespace lpcd::io {
namespace {

static_assert(std::endian::native == std::endian::little,
              "all containers are little endian and are read as they lie in memory");

/// Stored values need not be aligned: a data section may begin anywhere.
template <typename Stored, typename Convert>
void convert(std::span<const std::byte> bytes, std::span<float> out, Convert to_f32) {
  const std::byte* p = bytes.data();
  for (size_t i = 0; i < out.size(); ++i) {
    Stored stored;
    std::memcpy(&stored, p + i * sizeof(Stored), sizeof(Stored));
    out[i] = to_f32(stored);
  }
}

void decode(DType dtype, std::span<const std::byte> bytes, std::span<float> out) {
  switch (dtype) {
    case DType::kF32:
      if (!out.empty()) std::memcpy(out.data(), bytes.data(), bytes.size());
      return;
    case DType::kF16:
      return convert<uint16_t>(bytes, out, f16_to_f32);
    case DType::kBF16:
      return convert<uint16_t>(bytes, out, bf16_to_f32);
    case DType::kF64:
      return convert<double>(bytes, out, [](double value) { return static_cast<float>(value); });
    default:
      return decode_ggml_blocks(dtype, bytes, out);
  }
}

bool is_float(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16 ||
         dtype == DType::kF64;
}

}  // namespace

void TensorSource::set_tensors(std::vector<TensorInfo> tensors, std::string_view where) {
  std::ranges::sort(tensors, {}, &TensorInfo::name);
  const auto twice = std::ranges::adjacent_find(tensors, {}, &TensorInfo::name);
  if (twice != tensors.end()) {
    raise(ErrorCode::kBadFile, "{}: tensor \"{}\" appears twice; the file is damaged", where,
          twice->name);
  }
  tensors_ = std::move(tensors);
  where_ = where;
}

const TensorInfo* TensorSource::find(std::string_view name) const {
  const auto it = std::ranges::lower_bound(tensors_, name, {}, &TensorInfo::name);
  return it != tensors_.end() && it->name == name ? &*it : nullptr;
}

const TensorInfo& TensorSource::at(std::string_view name) const {
  const TensorInfo* info = find(name);
  if (info == nullptr) {
    raise(ErrorCode::kMissingTensor,
          "{}: no tensor \"{}\"; the checkpoint is incomplete or of another architecture", where_,
          name);
  }
  return *info;
}

StoredForm TensorSource::stored_form(std::string_view name) const {
  return {.type = std::string(dtype_info(at(name).dtype).name), .bytes = raw(name).size()};
}

void TensorSource::release(std::string_view /*name*/) const {}

std::span<const std::byte> TensorSource::float_bytes(const TensorInfo& info) const {
  if (!is_float(info.dtype) && !is_block_quantized(info.dtype)) {
    raise(ErrorCode::kUnsupportedModel,
          "{}: {}: holds integers ({}) where weights are expected; an already quantized checkpoint "
          "has to be dequantized first",
          location(info.name), info.name, dtype_info(info.dtype).name);
  }
  const std::span<const std::byte> bytes = raw(info.name);
  LPCD_CHECK(std::cmp_equal(bytes.size(), info.bytes()));
  return bytes;
}

void TensorSource::read_f32(std::string_view name, std::span<float> out) const {
  const TensorInfo& info = at(name);
  LPCD_CHECK(std::cmp_equal(out.size(), info.elements()));
  decode(info.dtype, float_bytes(info), out);
}

bool TensorSource::has_rows(std::string_view /*name*/) const { return true; }

void TensorSource::read_f32_rows(std::string_view name, int64_t first, std::span<float> out) const {
  const TensorInfo& info = at(name);
  LPCD_CHECK(has_rows(name) && info.shape.size() == 2 && info.shape[0] > 0 && info.shape[1] > 0);
  const auto cols = static_cast<size_t>(info.shape[1]);
  const size_t rows = out.size() / cols;
  LPCD_CHECK(out.size() % cols == 0 && first >= 0 &&
             std::cmp_less_equal(static_cast<size_t>(first) + rows, info.shape[0]));
  const std::span<const std::byte> bytes = float_bytes(info);
  const size_t row_bytes = bytes.size() / static_cast<size_t>(info.shape[0]);
  decode(info.dtype, bytes.subspan(static_cast<size_t>(first) * row_bytes, rows * row_bytes), out);
}

void check_finite(std::span<const float> values, std::string_view name, std::string_view location,
                  size_t offset) {
  constexpr size_t kSlab = 4096;  // 16 KiB: stays in the first cache for the search that follows
  for (size_t begin = 0; begin < values.size(); begin += kSlab) {
    const auto slab = values.subspan(begin, std::min(kSlab, values.size() - begin));
    // All exponent bits set means Inf or NaN; counting them in integers vectorises everywhere.
    uint32_t bad = 0;
    for (const float value : slab) {
      bad += (std::bit_cast<uint32_t>(value) & 0x7F800000U) == 0x7F800000U ? 1U : 0U;
    }
    if (bad == 0) continue;
    const auto first = std::ranges::find_if(slab, [](float v) { return !std::isfinite(v); });
    raise(ErrorCode::kNonFinite,
          "{}: {}: element {} is {}; the checkpoint is damaged or was saved from a diverged run",
          location, name, offset + begin + static_cast<size_t>(first - slab.begin()),
          std::isnan(*first) ? "NaN" : "Inf");
  }
}

MemoryTensorSource::MemoryTensorSource(std::vector<NamedTensor> tensors) {
  std::vector<TensorInfo> infos;
  infos.reserve(tensors.size());
  for (NamedTensor& tensor : tensors) {
    if (std::cmp_not_equal(tensor.data.size(), tensor.info.bytes())) {
      raise(ErrorCode::kShapeMismatch, "memory: {}: {} bytes given for shape {}", tensor.info.name,
            tensor.data.size(), tensor.info.shape_text());
    }
    data_.try_emplace(tensor.info.name, std::move(tensor.data));
    infos.push_back(std::move(tensor.info));
  }
  set_tensors(std::move(infos), "memory");
}

std::span<const std::byte> MemoryTensorSource::raw(std::string_view name) const {
  return data_.at(at(name).name);
}

std::string MemoryTensorSource::location(std::string_view /*name*/) const { return "memory"; }

}  // namespace lpcd::io
