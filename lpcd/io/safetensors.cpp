#include "lpcd/io/safetensors.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <system_error>
#include <utility>

#include "lpcd/base/json.h"
#include "lpcd/base/raise.h"
#include "lpcd/io/model_file.h"
#include "lpcd/io/names.h"
#include "lpcd/io/safetensors_header.h"
#include "lpcd/io/system_error.h"

namespace lpcd::io {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kExtension = ".safetensors";
constexpr std::string_view kSingleName = "model.safetensors";
constexpr std::string_view kIndexName = "model.safetensors.index.json";
constexpr uint64_t kMaxIndexBytes = kMaxSafetensorsHeaderBytes;  // it lists the same tensors
constexpr size_t kMaxShards = 10'000;                            // one mapping each, of 65530

/// A validated file; `name` is what messages and location() call it.
struct Shard {
  std::string name;
  MappedFile file;
  std::vector<SafetensorsEntry> entries;
};

/// `path` is where to find the file, `label` what messages call it.
Shard load_shard(const std::string& path, std::string_view label) {
  Shard shard{fs::path(label).filename().string(), MappedFile(path), {}};
  shard.entries = parse_safetensors(shard.file.bytes(), label);
  return shard;
}

class SafetensorsSource : public TensorSource {
 public:
  SafetensorsSource(std::vector<Shard> shards, std::string_view where)
      : shards_(std::move(shards)) {
    std::vector<TensorInfo> infos;
    for (size_t i = 0; i < shards_.size(); ++i) {
      for (SafetensorsEntry& entry : shards_[i].entries) {
        places_.try_emplace(entry.info.name, Place{i, entry.begin});
        infos.push_back(std::move(entry.info));
      }
      shards_[i].entries = {};
    }
    set_tensors(std::move(infos), where);
  }

  [[nodiscard]] std::span<const std::byte> raw(std::string_view name) const override {
    const auto bytes = static_cast<size_t>(at(name).bytes());
    const Place& place = places_.find(name)->second;
    return shards_[place.shard].file.bytes().subspan(place.begin, bytes);
  }

  void release(std::string_view name) const override {
    const auto bytes = static_cast<uint64_t>(at(name).bytes());
    const Place& place = places_.find(name)->second;
    shards_[place.shard].file.drop(place.begin, bytes);
  }

  [[nodiscard]] std::string location(std::string_view name) const override {
    (void)at(name);
    return shards_[places_.find(name)->second.shard].name;
  }

 private:
  struct Place {
    size_t shard = 0;
    uint64_t begin = 0;
  };
  std::vector<Shard> shards_;
  std::map<std::string, Place, std::less<>> places_;
};

/// A checkpoint directory: opens plain names in it and nothing outside of it.
class CheckpointDirectory {
 public:
  explicit CheckpointDirectory(const std::string& directory) : directory_(directory) {
    std::error_code error;
    root_ = fs::canonical(directory, error);
    if (error) raise_read_error(directory, "open the directory", error.value());
    if (!fs::is_directory(root_, error)) {
      raise(ErrorCode::kReadFailed, "{}: is not a directory", directory);
    }
  }

  [[nodiscard]] std::string label(std::string_view name) const {
    return (fs::path(directory_) / name).string();
  }

  /// Anything of that name, a dangling link included: those are errors, not absent files.
  [[nodiscard]] bool has(std::string_view name) const {
    std::error_code error;
    const fs::file_status status = fs::symlink_status(root_ / name, error);
    return fs::exists(status) || (error && status.type() != fs::file_type::not_found);
  }

  [[nodiscard]] std::optional<std::string> resolve(std::string_view name) const {
    return resolve_model_file(directory_, name);
  }

  [[nodiscard]] Shard load(std::string_view name) const {
    const std::optional<std::string> path = resolve(name);
    if (!path) {
      raise(ErrorCode::kFileNotFound, "{}: no such file, or a link to nowhere", label(name));
    }
    return load_shard(*path, label(name));
  }

  /// Names of the *.safetensors files, sorted.
  [[nodiscard]] std::vector<std::string> safetensors_files() const {
    std::vector<std::string> names;
    std::error_code error;
    for (fs::directory_iterator it(root_, error), end; !error && it != end; it.increment(error)) {
      std::string name = it->path().filename().string();
      if (!name.starts_with('.') && name.ends_with(kExtension)) names.push_back(std::move(name));
    }
    if (error) raise_read_error(directory_, "list the directory", error.value());
    std::ranges::sort(names);
    return names;
  }

  [[nodiscard]] const std::string& path() const { return directory_; }

 private:
  std::string directory_;
  fs::path root_;
};

/// Tensor name to shard name.
using WeightMap = std::map<std::string, std::string, std::less<>>;

WeightMap parse_index(std::string_view text, const std::string& where) {
  const Json json = parse_json(text, where);
  const JsonFields fields(json, where);
  const Json& entries = fields.object_at("weight_map");
  if (entries.empty()) raise(ErrorCode::kBadFile, "{}: weight_map is empty", where);
  if (entries.size() > kMaxSafetensorsTensors) {
    raise(ErrorCode::kBadFile, "{}: weight_map has {} tensors, at most {} are allowed", where,
          entries.size(), kMaxSafetensorsTensors);
  }
  WeightMap map;
  for (const auto& [name, file] : entries.items()) {
    check_name(name, "weight_map: tensor name", kMaxSafetensorsName, where);
    if (!file.is_string()) {
      raise(ErrorCode::kBadFile, "{}: weight_map: \"{}\" must be a file name, found {}", where,
            name, in_quotes(dump_json(file)));
    }
    map.emplace(name, file.get<std::string>());
  }
  return map;
}

/// Shard names are names, not paths, on any system.
void check_shard_name(const std::string& name, const std::string& where) {
  constexpr size_t kMaxFileName = 255;  // of the file systems in use
  check_name(name, "weight_map: shard name", kMaxFileName, where);
  if (name.find_first_of("/\\:") != std::string::npos || name.starts_with('.') ||
      !name.ends_with(kExtension)) {
    raise(ErrorCode::kBadFile,
          "{}: weight_map: shard \"{}\" is not the plain name of a .safetensors file; refusing to "
          "open it",
          where, name);
  }
}

std::vector<Shard> load_shards(const CheckpointDirectory& directory, const WeightMap& map,
                               const std::string& where) {
  std::vector<std::string> names;
  for (const auto& [tensor, shard] : map) names.push_back(shard);
  std::ranges::sort(names);
  names.erase(std::unique(names.begin(), names.end()), names.end());
  if (names.size() > kMaxShards) {
    raise(ErrorCode::kBadFile, "{}: weight_map names {} shards, at most {} are allowed", where,
          names.size(), kMaxShards);
  }
  for (const std::string& name : names) check_shard_name(name, where);

  std::vector<std::string> missing;
  for (const std::string& name : names) {
    if (!directory.resolve(name)) missing.push_back(name);
  }
  if (!missing.empty()) {
    raise(ErrorCode::kFileNotFound,
          "{}: {} of {} shards are not there: {}; fetch them, or remove an index of an older model",
          where, missing.size(), names.size(), listed(missing));
  }
  std::vector<Shard> shards;
  shards.reserve(names.size());
  for (const std::string& name : names) shards.push_back(directory.load(name));
  return shards;
}

/// Every tensor exactly where the index says, and nowhere else. Reports all that is wrong at once.
void check_index(const std::vector<Shard>& shards, const WeightMap& map, const std::string& where) {
  std::map<std::string_view, std::vector<std::string>> holders;
  for (const Shard& shard : shards) {
    for (const SafetensorsEntry& entry : shard.entries) {
      holders[entry.info.name].push_back(shard.name);
    }
  }
  std::vector<std::string> missing;
  for (const auto& [name, shard] : map) {
    if (!holders.contains(name)) missing.push_back(fmt::format("\"{}\" ({})", name, shard));
  }
  std::vector<std::string> twice;
  std::vector<std::string> unlisted;
  std::vector<std::string> misplaced;
  for (const auto& [name, files] : holders) {
    const auto entry = map.find(name);
    if (files.size() > 1) {
      twice.push_back(fmt::format("\"{}\" ({})", name, listed(files)));
    } else if (entry == map.end()) {
      unlisted.push_back(fmt::format("\"{}\" ({})", name, files[0]));
    } else if (entry->second != files[0]) {
      misplaced.push_back(fmt::format("\"{}\" ({}, not {})", name, files[0], entry->second));
    }
  }
  std::string problems;
  const auto add = [&](std::string_view what, const std::vector<std::string>& items) {
    if (!items.empty()) problems += fmt::format("; {}: {}", what, listed(items));
  };
  add("in no shard", missing);
  add("in more than one shard", twice);
  add("in a shard but not in the index", unlisted);
  add("in another shard than the index says", misplaced);
  if (problems.empty()) return;
  raise(missing.empty() ? ErrorCode::kBadFile : ErrorCode::kMissingTensor,
        "{}: index and shards do not belong together{}; fetch the checkpoint again", where,
        problems);
}

std::unique_ptr<TensorSource> open_sharded(const CheckpointDirectory& directory) {
  const std::string where = directory.label(kIndexName);
  const std::optional<std::string> path = directory.resolve(kIndexName);
  if (!path) raise(ErrorCode::kFileNotFound, "{}: is a link to nowhere", where);
  const WeightMap map = parse_index(read_text_file(*path, kMaxIndexBytes), where);
  std::vector<Shard> shards = load_shards(directory, map, where);
  check_index(shards, map, where);
  const bool names_single =
      std::ranges::any_of(shards, [](const Shard& shard) { return shard.name == kSingleName; });
  if (!names_single && directory.has(kSingleName)) {
    raise(ErrorCode::kBadModel,
          "{}: holds {} and an index of other files, which readers prefer differently; remove the "
          "one that is out of date",
          directory.path(), kSingleName);
  }
  return std::make_unique<SafetensorsSource>(std::move(shards), directory.path());
}

std::unique_ptr<TensorSource> open_one(Shard shard, std::string_view where) {
  std::vector<Shard> shards;
  shards.push_back(std::move(shard));
  return std::make_unique<SafetensorsSource>(std::move(shards), where);
}

}  // namespace

std::unique_ptr<TensorSource> open_safetensors(const std::string& path) {
  return open_one(load_shard(path, path), path);
}

std::unique_ptr<TensorSource> open_safetensors_directory(const std::string& path) {
  const CheckpointDirectory directory(path);
  if (directory.has(kIndexName)) return open_sharded(directory);
  if (directory.has(kSingleName)) return open_one(directory.load(kSingleName), path);
  const std::vector<std::string> names = directory.safetensors_files();
  if (names.empty()) {
    raise(ErrorCode::kFileNotFound,
          "{}: no {} and no other .safetensors file; give the directory of a Hugging Face "
          "checkpoint (weights in *.bin have to be converted to safetensors first)",
          path, kSingleName);
  }
  if (names.size() > 1) {
    raise(ErrorCode::kBadModel,
          "{}: {} .safetensors files ({}) without {}; fetch the index, or leave only the file that "
          "is meant",
          path, names.size(), listed(names), kIndexName);
  }
  return open_one(directory.load(names[0]), path);
}

}  // namespace lpcd::io
