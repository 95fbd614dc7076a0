#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "lpcd/base/checked.h"
#include "lpcd/base/json.h"
#include "lpcd/base/raise.h"
#include "lpcd/io/safetensors.h"
#include "lpcd/io/safetensors_header.h"
#include "lpcd/io/system_error.h"

namespace lpcd::io {
namespace {

/// Place of a dtype in the reference writer's file order: what its enumeration has last comes
/// first, so that wide types stay aligned.
int file_rank(DType dtype) {
  constexpr std::array kOrder = {DType::kU64, DType::kI64,  DType::kF64, DType::kF32, DType::kU32,
                                 DType::kI32, DType::kBF16, DType::kF16, DType::kU16, DType::kI16,
                                 DType::kI8,  DType::kU8,   DType::kBool};
  const auto* const it = std::ranges::find(kOrder, dtype);
  LPCD_CHECK(it != kOrder.end());  // block types have no safetensors name
  return static_cast<int>(it - kOrder.begin());
}

uint64_t data_bytes(const TensorProducer& tensor) {
  return static_cast<uint64_t>(tensor.info.bytes());
}

using Shard = std::vector<TensorProducer>;

/// Greedy, in the order given, as the Hugging Face writers split: a tensor above the limit becomes
/// a shard at once, ahead of the one that is being filled.
std::vector<Shard> split(std::vector<TensorProducer> tensors, uint64_t max_shard_bytes) {
  std::vector<Shard> shards;
  Shard current;
  uint64_t current_bytes = 0;
  for (TensorProducer& tensor : tensors) {
    const uint64_t bytes = data_bytes(tensor);
    if (bytes > max_shard_bytes) {
      shards.emplace_back().push_back(std::move(tensor));
      continue;
    }
    if (current_bytes + bytes > max_shard_bytes) {
      shards.push_back(std::exchange(current, {}));
      current_bytes = 0;
    }
    current.push_back(std::move(tensor));
    current_bytes += bytes;
  }
  if (!current.empty() || shards.empty()) shards.push_back(std::move(current));
  return shards;
}

/// Header with its length in front, for tensors in file order.
std::string header_of(const Shard& tensors) {
  std::string json = R"({"__metadata__":{"format":"pt"})";
  uint64_t offset = 0;
  for (const TensorProducer& tensor : tensors) {
    const uint64_t end = offset + data_bytes(tensor);
    std::string shape;
    for (const int64_t extent : tensor.info.shape) {
      shape += fmt::format("{}{}", shape.empty() ? "" : ",", extent);
    }
    json += fmt::format(R"(,{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})",
                        dump_json(tensor.info.name), dtype_info(tensor.info.dtype).name, shape,
                        offset, end);
    offset = end;
  }
  json += '}';
  json.resize((json.size() + 7) / 8 * 8, ' ');
  LPCD_CHECK(json.size() <= kMaxSafetensorsHeaderBytes);
  std::string length(8, '\0');
  const uint64_t bytes = json.size();
  std::memcpy(length.data(), &bytes, sizeof(bytes));
  return length + json;
}

void put_in_file_order(Shard& tensors) {
  std::ranges::sort(tensors, [](const TensorProducer& a, const TensorProducer& b) {
    const int rank_a = file_rank(a.info.dtype);
    const int rank_b = file_rank(b.info.dtype);
    return rank_a != rank_b ? rank_a < rank_b : a.info.name < b.info.name;
  });
}

AtomicFile write_shard(const std::string& path, Shard tensors) {
  put_in_file_order(tensors);
  AtomicFile file(path);
  file.write(header_of(tensors));
  for (TensorProducer& tensor : tensors) {
    const std::vector<std::byte> bytes = tensor.bytes();
    if (bytes.size() != data_bytes(tensor)) {
      raise(ErrorCode::kInternal,
            "{}: {}: {} bytes produced for shape {} of {}; please report this as a bug", path,
            tensor.info.name, bytes.size(), tensor.info.shape_text(),
            dtype_info(tensor.info.dtype).name);
    }
    file.write(bytes);
    tensor.bytes = nullptr;  // what the producer holds is not needed any more
  }
  file.sync();
  return file;
}

AtomicFile write_index(const std::string& path, uint64_t total_bytes,
                       const std::map<std::string, std::string>& weight_map) {
  const Json index = {{"metadata", {{"total_size", total_bytes}}}, {"weight_map", weight_map}};
  AtomicFile file(path);
  file.write(dump_json(index, 2) + "\n");
  file.sync();
  return file;
}

}  // namespace

uint64_t safetensors_bytes(std::vector<TensorProducer> tensors, uint64_t max_shard_bytes) {
  uint64_t sum = 0;
  for (Shard& shard : split(std::move(tensors), max_shard_bytes)) {
    put_in_file_order(shard);
    sum += header_of(shard).size();
    for (const TensorProducer& tensor : shard) sum += data_bytes(tensor);
  }
  return sum;
}

void write_safetensors(const std::string& directory, const std::string& stem,
                       std::vector<TensorProducer> tensors, uint64_t max_shard_bytes,
                       PendingFiles& pending) {
  uint64_t total_bytes = 0;
  std::set<std::string_view> names;
  for (const TensorProducer& tensor : tensors) {
    LPCD_CHECK(tensor.info.name != "__metadata__" && names.insert(tensor.info.name).second);
    (void)file_rank(tensor.info.dtype);
    total_bytes += data_bytes(tensor);
  }
  names.clear();
  const std::string base = directory + "/" + stem;
  std::vector<Shard> shards = split(std::move(tensors), max_shard_bytes);
  if (shards.size() == 1) {
    pending.add(write_shard(base + ".safetensors", std::move(shards[0])));
    return;
  }
  std::map<std::string, std::string> weight_map;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string suffix = fmt::format("-{:05}-of-{:05}.safetensors", i + 1, shards.size());
    for (const TensorProducer& tensor : shards[i]) weight_map[tensor.info.name] = stem + suffix;
    pending.add(write_shard(base + suffix, std::exchange(shards[i], {})));
  }
  pending.add(write_index(base + ".safetensors.index.json", total_bytes, weight_map));
}

void PendingFiles::commit() {
  for (AtomicFile& file : files_) file.sync();
  if (files_.size() > 1) {
    const std::string& last = files_.back().path();
    if (::unlink(last.c_str()) != 0 && errno != ENOENT) {
      raise_system_error(ErrorCode::kWriteFailed, last, "replace", errno);
    }
  }
  for (AtomicFile& file : files_) file.commit();
  files_.clear();
}

uint64_t PendingFiles::total_bytes() const {
  uint64_t total = 0;
  for (const AtomicFile& file : files_) total += file.size();
  return total;
}

}  // namespace lpcd::io
