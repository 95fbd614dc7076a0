#include "lpcd/api/consumers.h"

#include <fmt/ranges.h>

#include <algorithm>
#include <bit>
#include <set>

#include "lpcd/api/output.h"
#include "lpcd/base/options.h"
#include "lpcd/base/raise.h"
#include "lpcd/bundle/gguf_output.h"

namespace lpcd::api {
namespace {

using arch::Role;

std::string family_of(const format::OutputFormat& format) {
  const std::string text = format.text();
  return text.substr(0, text.find(':'));
}

// "3,g64" as compressed-tensors spells it.
std::string as_ct(const format::GridSpec& grid) {
  return fmt::format("ct:{},g{}{}", grid.bits, grid.group_size, grid.symmetric ? "" : ",asym");
}

// All layers of one format against one consumer.
class Check {
 public:
  Check(const arch::Model& model, const pipeline::Plan& plan, const format::OutputFormat& format)
      : model_(model), plan_(plan), format_(format), family_(family_of(format)) {}

  void vllm() const {
    allow({"gptq", "ct", "dense"}, "vLLM 0.33 reads no GGUF files", "ct:4,g128");
    if (family_ == "dense") return;
    for (const auto& block : plan_.layers) {
      for (const pipeline::LayerPlan& layer : block) vllm_layer(layer);
      same(block, {Role::kQ, Role::kK, Role::kV});
      same(block, {Role::kGate, Role::kUp});
    }
  }

  void transformers() const {
    const arch::ModelConfig& config = model_.config();
    if (family_ == "gguf" && (config.rope_scaling.kind != nn::RopeScaling::Kind::kDefault ||
                              !config.rope_divisors.empty())) {
      refuse(format_.text(),
             "transformers 5.23 leaves the model's rope scaling out when it reads a GGUF file",
             "--format ct:4,g128");
    }
    for (const auto& block : plan_.layers) {
      for (const pipeline::LayerPlan& layer : block) {
        const auto shape = model_.config().shape(layer.role);
        for (const TensorInfo& t : format_.describe(layer.name, shape[0], shape[1], layer.grid)) {
          no_q2_0(t.name, t.dtype);
        }
      }
    }
    if (family_ == "gguf") {
      const auto type_of = matrix_types(model_, format_, plan_.options.tensor_types);
      for (const Role role : {Role::kEmbedding, Role::kHead}) {
        if (const auto type = type_of(role)) no_q2_0(model_.name(role, 0), *type);
      }
    }
    const pipeline::LayerPlan& first = plan_.layers[0][0];
    for (const auto& block : plan_.layers) {
      for (const pipeline::LayerPlan& layer : block) {
        if (family_ == "ct" && !layer.grid.symmetric) {
          refuse(layer.name, "transformers 5.23 does not load asymmetric compressed-tensors models",
                 "a symmetric grid, or gptq");
        }
        if (family_ == "gptq" && !(layer.grid == first.grid)) {
          refuse(layer.name,
                 fmt::format("transformers 5.23 loads gptq with one grid only, and {} has another",
                             first.name),
                 "--format ct:BITS,gGROUP, or the same width for all");
        }
      }
    }
  }

  void gptqmodel() const {
    allow({"gptq"}, "GPTQModel loads the gptq layout only", "gptq:4,g128");
    for (const auto& block : plan_.layers) {
      for (const pipeline::LayerPlan& layer : block) {
        const int64_t g = layer.grid.group_size;
        const bool known = g == -1 || (g >= 16 && g <= 1024 && std::has_single_bit(uint64_t(g)));
        if (!known) {
          refuse(layer.name,
                 "GPTQModel takes groups of 16, 32, 64, 128, 256, 512 or 1024, or whole rows",
                 "g128");
        }
        if (!layer.grid.symmetric && !format_.text().ends_with(",v2")) {
          refuse(layer.name, "GPTQModel takes asymmetric grids only with v2 zero points",
                 format_.text() + ",v2");
        }
      }
    }
  }

  void llama_cpp() const {
    allow({"gguf"}, "llama.cpp loads GGUF files", "gguf:q4_k_m");
    if (!bundle::has_vocabulary(model_)) {
      refuse(model_.path(), "llama.cpp loads no model without a tokenizer",
             "a model with tokenizer.json");
    }
  }

 private:
  void no_q2_0(const std::string& name, DType type) const {
    if (type != DType::kQ2_0) return;
    refuse(name, "gguf 0.19, which transformers reads GGUF files with, knows no Q2_0",
           "--format gguf:q2_k, or another --tensor-type");
  }

  [[noreturn]] void refuse(const std::string& what, const std::string& why,
                           const std::string& remedy) const {
    raise(ErrorCode::kBadOption, "--for: {}: {}; use {}", what, why, remedy);
  }

  void allow(const std::set<std::string>& families, const std::string& why,
             const std::string& remedy) const {
    if (!families.contains(family_)) refuse(format_.text(), why, "--format " + remedy);
  }

  void vllm_layer(const pipeline::LayerPlan& layer) const {
    const format::GridSpec& grid = layer.grid;
    if (family_ == "gptq" && ((grid.bits != 4 && grid.bits != 8) || !grid.symmetric)) {
      refuse(layer.name, "vLLM loads GPTQ only at 4 and 8 bits symmetric", as_ct(grid));
    }
    const auto shape = model_.config().shape(layer.role);
    const int64_t g = grid.group_size;
    if (g > 0 && shape[1] % g != 0) {
      refuse(layer.name,
             fmt::format("vLLM reads whole groups only, and {} inputs leave a part of one of {}",
                         shape[1], g),
             "groups that divide the inputs");
    }
    const bool fused = layer.role != Role::kO && layer.role != Role::kDown;
    if (!grid.symmetric && fused && shape[0] * grid.bits % 32 != 0) {
      refuse(layer.name,
             fmt::format("vLLM joins it with others, and zero points of {} outputs at {} bits end "
                         "inside a word",
                         shape[0], grid.bits),
             "a symmetric grid");
    }
    const bool known = g == -1 || g == 32 || g == 64 || g == 128;
    if (!known) {
      refuse(
          layer.name,
          fmt::format("groups of 32, 64 or 128, or whole rows are what vLLM's fast kernels take, "
                      "not {}",
                      g),
          "g128");
    }
  }

  // vLLM fuses these layers into one.
  void same(const std::vector<pipeline::LayerPlan>& block, const std::vector<Role>& roles) const {
    const pipeline::LayerPlan* first = nullptr;
    for (const pipeline::LayerPlan& layer : block) {
      if (std::ranges::find(roles, layer.role) == roles.end()) continue;
      if (first != nullptr && !(first->grid == layer.grid)) {
        refuse(layer.name,
               fmt::format("vLLM fuses it with {}, so both need the same grid", first->name),
               "the same width for both");
      }
      first = &layer;
    }
  }

  const arch::Model& model_;
  const pipeline::Plan& plan_;
  const format::OutputFormat& format_;
  std::string family_;
};

}  // namespace

const std::vector<std::string_view>& consumers() {
  static const std::vector<std::string_view> kNames = {"vllm", "transformers", "llama.cpp",
                                                       "gptqmodel"};
  return kNames;
}

void check_consumer(const std::string& consumer, const arch::Model& model,
                    const pipeline::Plan& plan,
                    const std::vector<std::unique_ptr<format::OutputFormat>>& formats) {
  if (consumer.empty()) return;
  if (std::ranges::find(consumers(), consumer) == consumers().end()) {
    raise(ErrorCode::kBadOption,
          "--for: unknown program \"{}\", did you mean \"{}\"? Known are: {}", consumer,
          nearest(consumer, consumers()), fmt::join(consumers(), ", "));
  }
  for (const auto& format : formats) {
    const Check check(model, plan, *format);
    if (consumer == "vllm") check.vllm();
    if (consumer == "transformers") check.transformers();
    if (consumer == "gptqmodel") check.gptqmodel();
    if (consumer == "llama.cpp") check.llama_cpp();
  }
}

}  // namespace lpcd::api
