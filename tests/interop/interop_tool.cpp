// What the scripts of the interop and e2e tests need besides the command itself:
//
//   interop_tool tiny DIR ARCHITECTURE [KEY=VALUE...]   a random model (see
//   tests/support/tiny_model.h) interop_tool logits MODEL IDS L OUT                 f32 logits of
//   i32 token ids, sequences of L interop_tool weights MODEL DIR                      every tensor
//   as f32, as eval reads it

#include <cstring>
#include <exception>
#include <iostream>
#include <string>
#include <vector>

#include "lpcd/base/raise.h"
#include "lpcd/bundle/open_model.h"
#include "lpcd/eval/hidden_states.h"
#include "lpcd/io/safetensors.h"
#include "tests/support/tiny_model.h"

namespace lpcd {
namespace {

RunContext two_threads() {
  RunContext ctx;
  ctx.threads = 2;
  return ctx;
}

void make_tiny(const std::vector<std::string>& args) {
  testing::TinyModel tiny{.architecture = args[2]};
  for (size_t i = 3; i < args.size(); ++i) {
    const size_t equals = args[i].find('=');
    const std::string key = args[i].substr(0, equals);
    const int64_t value = std::stoll(args[i].substr(equals + 1));
    if (key == "vocab")
      tiny.vocab = value;
    else if (key == "hidden")
      tiny.hidden = value;
    else if (key == "ffn")
      tiny.ffn = value;
    else if (key == "blocks")
      tiny.blocks = value;
    else if (key == "heads")
      tiny.heads = value;
    else if (key == "kv_heads")
      tiny.kv_heads = value;
    else if (key == "head_dim")
      tiny.head_dim = value;
    else if (key == "tied")
      tiny.tied = value != 0;
    else if (key == "bf16")
      tiny.dtype = value != 0 ? DType::kBF16 : DType::kF32;
    else if (key == "seed")
      tiny.seed = static_cast<uint64_t>(value);
    else
      raise(ErrorCode::kBadOption, "unknown key {}", key);
  }
  tiny.write(args[1]);
}

void write_logits(const std::string& path, const std::string& ids_path, int64_t length,
                  const std::string& out) {
  const RunContext ctx = two_threads();
  const arch::Model model = bundle::open_model(path);
  const io::MappedFile file(ids_path);
  std::vector<int32_t> ids(file.bytes().size() / sizeof(int32_t));
  std::memcpy(ids.data(), file.bytes().data(), file.bytes().size());
  const auto hidden = eval::ForwardPass(model, ids, length).finish(ctx);
  Mat buffer;
  Mat logits(hidden.rows(), model.config().vocab_size);
  eval::project_logits(ctx, hidden.read(0, hidden.rows(), buffer), eval::read_head(model), logits);
  io::AtomicFile result(out);
  result.write(std::as_bytes(std::span(logits.data(), static_cast<size_t>(logits.size()))));
  result.commit();
}

void write_weights(const std::string& path, const std::string& directory) {
  const arch::Model model = bundle::open_model(path);
  std::vector<io::TensorProducer> tensors;
  for (const arch::RoleNames& names : model.architecture().names()) {
    if (!model.config().has(names.role)) continue;
    const int64_t count = arch::is_block_role(names.role) ? model.config().blocks : 1;
    for (int64_t block = 0; block < count; ++block) {
      const arch::Role role = names.role;
      io::TensorProducer producer;
      producer.info = {model.name(role, block), DType::kF32, model.config().shape(role)};
      producer.bytes = [&model, role, block] {
        const Mat m = model.read(role, block);
        const auto bytes = std::as_bytes(std::span(m.data(), static_cast<size_t>(m.size())));
        return std::vector<std::byte>(bytes.begin(), bytes.end());
      };
      tensors.push_back(std::move(producer));
    }
  }
  io::make_directories(directory);
  io::PendingFiles pending;
  io::write_safetensors(directory, "weights", std::move(tensors), ~uint64_t{0}, pending);
  pending.commit();
}

int run(const std::vector<std::string>& args) {
  const std::string command = args.empty() ? "" : args[0];
  if (command == "tiny" && args.size() >= 3) {
    make_tiny(args);
  } else if (command == "logits" && args.size() == 5) {
    write_logits(args[1], args[2], std::stoll(args[3]), args[4]);
  } else if (command == "weights" && args.size() == 3) {
    write_weights(args[1], args[2]);
  } else {
    std::cerr << "usage: see the head of interop_tool.cpp\n";
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
