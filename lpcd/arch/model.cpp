#include "lpcd/arch/model.h"

#include <fmt/ranges.h>
#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <set>
#include <vector>

#include "lpcd/base/checked.h"
#include "lpcd/base/raise.h"
#include "lpcd/io/gguf.h"
#include "lpcd/io/names.h"
#include "lpcd/linalg/parallel.h"

namespace lpcd::arch {
namespace {

// Rows 2i and 2i+1 of each head in GGUF are rows i and i + d/2 in Hugging Face order.
Mat undo_row_permutation(const Mat& stored, int64_t head_dim) {
  Mat out = Mat::uninitialized(stored.rows(), stored.cols());
  const auto row_bytes = static_cast<size_t>(stored.cols()) * sizeof(float);
  for (int64_t head = 0; head < stored.rows(); head += head_dim) {
    for (int64_t i = 0; i < head_dim / 2; ++i) {
      std::memcpy(out.row(head + i), stored.row(head + 2 * i), row_bytes);
      std::memcpy(out.row(head + i + head_dim / 2), stored.row(head + 2 * i + 1), row_bytes);
    }
  }
  return out;
}

// GGUF keeps llama3 scaling as a table of divisors. The published models use one of few settings;
// find the one that gives this table.
nn::RopeScaling scaling_of_divisors(const ModelConfig& config) {
  const auto plain = nn::rope_frequencies(config.head_dim, config.rope_theta, {}, {});
  for (const double factor : {8.0, 32.0, 4.0, 16.0, 64.0}) {
    const nn::RopeScaling scaling{.kind = nn::RopeScaling::Kind::kLlama3,
                                  .factor = factor,
                                  .low_freq_factor = 1.0,
                                  .high_freq_factor = 4.0,
                                  .original_context = 8192};
    const auto scaled = nn::rope_frequencies(config.head_dim, config.rope_theta, scaling, {});
    bool same = true;
    for (size_t i = 0; i < plain.size() && same; ++i) {
      same = std::abs(plain[i] / scaled[i] / config.rope_divisors[i] - 1.0F) < 1e-4F;
    }
    if (same) return scaling;
  }
  return {};
}

Json make_hf_config(const Architecture& architecture, const ModelConfig& config,
                    const io::GgufFile& file) {
  Json json;
  json["architectures"] = {architecture.hf_class()};
  json["model_type"] = architecture.name();
  json["vocab_size"] = config.vocab_size;
  json["hidden_size"] = config.hidden;
  json["intermediate_size"] = config.ffn;
  json["num_hidden_layers"] = config.blocks;
  json["num_attention_heads"] = config.heads;
  json["num_key_value_heads"] = config.kv_heads;
  json["head_dim"] = config.head_dim;
  json["max_position_embeddings"] = config.max_positions;
  // Metadata are f32: 9.999999747378752e-06 was 1e-05 before. The shortest text is meant.
  json["rms_norm_eps"] = std::stod(fmt::format("{}", config.rms_eps));
  json["rope_theta"] = config.rope_theta;
  json["hidden_act"] = "silu";
  if (config.qkv_bias) {
    json["use_sliding_window"] = false;  // the biases are a matter of course in such a family
  } else {
    json["attention_bias"] = false;
  }
  json["tie_word_embeddings"] = config.tied_head;
  json["torch_dtype"] = "float32";
  nn::RopeScaling scaling = config.rope_scaling;
  if (!config.rope_divisors.empty()) {
    if (scaling.kind != nn::RopeScaling::Kind::kDefault) {
      raise(
          ErrorCode::kUnsupportedModel,
          "{}: has rope scaling and a rope_freqs table, which no config.json can say; convert the "
          "original Hugging Face checkpoint instead",
          file.path());
    }
    scaling = scaling_of_divisors(config);
  }
  if (scaling.kind == nn::RopeScaling::Kind::kLinear) {
    json["rope_scaling"] = {{"rope_type", "linear"}, {"factor", scaling.factor}};
  } else if (scaling.kind == nn::RopeScaling::Kind::kLlama3) {
    json["rope_scaling"] = {
        {"rope_type", "llama3"},
        {"factor", scaling.factor},
        {"low_freq_factor", scaling.low_freq_factor},
        {"high_freq_factor", scaling.high_freq_factor},
        {"original_max_position_embeddings", std::llround(scaling.original_context)}};
  } else if (!config.rope_divisors.empty()) {
    raise(ErrorCode::kUnsupportedModel,
          "{}: the rope_freqs table matches no known llama3 scaling; convert the original Hugging "
          "Face checkpoint instead",
          file.path());
  }
  for (const auto& [key, name] : {std::pair{"tokenizer.ggml.bos_token_id", "bos_token_id"},
                                  {"tokenizer.ggml.eos_token_id", "eos_token_id"},
                                  {"tokenizer.ggml.padding_token_id", "pad_token_id"}}) {
    if (file.find_key(key) == nullptr) continue;
    const int64_t id = file.int_at(key);  // -1 or 2^32 - 1: none
    if (id >= 0 && id < config.vocab_size) json[name] = id;
  }
  return json;
}

bool is_float_type(DType type) {
  return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16 ||
         type == DType::kF64 || is_block_quantized(type);
}

// A class of another name makes something else of the same blocks: scores, embeddings.
void check_class(const Architecture& architecture, const JsonFields& config) {
  if (!config.has("architectures")) return;
  const Json& classes = config.array_at("architectures");
  if (classes.empty() || classes[0] == Json(architecture.hf_class())) return;
  const std::string found =
      classes[0].is_string() ? classes[0].get<std::string>() : dump_json(classes[0]);
  raise(ErrorCode::kUnsupportedModel,
        "{}: architectures: {} is not supported; of {} models {} is: give such a checkpoint",
        config.where(), io::in_quotes(found), architecture.name(), architecture.hf_class());
}

// True if one tensor is a copy of the other, to the byte. Codes are no copy of anything.
bool same_bytes(const io::TensorSource& source, const TensorInfo& a, const TensorInfo& b) {
  constexpr size_t kBytesAtATime = 16 << 20;  // what stays resident of two mapped matrices
  if (a.dtype != b.dtype || a.shape != b.shape) return false;
  for (const TensorInfo* info : {&a, &b}) {
    if (source.stored_form(info->name).type != dtype_info(info->dtype).name) return false;
  }
  const std::span<const std::byte> x = source.raw(a.name);
  const std::span<const std::byte> y = source.raw(b.name);
  bool same = true;
  for (size_t at = 0; at < x.size() && same; at += kBytesAtATime) {
    same = std::memcmp(x.data() + at, y.data() + at, std::min(kBytesAtATime, x.size() - at)) == 0;
    source.release(a.name);
    source.release(b.name);
  }
  return same;
}

constexpr int64_t kElementsPerTask = 1 << 18;

void read_all(const io::TensorSource& source, const std::string& name, std::span<float> values) {
  source.read_f32(name, values);
  io::check_finite(values, name, source.location(name));
}

// `values` being whole rows from `first` on.
void read_rows(const io::TensorSource& source, const std::string& name, int64_t first,
               std::span<float> values) {
  source.read_f32_rows(name, first, values);
  io::check_finite(values, name, source.location(name),
                   static_cast<size_t>(first * source.at(name).shape[1]));
}

// Calls fn(first, rows) for as many rows of a matrix at a time as make a task of a thread.
template <typename Fn>
void for_row_tasks(const RunContext& ctx, const TensorInfo& info, const Fn& fn) {
  const int64_t rows = std::max<int64_t>(1, kElementsPerTask / info.shape[1]);
  linalg::parallel_for(ctx, ceil_div(info.shape[0], rows), [&](int64_t task) {
    fn(task * rows, std::min(rows, info.shape[0] - task * rows));
  });
}

// "a, b, c and 7 more": all of them matter, but a line must stay readable.
std::string join_names(const std::vector<std::string>& names) {
  constexpr size_t kShown = 12;
  if (names.size() <= kShown) return fmt::format("{}", fmt::join(names, ", "));
  return fmt::format("{} and {} more", fmt::join(names.begin(), names.begin() + kShown, ", "),
                     names.size() - kShown);
}

}  // namespace

Model Model::from_hf(std::shared_ptr<const io::TensorSource> source, Json config,
                     const std::string& path) {
  Model model;
  model.path_ = path;
  model.source_ = std::move(source);
  const JsonFields fields(config, path + "/config.json");
  model.architecture_ = &find_architecture(fields.string_at("model_type"));
  check_class(*model.architecture_, fields);
  model.config_ = model.architecture_->from_hf(fields);
  const TensorInfo* embedding = model.source_->find(model.name(Role::kEmbedding));
  const TensorInfo* head = model.source_->find(model.name(Role::kHead));
  if (!fields.has("tie_word_embeddings")) {
    // Older files leave the key out; the tensors then tell.
    model.config_.tied_head = head == nullptr;
  } else if (model.config_.tied_head && embedding != nullptr && head != nullptr) {
    // A head of its own is one, whatever the key says; so it is for transformers 5.
    model.config_.tied_head = same_bytes(*model.source_, *embedding, *head);
  }
  model.config_.validate(fields.where());
  // Readers take the key's absence for "not tied".
  if (fields.has("tie_word_embeddings") || model.config_.tied_head) {
    config["tie_word_embeddings"] = model.config_.tied_head;
  }
  model.hf_config_ = std::move(config);
  model.check_tensors();
  model.refuse_other_tensors();
  return model;
}

Model Model::from_gguf(const std::string& path) {
  Model model;
  auto file = std::make_shared<const io::GgufFile>(path);
  model.path_ = path;
  model.gguf_ = file.get();
  model.architecture_ = &find_architecture(file->string_at("general.architecture"));
  model.config_ = model.architecture_->from_gguf(*file);
  model.config_.validate(path);
  model.source_ = file;
  model.check_tensors();
  model.refuse_other_tensors();
  model.hf_config_ = make_hf_config(*model.architecture_, model.config_, *file);
  return model;
}

std::string Model::name(Role role, int64_t block) const {
  return hf_name(*architecture_, role, block);
}

std::string Model::source_name(Role role, int64_t block) const {
  if (role == Role::kHead && config_.tied_head) role = Role::kEmbedding;
  // Some exporters keep a tied matrix under the name of the head.
  if (role == Role::kEmbedding && config_.tied_head && gguf_ == nullptr &&
      source_->find(hf_name(*architecture_, role, block)) == nullptr &&
      source_->find(hf_name(*architecture_, Role::kHead, block)) != nullptr) {
    role = Role::kHead;
  }
  return gguf_ != nullptr ? gguf_name(*architecture_, role, block)
                          : hf_name(*architecture_, role, block);
}

const TensorInfo& Model::stored(Role role, int64_t block) const {
  return source_->at(source_name(role, block));
}

void Model::for_each_tensor(const std::function<void(Role, int64_t)>& fn) const {
  for (const RoleNames& names : architecture_->names()) {
    if (!config_.has(names.role)) continue;
    const int64_t count = is_block_role(names.role) ? config_.blocks : 1;
    for (int64_t block = 0; block < count; ++block) fn(names.role, block);
  }
}

void Model::check_tensors() const {
  std::vector<std::string> missing;
  std::vector<std::string> misshapen;
  for_each_tensor([&](Role role, int64_t block) {
    const std::string name = source_name(role, block);
    const TensorInfo* info = source_->find(name);
    if (info == nullptr) {
      missing.push_back(name);
    } else if (info->shape != config_.shape(role)) {
      misshapen.push_back(fmt::format("{} is {}, expected [{}]", name, info->shape_text(),
                                      fmt::join(config_.shape(role), ", ")));
    } else if (!is_float_type(info->dtype)) {
      raise(ErrorCode::kUnsupportedModel, "{}: {} has type {}; weights must be floating point",
            path_, name, dtype_info(info->dtype).name);
    }
  });
  if (!missing.empty()) {
    raise(ErrorCode::kMissingTensor,
          "{}: {} missing: {}; the checkpoint is incomplete or not a {} model", path_,
          missing.size() == 1 ? "1 tensor is" : fmt::format("{} tensors are", missing.size()),
          join_names(missing), architecture_->name());
  }
  if (!misshapen.empty()) {
    raise(ErrorCode::kShapeMismatch,
          "{}: shapes do not agree with the configuration: {}; check that both belong together",
          path_, join_names(misshapen));
  }
}

bool Model::changes_nothing(const TensorInfo& info) const {
  if (gguf_ != nullptr) return info.name == "rope_freqs.weight";  // is part of the configuration
  // Frequencies, which older releases of transformers saved with each block.
  if (info.elements() == 0 || info.name.ends_with("rotary_emb.inv_freq")) return true;
  // from_hf has compared it with the embedding.
  if (config_.tied_head && info.name == name(Role::kHead)) return true;
  // AutoGPTQ gave each quantized layer a bias, of zeros where the model has none.
  constexpr std::string_view kBias = ".bias";
  if (!info.name.ends_with(kBias) || !is_float_type(info.dtype)) return false;
  const TensorInfo* weight =
      source_->find(info.name.substr(0, info.name.size() - kBias.size()) + ".weight");
  if (weight == nullptr || weight->shape.empty() ||
      info.shape != std::vector<int64_t>{weight->shape[0]}) {
    return false;
  }
  std::vector<float> values(static_cast<size_t>(info.elements()));
  source_->read_f32(info.name, values);
  return std::ranges::all_of(values, [](float value) { return value == 0; });
}

void Model::refuse_other_tensors() const {
  std::set<std::string> known;
  for_each_tensor([&](Role role, int64_t block) { known.insert(source_name(role, block)); });
  std::vector<std::string> others;
  for (const TensorInfo& info : source_->tensors()) {
    if (!known.contains(info.name) && !changes_nothing(info)) others.push_back(info.name);
  }
  if (others.empty()) return;
  raise(ErrorCode::kUnsupportedModel,
        "{}: {} that {} models here do not have: {}; what they do to the model would be lost",
        path_,
        others.size() == 1 ? "holds a tensor" : fmt::format("holds {} tensors", others.size()),
        architecture_->name(), join_names(others));
}

void Model::check_values(const RunContext& ctx) const {
  const auto total = static_cast<double>(stored_bytes());
  double done = 0;
  for_each_tensor([&](Role role, int64_t block) {
    ctx.throw_if_cancelled();
    const TensorInfo& info = stored(role, block);
    ctx.report({.stage = "check", .item = info.name, .done = done, .total = total});
    if (info.shape.size() == 2 && source_->has_rows(info.name)) {
      for_row_tasks(ctx, info, [&](int64_t first, int64_t rows) {
        std::vector<float> values(static_cast<size_t>(rows * info.shape[1]));
        read_rows(*source_, info.name, first, values);
      });
    } else {
      std::vector<float> values(static_cast<size_t>(info.elements()));
      read_all(*source_, info.name, values);
    }
    source_->release(info.name);
    done += static_cast<double>(source_->stored_form(info.name).bytes);
  });
}

Mat Model::read(Role role, int64_t block, const RunContext* ctx) const {
  const std::string name = source_name(role, block);
  const std::vector<int64_t> shape = config_.shape(role);
  Mat m =
      shape.size() == 1 ? Mat::uninitialized(1, shape[0]) : Mat::uninitialized(shape[0], shape[1]);
  const std::span<float> values(m.data(), static_cast<size_t>(m.size()));
  if (ctx != nullptr && shape.size() == 2 && m.size() > kElementsPerTask &&
      source_->has_rows(name)) {
    for_row_tasks(*ctx, source_->at(name), [&](int64_t first, int64_t rows) {
      const auto offset = static_cast<size_t>(first * m.cols());
      read_rows(*source_, name, first,
                values.subspan(offset, static_cast<size_t>(rows * m.cols())));
    });
  } else {
    read_all(*source_, name, values);
  }
  source_->release(name);
  const bool permuted = gguf_ != nullptr && architecture_->gguf_permutes_qk() &&
                        (role == Role::kQ || role == Role::kK);
  return permuted ? undo_row_permutation(m, config_.head_dim) : std::move(m);
}

BlockWeights Model::read_block(int64_t block, const RunContext* ctx) const {
  BlockWeights weights;
  for (const RoleNames& names : architecture_->names()) {
    if (is_block_role(names.role) && config_.has(names.role)) {
      weights[names.role] = read(names.role, block, ctx);
    }
  }
  return weights;
}

int64_t Model::parameters() const {
  int64_t sum = 0;
  for_each_tensor([&](Role role, int64_t block) { sum += stored(role, block).elements(); });
  return sum;
}

uint64_t Model::stored_bytes() const {
  uint64_t sum = 0;
  for_each_tensor([&](Role role, int64_t block) {
    sum += source_->stored_form(stored(role, block).name).bytes;
  });
  return sum;
}

std::string Model::identity() const {
  constexpr size_t kSample = 4096;
  const std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> state(XXH3_createState(),
                                                                       &XXH3_freeState);
  XXH3_128bits_reset(state.get());
  const auto add = [&](const void* data, size_t size) {
    XXH3_128bits_update(state.get(), data, size);
  };
  const std::string config = dump_json(hf_config_);
  add(config.data(), config.size());
  for_each_tensor([&](Role role, int64_t block) {
    const std::string name = source_name(role, block);
    const TensorInfo& info = source_->at(name);
    const std::string head =
        fmt::format("{} {} {}\n", name, dtype_info(info.dtype).name, info.shape_text());
    add(head.data(), head.size());
    const std::span<const std::byte> bytes = source_->raw(name);
    const size_t count = std::min(kSample, bytes.size());
    add(bytes.data(), count);
    add(bytes.data() + bytes.size() - count, count);
  });
  const XXH128_hash_t hash = XXH3_128bits_digest(state.get());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

}  // namespace lpcd::arch
