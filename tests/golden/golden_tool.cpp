// What the scripts in this folder compare with the reference implementations:
//
//   golden_tool decode TYPE BLOCKS OUT      ggml blocks to f32
//   golden_tool dump SOURCE OUT             tensors and metadata to OUT.json, raw bytes to OUT.bin
//   golden_tool rewrite SOURCE DIR BYTES    reads a checkpoint, writes it again in shards of BYTES
//   golden_tool accept FILE...              per safetensors file a line: "ok" or the error
//
// SOURCE is a GGUF file, a safetensors file or a directory.

#include <cstdlib>
#include <cstring>
#include <exception>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "lpcd/base/json.h"
#include "lpcd/base/raise.h"
#include "lpcd/io/gguf.h"
#include "lpcd/io/safetensors.h"
#include "lpcd/tensor/ggml_blocks.h"

namespace lpcd {
namespace {

std::unique_ptr<io::TensorSource> open_source(const std::string& path) {
  if (std::filesystem::is_directory(path)) return io::open_safetensors_directory(path);
  if (io::is_gguf_file(path)) return std::make_unique<io::GgufFile>(path);
  return io::open_safetensors(path);
}

void write_bytes(const std::string& path, std::span<const std::byte> bytes) {
  io::AtomicFile file(path);
  file.write(bytes);
  file.commit();
}

DType block_type(std::string_view name) {
  for (int i = static_cast<int>(DType::kQ4_0); i <= static_cast<int>(DType::kQ6_K); ++i) {
    if (dtype_info(static_cast<DType>(i)).name == name) return static_cast<DType>(i);
  }
  raise(ErrorCode::kBadOption, "unknown block type {}", name);
}

void decode(const std::string& type_name, const std::string& in, const std::string& out) {
  const DType type = block_type(type_name);
  const io::MappedFile blocks(in);
  const size_t count = blocks.bytes().size() / static_cast<size_t>(dtype_info(type).block_bytes);
  std::vector<float> values(count * static_cast<size_t>(dtype_info(type).block_elems));
  decode_ggml_blocks(type, blocks.bytes(), values);
  write_bytes(out, std::as_bytes(std::span(values)));
}

void dump(const std::string& in, const std::string& out) {
  const std::unique_ptr<io::TensorSource> source = open_source(in);
  Json json = {{"metadata", Json::object()}, {"tensors", Json::array()}};
  if (const auto* gguf = dynamic_cast<const io::GgufFile*>(source.get())) {
    for (const auto& [key, value] : gguf->metadata()) {
      std::visit([&, &name = key](const auto& v) { json["metadata"][name] = v; }, value);
    }
  }
  std::vector<std::byte> bytes;
  for (const TensorInfo& info : source->tensors()) {
    json["tensors"].push_back(
        {{"name", info.name}, {"dtype", dtype_info(info.dtype).name}, {"shape", info.shape}});
    const auto raw = source->raw(info.name);
    bytes.insert(bytes.end(), raw.begin(), raw.end());
  }
  io::write_file(out + ".json", dump_json(json));
  write_bytes(out + ".bin", bytes);
}

void rewrite(const std::string& in, const std::string& directory, uint64_t max_shard_bytes) {
  const std::unique_ptr<io::TensorSource> source = open_source(in);
  std::vector<io::TensorProducer> tensors;
  for (const TensorInfo& info : source->tensors()) {
    tensors.push_back({info, [&source, name = info.name] {
                         const auto raw = source->raw(name);
                         return std::vector<std::byte>(raw.begin(), raw.end());
                       }});
  }
  io::make_directories(directory);
  io::PendingFiles pending;
  io::write_safetensors(directory, "model", std::move(tensors), max_shard_bytes, pending);
  pending.commit();
}

void accept(const std::string& path) {
  try {
    (void)io::open_safetensors(path);
    std::cout << "ok\n";
  } catch (const Error& error) {
    std::cout << error.what() << "\n";
  }
}

int run(const std::vector<std::string>& args) {
  const std::string command = args.empty() ? "" : args[0];
  if (command == "decode" && args.size() == 4) {
    decode(args[1], args[2], args[3]);
  } else if (command == "dump" && args.size() == 3) {
    dump(args[1], args[2]);
  } else if (command == "rewrite" && args.size() == 4) {
    rewrite(args[1], args[2], std::stoull(args[3]));
  } else if (command == "accept") {
    for (size_t i = 1; i < args.size(); ++i) accept(args[i]);
  } else {
    std::cerr << "usage: see the head of golden_tool.cpp\n";
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace lpcd

int main(int argc, char** argv) {
  try {
    return lpcd::run({argv + 1, argv + argc});
  } catch (const std::exception& error) {
    std::cerr << error.what() << "\n";
    return 1;
  }
}
