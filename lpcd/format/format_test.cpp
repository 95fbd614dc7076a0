#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <random>

#include "lpcd/base/error.h"
#include "lpcd/format/output_format.h"
#include "lpcd/tensor/half.h"

namespace lpcd::format {
namespace {

QuantizedMatrix random_matrix(const GridSpec& spec, int64_t rows, int64_t cols, int lowest_zero) {
  std::mt19937 rng(static_cast<unsigned>(spec.bits * 1000 + rows));
  QuantizedMatrix q(spec, rows, cols);
  const int codes = 1 << spec.bits;
  for (uint8_t& code : q.codes) code = static_cast<uint8_t>(rng() % static_cast<unsigned>(codes));
  for (int64_t i = 0; i < q.scales.size(); ++i) {
    q.scales.data()[i] = round_to_f16(0.001F * static_cast<float>(1 + rng() % 1000));
  }
  for (uint8_t& zero : q.zeros) {
    zero = spec.symmetric
               ? static_cast<uint8_t>(codes / 2)
               : static_cast<uint8_t>(
                     lowest_zero +
                     static_cast<int>(rng() % static_cast<unsigned>(codes - lowest_zero)));
  }
  return q;
}

std::vector<uint32_t> words(const NamedTensor& t) {
  std::vector<uint32_t> w(t.data.size() / 4);
  std::memcpy(w.data(), t.data.data(), t.data.size());
  return w;
}

std::string message_of(std::string_view format) {
  try {
    (void)parse_output_format(format);
  } catch (const Error& e) {
    return e.message();
  }
  return "accepted";
}

TEST(OutputFormat, TextIsCanonicalAndParsesBack) {
  for (const char* text : {"gptq:3,g64", "gptq:4,g-1,asym", "gptq:8,g128,asym,v2", "ct:5,g-1",
                           "ct:3,g64,asym", "dense:bf16"}) {
    EXPECT_EQ(parse_output_format(text)->text(), text);
  }
  EXPECT_EQ(parse_output_format("gptq:4")->text(), "gptq:4,g128");
}

TEST(OutputFormat, ErrorsNameTheNearest) {
  EXPECT_NE(message_of("gptg:4").find("did you mean \"gptq\""), std::string::npos);
  EXPECT_NE(message_of("gptq:5,g64").find("gptq:2|3|4|8"), std::string::npos);
  EXPECT_NE(message_of("gptq:4,g0").find("for example gptq:4,g128"), std::string::npos);
  EXPECT_NE(message_of("dense:int8").find("dense:fp16|bf16|fp32"), std::string::npos);
  EXPECT_NE(message_of("").find("unknown format"), std::string::npos);
}

// Property: whatever is encoded decodes to the same weights, for every width, both zero layouts,
// short last groups, one group per row.
TEST(Gptq, EncodeThenDecodeIsTheMatrix) {
  for (const int bits : {2, 3, 4, 8}) {
    for (const bool symmetric : {true, false}) {
      for (const bool v2 : {false, true}) {
        for (const int64_t group : {-1, 32, 48}) {
          const GridSpec spec{.bits = bits, .group_size = group, .symmetric = symmetric};
          const auto format =
              parse_output_format("gptq:" + std::to_string(bits) + ",g" + std::to_string(group) +
                                  (symmetric ? "" : ",asym") + (v2 ? ",v2" : ""));
          const QuantizedMatrix q = random_matrix(spec, 32, 96, 0);
          const auto tensors = format->encode("m.weight", q);
          const auto infos = format->describe("m.weight", 32, 96, spec);
          for (size_t i = 0; i < tensors.size(); ++i) {
            EXPECT_EQ(tensors[i].info.name, infos[i].name);
            EXPECT_EQ(std::cmp_equal(tensors[i].data.size(), infos[i].bytes()), true);
          }
          Mat out(32, 96);
          decode_gptq({tensors[0].data, tensors[1].data, tensors[2].data, tensors[3].data},
                      {.bits = bits, .rows = 32, .cols = 96, .groups = q.groups(), .v1_zeros = !v2},
                      out);
          const Mat expected = q.decode();
          for (int64_t i = 0; i < out.size(); ++i) ASSERT_EQ(out.data()[i], expected.data()[i]);
        }
      }
    }
  }
}

// Property: the same for compressed-tensors, and rows and inputs that do not fill whole words.
TEST(CompressedTensors, EncodeThenDecodeIsTheMatrix) {
  for (const int bits : {2, 3, 4, 5, 6, 7, 8}) {
    for (const bool symmetric : {true, false}) {
      for (const int64_t group : {-1, 12, 60}) {
        const GridSpec spec{.bits = bits, .group_size = group, .symmetric = symmetric};
        const auto format = parse_output_format("ct:" + std::to_string(bits) + ",g" +
                                                std::to_string(group) + (symmetric ? "" : ",asym"));
        const QuantizedMatrix q = random_matrix(spec, 30, 60, 0);
        const auto tensors = format->encode("m.weight", q);
        const auto infos = format->describe("m.weight", 30, 60, spec);
        ASSERT_EQ(tensors.size(), symmetric ? 3U : 4U);
        for (size_t i = 0; i < tensors.size(); ++i) {
          EXPECT_EQ(tensors[i].info.name, infos[i].name);
          EXPECT_EQ(std::cmp_equal(tensors[i].data.size(), infos[i].bytes()), true);
        }
        Mat out(30, 60);
        PackedTensors parts{tensors[0].data, tensors[1].data, {}};
        if (!symmetric) parts.zero_point = tensors[3].data;
        decode_packed(parts, {.bits = bits, .rows = 30, .cols = 60, .groups = q.groups()}, out);
        const Mat expected = q.decode();
        for (int64_t i = 0; i < out.size(); ++i) ASSERT_EQ(out.data()[i], expected.data()[i]);
      }
    }
  }
}

TEST(CompressedTensors, RefusesGroupsThatEndShort) {
  const auto format = parse_output_format("ct:4,g64");
  EXPECT_THROW(format->check("w", 64, 160, {.bits = 4, .group_size = 64}), Error);
  EXPECT_NO_THROW(format->check("w", 64, 192, {.bits = 4, .group_size = 64}));
  EXPECT_NO_THROW(format->check("w", 64, 160, {.bits = 4, .group_size = -1}));
}

TEST(CompressedTensors, ConfigurationHasAGroupPerGrid) {
  const auto format = parse_output_format("ct:3,g64");
  const std::vector<LayerGrid> layers = {
      {"model.layers.0.mlp.down_proj.weight", {.bits = 4, .group_size = -1, .symmetric = false}},
      {"model.layers.0.mlp.up_proj.weight", {.bits = 3, .group_size = 64}}};
  const Json groups = format->quantization_config(layers, {})["config_groups"];
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_EQ(groups["group_0"]["targets"], Json::array({"Linear"}));
  EXPECT_EQ(groups["group_0"]["weights"]["group_size"], 64);
  EXPECT_EQ(groups["group_1"]["targets"], Json::array({"model.layers.0.mlp.down_proj"}));
  EXPECT_EQ(groups["group_1"]["weights"]["strategy"], "channel");
  EXPECT_EQ(groups["group_1"]["weights"]["symmetric"], false);
  EXPECT_FALSE(groups["group_1"]["weights"].contains("group_size"));
}

// The 3-bit words written out: v10 straddles words 0 and 1 (2 + 1 bits), v21 words 1 and 2 (1 + 2).
TEST(Gptq, ThreeBitWordsAreADenseStream) {
  QuantizedMatrix q({.bits = 3, .group_size = -1}, 32, 32);
  q.codes.assign(q.codes.size(), 0);
  q.codes[0] = 5;   // row 0, input 0
  q.codes[10] = 6;  // 110: low two bits in word 0, high bit in word 1
  q.codes[21] = 5;  // 101: low bit in word 1, high two in word 2
  q.codes[31] = 7;
  q.scales(0, 0) = 1.0F;
  q.zeros.assign(q.zeros.size(), 4);
  const auto tensors = parse_output_format("gptq:3,g-1")->encode("m.weight", q);
  const auto qweight = words(tensors[0]);  // [3, 32]: word w of row n at w * 32 + n
  EXPECT_EQ(qweight[0], 5U | (2U << 30));
  EXPECT_EQ(qweight[32], 1U | (1U << 31));
  EXPECT_EQ(qweight[64], 2U | (7U << 29));
  const auto qzeros = words(tensors[1]);  // 32 fields of 3 in 96 bits
  EXPECT_EQ(qzeros[0], 0xDB6DB6DBU);
  const auto g_idx = words(tensors[3]);
  EXPECT_EQ(g_idx[31], 0U);
}

TEST(Gptq, SymmetricZerosAreTheWellKnownWords) {
  for (const auto& [bits, word] : {std::pair{2, 0x55555555U}, {4, 0x77777777U}, {8, 0x7F7F7F7FU}}) {
    const auto q = random_matrix({.bits = bits, .group_size = 32}, 32, 32, 1);
    const auto format = parse_output_format("gptq:" + std::to_string(bits) + ",g32");
    EXPECT_EQ(words(format->encode("m.weight", q)[1])[0], word);
  }
}

TEST(Gptq, RefusesShapesThatDoNotPack) {
  const auto format = parse_output_format("gptq:3,g64");
  EXPECT_THROW(format->check("w", 64, 172, {.bits = 3}), Error);
  EXPECT_NO_THROW(format->check("w", 64, 160, {.bits = 3}));
  EXPECT_THROW(format->check("w", 64, 160, {.bits = 5}), Error);
}

TEST(Gptq, ConfigurationNamesLayersThatDiffer) {
  const auto format = parse_output_format("gptq:3,g64");
  const std::vector<LayerGrid> layers = {
      {"model.layers.0.mlp.down_proj.weight", {.bits = 4, .group_size = 64}},
      {"model.layers.0.mlp.gate_proj.weight", {.bits = 8, .group_size = 64}},
      {"model.layers.0.mlp.up_proj.weight", {.bits = 3, .group_size = 64}}};
  const Json json = format->quantization_config(layers, {{"quantizer", {"lpcd.cpp:0"}}});
  EXPECT_EQ(json["bits"], 3);
  EXPECT_EQ(json["desc_act"], false);
  EXPECT_EQ(json["dynamic"].size(), 2U);
  EXPECT_EQ(json["dynamic"]["+:^model\\.layers\\.0\\.mlp\\.(gate_proj|gate_up_proj)$"]["bits"], 8);
  EXPECT_EQ(json["dynamic"]["+:^model\\.layers\\.0\\.mlp\\.down_proj$"]["bits"], 4);
}

TEST(Dense, RoundsAndRefusesOverflow) {
  const std::vector<float> values = {1.0F, -0.1F, 65504.0F};
  const auto bytes = encode_dense("w", values, DType::kF16);
  uint16_t half = 0;
  std::memcpy(&half, bytes.data() + 2, 2);
  EXPECT_EQ(half, f32_to_f16(-0.1F));
  const std::vector<float> large = {1e6F};
  EXPECT_THROW((void)encode_dense("w", large, DType::kF16), Error);
  EXPECT_EQ(encode_dense("w", large, DType::kBF16).size(), 2U);
}

}  // namespace
}  // namespace lpcd::format
