"""The gguf package reads what lpcd wrote: every tensor dequantizes to exactly the weights that lpcd
evaluates, rows of q and k in llama's order, metadata complete. For models from Hugging Face
directories and from GGUF files, mixes and integer grids."""

import pathlib
import tempfile

from interop_support import LPCD, TOOL, check, need, real_gguf, run, write_text

np, gguf, quants, safetensors_numpy = need("numpy", "gguf", "gguf.quants", "safetensors.numpy")

NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
NEEDED = ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count",
          "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "rope.freq_base"]  # fmt: skip


def hf_name(name):
    part = name.split(".")
    if part[0] == "blk":
        return ".".join(["model.layers", part[1], NAMES[part[2]], part[3]])
    return f"{NAMES[part[0]]}.{part[1]}"


def interleaved(weight, heads):
    """The rows of each head as llama's GGUF files have them."""
    rows = weight.shape[0]
    return weight.reshape(heads, 2, rows // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def compare(path, weights):
    reader = gguf.GGUFReader(path)
    field = lambda key: reader.get_field(key).contents()
    architecture = field("general.architecture")
    for key in NEEDED:
        check(reader.get_field(f"{architecture}.{key}") is not None, f"{path}: {key} is missing")
    check(field("general.quantization_version") == 2, "quantization version")
    for key in ["model", "pre", "tokens", "token_type"]:
        check(reader.get_field(f"tokenizer.ggml.{key}") is not None, f"{path}: tokenizer.ggml.{key} is missing")
    heads = {"attn_q": field(f"{architecture}.attention.head_count"),
             "attn_k": field(f"{architecture}.attention.head_count_kv")}  # fmt: skip
    types = {}
    for tensor in reader.tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        theirs = quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        ours = weights[hf_name(tensor.name)].reshape(theirs.shape)
        part = tensor.name.split(".")[-2]
        if architecture == "llama" and part in heads and tensor.name.endswith(".weight"):
            ours = interleaved(ours, heads[part])
        check(np.array_equal(ours, theirs), f"{path}: {tensor.name} differs")
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
    check(len(weights) == len([t for t in reader.tensors if t.name != "rope_freqs.weight"]), "number of tensors")
    return types


def read_weights(work, path):
    run(TOOL, "weights", path, work / "weights")
    return safetensors_numpy.load_file(work / "weights" / "weights.safetensors")


def the_file(folder):
    files = list(folder.glob("*.gguf"))
    check(len(files) == 1, f"{folder}: {files}")
    return files[0]


with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    text = write_text(work / "text.txt")
    for architecture in ("llama", "qwen2", "qwen3"):
        run(TOOL, "tiny", work / architecture, architecture, "head_dim=32", "hidden=256", "ffn=512", "heads=8",
            "kv_heads=2", "tied=0", "bf16=1")  # fmt: skip
        for format in ["q2_k", "q3_k_m", "q4_k_m", "q5_k_s", "q6_k", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "exact",
                       "bf16"]:  # fmt: skip
            out = work / f"{architecture}-{format}"
            method = "gptq" if format in ("q2_k", "q4_k_m") and architecture == "llama" else "rtn"
            run(LPCD, "quantize", work / architecture, "--out", out, "--format", f"gguf:{format}", "--calib", text,
                "--samples", 16, "--seq-len", 64, "--method", method, "--qep", "off", "--lpcd", "none",
                "--quiet")  # fmt: skip
            path = the_file(out)
            print(f"{architecture} {format}: {compare(path, read_weights(work, path))}")

    source = real_gguf()
    if source is None:
        print("no real model: set LPCD_TEST_MODELS to a folder with a GGUF file")
    else:
        run(LPCD, "quantize", source, "--out", work / "real", "--format", "gguf:q4_k_m", "--method", "rtn", "--qep",
            "off", "--lpcd", "none", "--quiet")  # fmt: skip
        path = the_file(work / "real")
        print(f"{source.name} to {path.name}: {compare(path, read_weights(work, path))}")
        before, after = gguf.GGUFReader(source), gguf.GGUFReader(path)
        for key, field in before.fields.items():
            if key.startswith("GGUF.") or key in ("general.file_type", "general.quantization_version"):
                continue
            other = after.get_field(key)
            check(other is not None and other.types == field.types and other.contents() == field.contents(), key)
