#include "lpcd/pipeline/journal.h"

#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "lpcd/base/raise.h"
#include "lpcd/format/bit_stream.h"
#include "lpcd/io/file.h"
#include "lpcd/io/safetensors.h"
#include "lpcd/tensor/half.h"

namespace lpcd::pipeline {
namespace {

using arch::Role;

constexpr uint64_t kMaxJsonBytes = 256ULL << 20;
constexpr int64_t kStateRows = 4096;  // rows of a stream that are copied at a time

struct StateHeader {
  char magic[8] = {'L', 'P', 'C', 'D', 'S', 'T', '0', '1'};
  int64_t blocks = 0;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t original = 0;   // 1: X_f follows
  int64_t quantized = 0;  // 1: X_q follows
};

std::string file_hash(const std::string& path) {
  const io::MappedFile file(path);
  const XXH128_hash_t h = XXH3_128bits(file.bytes().data(), file.bytes().size());
  return fmt::format("{:016x}{:016x}", h.high64, h.low64);
}

void add_producers(const std::string& name, const format::QuantizedMatrix& q,
                   std::vector<io::TensorProducer>& tensors) {
  if (q.spec.block) {
    tensors.push_back(
        {{name + ".blocks", DType::kU8, {q.rows, static_cast<int64_t>(q.block_row_bytes())}},
         [&q] { return q.blocks; }});
    return;
  }
  const auto packed =
      static_cast<int64_t>((q.codes.size() * static_cast<size_t>(q.spec.bits) + 7) / 8);
  tensors.push_back({{name + ".codes", DType::kU8, {packed}},
                     [&q] { return format::pack_bytes(q.codes, q.spec.bits); }});
  tensors.push_back({{name + ".scales", DType::kF16, {q.groups(), q.rows}}, [&q] {
                       std::vector<uint16_t> half(static_cast<size_t>(q.scales.size()));
                       std::transform(q.scales.data(), q.scales.data() + q.scales.size(),
                                      half.begin(), f32_to_f16);
                       return format::bytes_of(half);
                     }});
  tensors.push_back({{name + ".zeros", DType::kU8, {q.groups(), q.rows}},
                     [&q] { return format::bytes_of(q.zeros); }});
}

Json describe_layer(const LayerPlan& layer, const format::QuantizedMatrix& q) {
  Json json = {{"name", layer.name},
               {"role", arch::role_name(layer.role)},
               {"bits", q.spec.bits},
               {"group_size", q.spec.group_size},
               {"symmetric", q.spec.symmetric},
               {"rows", q.rows},
               {"cols", q.cols},
               {"f16_decode", q.f16_decode}};
  if (q.spec.block) json["block"] = dtype_info(*q.spec.block).name;
  return json;
}

std::span<const std::byte> raw_exact(const io::TensorSource& source, const std::string& name,
                                     size_t bytes) {
  const auto raw = source.raw(name);
  if (raw.size() != bytes) {
    raise(ErrorCode::kBadFile, "{}: {} has {} bytes, expected {}", source.location(name), name,
          raw.size(), bytes);
  }
  return raw;
}

format::QuantizedMatrix read_layer(const io::TensorSource& source, const JsonFields& layer) {
  const format::GridSpec spec = stored_grid(layer);
  const int64_t rows = layer.int_at("rows", 1, 1 << 24);
  const int64_t cols = layer.int_at("cols", 1, 1 << 24);
  format::QuantizedMatrix q(spec, rows, cols);
  q.f16_decode = layer.bool_or("f16_decode", false);
  const std::string name = layer.string_at("name");
  if (spec.block) {
    const auto raw = raw_exact(source, name + ".blocks", q.blocks.size());
    q.blocks.assign(raw.begin(), raw.end());
    return q;
  }
  const size_t packed = (q.codes.size() * static_cast<size_t>(spec.bits) + 7) / 8;
  format::unpack_bytes(raw_exact(source, name + ".codes", packed), spec.bits, q.codes);
  const auto count = static_cast<size_t>(q.scales.size());
  const std::byte* scales = raw_exact(source, name + ".scales", 2 * count).data();
  for (size_t i = 0; i < count; ++i) {
    uint16_t half = 0;
    std::memcpy(&half, scales + 2 * i, 2);
    q.scales.data()[i] = f16_to_f32(half);
  }
  std::memcpy(q.zeros.data(), raw_exact(source, name + ".zeros", count).data(), count);
  return q;
}

void write_stream(const calib::ActivationStore& store, io::AtomicFile& file) {
  Mat buffer;
  for (int64_t r0 = 0; r0 < store.rows(); r0 += kStateRows) {
    const FloatView rows = store.read(r0, std::min(kStateRows, store.rows() - r0), buffer);
    file.write(
        std::as_bytes(std::span(rows.data(), static_cast<size_t>(rows.rows() * rows.cols()))));
  }
}

// From `offset` on, which moves. What is read is not kept in memory twice.
void read_stream(const io::MappedFile& file, uint64_t& offset, calib::ActivationStore& store) {
  Mat buffer;
  for (int64_t r0 = 0; r0 < store.rows(); r0 += kStateRows) {
    const FloatView rows = store.target(r0, std::min(kStateRows, store.rows() - r0), buffer);
    const auto size = static_cast<size_t>(rows.rows() * rows.cols()) * sizeof(float);
    std::memcpy(rows.data(), file.bytes().data() + offset, size);
    file.drop(offset, size);
    offset += size;
    store.write(r0, rows);
  }
}

}  // namespace

format::GridSpec stored_grid(const JsonFields& layer) {
  const std::string block = layer.string_or("block", "");
  if (block.empty()) {
    return {.bits = static_cast<int>(layer.int_at("bits", 2, 8)),
            .group_size = layer.int_at("group_size", -1, 1 << 24),
            .symmetric = layer.bool_or("symmetric", true)};
  }
  const auto type = ggml_type_from_name(block);
  if (!type) raise(ErrorCode::kBadFile, "{}: unknown block type {}", layer.where(), block);
  return format::GridSpec::of_block(*type);
}

Journal::Journal(std::string directory) : directory_(std::move(directory) + "/.lpcd") {}

bool Journal::exists() const { return io::exists(directory_ + "/run.json"); }

void Journal::create(const Json& run) {
  io::make_directories(directory_ + "/blocks");
  update_run(run);
}

Json Journal::read_run() const {
  const std::string path = directory_ + "/run.json";
  return parse_json(io::read_text_file(path, kMaxJsonBytes), path);
}

void Journal::update_run(const Json& run) {
  io::write_file(directory_ + "/run.json", dump_json(run, 1));
}

void Journal::save_calibration(const calib::Dataset& data) {
  Json sources = Json::array();
  for (const auto& s : data.sources) {
    sources.push_back({{"name", s.name}, {"tokens", s.tokens}, {"available", s.available}});
  }
  io::PendingFiles pending;
  std::vector<io::TensorProducer> tensors;
  tensors.push_back({{"input_ids", DType::kI32, {data.sequences(), data.seq_len}},
                     [&] { return format::bytes_of(data.ids); }});
  io::write_safetensors(directory_, "calibration", std::move(tensors), ~uint64_t{0}, pending);
  io::AtomicFile json(directory_ + "/calibration.json");
  json.write(dump_json({{"sources", sources}, {"hash", data.hash()}}, 1));
  pending.add(std::move(json));
  pending.commit();
}

void Journal::save_sample(const std::string& key, std::span<const int32_t> ids) {
  io::make_directories(directory_);
  io::write_file(directory_ + "/sample.json", dump_json({{"key", key}, {"ids", ids}}));
}

std::vector<int32_t> Journal::load_sample(const std::string& key) const {
  const std::string path = directory_ + "/sample.json";
  if (!io::exists(path)) return {};
  try {
    const Json json = parse_json(io::read_text_file(path, kMaxJsonBytes), path);
    if (json.at("key") == Json(key)) return json.at("ids").get<std::vector<int32_t>>();
  } catch (const Error&) {  // damaged: the text is written anew
  } catch (const Json::exception&) {
  }
  return {};
}

void Journal::clear() {
  std::vector<std::filesystem::path> stale;
  std::error_code error;  // there may be no directory
  for (const auto& entry : std::filesystem::directory_iterator(directory_, error)) {
    if (entry.path().filename() != "sample.json") stale.push_back(entry.path());
  }
  for (const auto& path : stale) std::filesystem::remove_all(path);
}

bool Journal::has_calibration() const { return io::exists(directory_ + "/calibration.json"); }

calib::Dataset Journal::load_calibration() const {
  calib::DatasetOptions all;
  all.samples = int64_t{1} << 40;
  calib::Dataset data = calib::load_dataset(directory_ + "/calibration.safetensors", nullptr, all);
  const std::string path = directory_ + "/calibration.json";
  const Json json = parse_json(io::read_text_file(path, kMaxJsonBytes), path);
  const JsonFields fields(json, path);
  data.sources.clear();
  for (const Json& s : fields.array_at("sources")) {
    const JsonFields source(s, path);
    data.sources.push_back(
        {source.string_at("name"), source.int_at("tokens", 0), source.int_at("available", 0)});
  }
  if (fields.string_at("hash") != data.hash()) {
    raise(ErrorCode::kBadFile,
          "{}/calibration.safetensors: not the token ids that the run started with", directory_);
  }
  return data;
}

std::string Journal::block_directory(int64_t block) const {
  return fmt::format("{}/blocks/{:05}", directory_, block);
}

bool Journal::has_block(int64_t block) const {
  return io::exists(block_directory(block) + "/record.json");
}

int64_t Journal::committed_blocks() const {
  int64_t count = 0;
  while (has_block(count)) ++count;
  return count;
}

void Journal::commit_block(int64_t block, const QuantizedLayers& layers,
                           const std::vector<LayerPlan>& plan, const Json& record) {
  const std::string directory = block_directory(block);
  io::make_directories(directory);
  std::vector<io::TensorProducer> tensors;
  Json stored = Json::array();
  for (const LayerPlan& layer : plan) {
    const format::QuantizedMatrix& q = layers.at(layer.role);
    add_producers(layer.name, q, tensors);
    stored.push_back(describe_layer(layer, q));
  }
  io::PendingFiles pending;
  io::write_safetensors(directory, "layers", std::move(tensors), ~uint64_t{0}, pending);
  pending.commit();
  Json json = record;
  json["stored"] = stored;
  json["hash"] = file_hash(directory + "/layers.safetensors");
  io::write_file(directory + "/record.json", dump_json(json, 1));
}

Json Journal::read_record(int64_t block) const {
  const std::string path = block_directory(block) + "/record.json";
  return parse_json(io::read_text_file(path, kMaxJsonBytes), path);
}

QuantizedLayers Journal::read_block(int64_t block) const {
  const Json json = read_record(block);
  const JsonFields record(json, block_directory(block) + "/record.json");
  const std::string path = block_directory(block) + "/layers.safetensors";
  if (file_hash(path) != record.string_at("hash")) {
    raise(ErrorCode::kBadFile,
          "{}: not what the run committed; delete {} and resume to make it again", path,
          block_directory(block));
  }
  const auto source = io::open_safetensors(path);
  QuantizedLayers layers;
  for (const Json& entry : record.array_at("stored")) {
    const JsonFields layer(entry, record.where());
    const std::string role_text = layer.string_at("role");
    const auto* role = std::ranges::find_if(
        arch::kLinearRoles, [&](Role r) { return arch::role_name(r) == role_text; });
    if (role == arch::kLinearRoles.end()) {
      raise(ErrorCode::kBadFile, "{}: unknown role {}", record.where(), role_text);
    }
    layers.emplace(*role, read_layer(*source, layer));
  }
  return layers;
}

void Journal::save_state(int64_t blocks, const Streams& streams) {
  const auto& shape = streams.original.empty() ? streams.quantized : streams.original;
  StateHeader header;
  header.blocks = blocks;
  header.rows = shape.rows();
  header.cols = shape.cols();
  header.original = streams.original.empty() ? 0 : 1;
  header.quantized = streams.quantized.empty() ? 0 : 1;
  io::AtomicFile file(directory_ + "/state.bin");
  file.write(std::as_bytes(std::span(&header, 1)));
  if (header.original != 0) write_stream(streams.original, file);
  if (header.quantized != 0) write_stream(streams.quantized, file);
  file.commit();
}

std::optional<int64_t> Journal::load_state(Streams& streams) const {
  const std::string path = directory_ + "/state.bin";
  if (!io::exists(path)) return std::nullopt;
  const io::MappedFile file(path);
  StateHeader header;
  const StateHeader expected;
  if (file.bytes().size() < sizeof(header)) raise(ErrorCode::kBadFile, "{}: truncated", path);
  std::memcpy(&header, file.bytes().data(), sizeof(header));
  const auto& shape = streams.original.empty() ? streams.quantized : streams.original;
  const auto stream_bytes = static_cast<uint64_t>(shape.rows() * shape.cols()) * sizeof(float);
  const uint64_t count =
      (streams.original.empty() ? 0U : 1U) + (streams.quantized.empty() ? 0U : 1U);
  if (std::memcmp(header.magic, expected.magic, sizeof(header.magic)) != 0 ||
      header.rows != shape.rows() || header.cols != shape.cols() ||
      header.original != (streams.original.empty() ? 0 : 1) ||
      header.quantized != (streams.quantized.empty() ? 0 : 1) ||
      file.bytes().size() != sizeof(header) + count * stream_bytes) {
    raise(ErrorCode::kBadFile, "{}: not a state of this run; delete it and resume", path);
  }
  uint64_t offset = sizeof(header);
  if (header.original != 0) read_stream(file, offset, streams.original);
  if (header.quantized != 0) read_stream(file, offset, streams.quantized);
  streams.equal = header.blocks == 0;
  return header.blocks;
}

void Journal::remove_temporaries() const {
  if (!io::exists(directory_)) return;
  io::remove_temporaries(directory_);
  std::error_code error;  // a run that died early has no blocks
  for (const auto& entry : std::filesystem::directory_iterator(directory_ + "/blocks", error)) {
    if (entry.is_directory()) io::remove_temporaries(entry.path().string());
  }
}

void Journal::remove_state() {
  std::error_code ignored;  // a leftover is harmless
  std::filesystem::remove(directory_ + "/sample.json", ignored);
  std::filesystem::remove(directory_ + "/state.bin", ignored);
}

namespace {

// "options/bits" -> value, for all that is not an object; a list counts as one value.
void flatten(const Json& json, const std::string& path, Json& flat) {
  for (const auto& [key, value] : json.items()) {
    const std::string name = path.empty() ? key : fmt::format("{}/{}", path, key);
    if (value.is_object()) {
      flatten(value, name, flat);
    } else {
      flat[name] = value;
    }
  }
}

}  // namespace

void check_same_fingerprint(const Json& stored, const Json& current) {
  std::vector<std::string> differences;
  Json flat_stored = Json::object();
  Json flat_current = Json::object();
  flatten(stored, "", flat_stored);
  flatten(current, "", flat_current);
  const auto value = [](const Json& json, const std::string& key) {
    return json.contains(key) ? dump_json(json[key]) : std::string("nothing");
  };
  std::vector<std::string> keys;
  for (const auto& [key, ignored] : flat_stored.items()) keys.push_back(key);
  for (const auto& [key, ignored] : flat_current.items()) {
    if (!flat_stored.contains(key)) keys.push_back(key);
  }
  for (const std::string& key : keys) {
    const std::string before = value(flat_stored, key);
    const std::string now = value(flat_current, key);
    if (before != now) differences.push_back(fmt::format("{} was {}, is {}", key, before, now));
  }
  constexpr size_t kShown = 3;
  if (differences.size() > kShown) {
    const size_t more = differences.size() - kShown;
    differences.resize(kShown);
    differences.push_back(fmt::format("and {} more", more));
  }
  if (!differences.empty()) {
    raise(ErrorCode::kResumeMismatch, "cannot resume: {}; {}", fmt::join(differences, "; "),
          flat_stored.value("numerics_version", Json()) ==
                  flat_current.value("numerics_version", Json())
              ? "use the options of the first run, or another --out"
              : "finish it with the version of lpcd that began it, or give another --out");
  }
}

}  // namespace lpcd::pipeline
