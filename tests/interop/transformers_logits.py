"""transformers computes the logits that lpcd computes: original models, and what lpcd wrote.

Relative to the largest logit, in f32, on the tiny random models, the shared ones, and a real one
converted from GGUF; then the same for the dense output of a quantization run, whose perplexity must
be that of `lpcd eval`.
"""

import json
import math
import pathlib
import tempfile

from interop_support import LPCD, TOOL, check, need, real_gguf, run, shared_models, write_text

np, torch, transformers = need("numpy", "torch", "transformers")
torch.set_num_threads(2)
transformers.logging.set_verbosity_error()
if hasattr(transformers.utils.logging, "disable_progress_bar"):
    transformers.utils.logging.disable_progress_bar()


def reference(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def compare(work, name, path, length=64, sequences=3, bound=1e-4):
    model = reference(path)
    rng = np.random.default_rng(1)
    ids = rng.integers(0, model.config.vocab_size, (sequences, length)).astype(np.int32)
    ids.tofile(work / "ids.bin")
    run(TOOL, "logits", path, work / "ids.bin", length, work / "logits.bin")
    ours = np.fromfile(work / "logits.bin", np.float32).reshape(sequences, length, -1)
    with torch.no_grad():
        theirs = model(torch.from_numpy(ids).long()).logits.numpy()
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{name}: largest difference {error:.2e} of the largest logit")
    check(error < bound, f"{name}: logits differ by {error}")
    return model


def make_qwen2(path):
    """A random checkpoint with biases, as transformers writes it."""
    torch.manual_seed(3)
    config = transformers.Qwen2Config(
        vocab_size=200, hidden_size=96, intermediate_size=160, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=256, rms_norm_eps=1e-6, tie_word_embeddings=False,
        initializer_range=0.1)  # fmt: skip
    model = transformers.Qwen2ForCausalLM(config)
    with torch.no_grad():
        for name, values in model.named_parameters():
            if name.endswith(".bias"):
                values.normal_(0, 0.5)
    model.save_pretrained(path)


def write_gguf(gguf, path, out):
    """The checkpoint as GGUF, without a tokenizer, its rows in the order they have."""
    from safetensors.numpy import load_file

    config = json.loads((path / "config.json").read_text())
    writer = gguf.GGUFWriter(out, "qwen2")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    for name, values in load_file(path / "model.safetensors").items():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def window_loss(model, ids):
    with torch.no_grad():
        logits = model(ids).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)
    ).item()


with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    for architecture in ("llama", "qwen2", "qwen3"):
        for tied in (0, 1):
            path = work / f"{architecture}{tied}"
            run(TOOL, "tiny", path, architecture, f"tied={tied}", "bf16=1", "head_dim=32", "hidden=96")
            compare(work, path.name, path)
    make_qwen2(work / "qwen2-made")
    compare(work, "qwen2 made by transformers", work / "qwen2-made")
    try:
        import gguf
    except ImportError:
        print("no gguf package: names of qwen2 in GGUF files are not checked")
    else:
        write_gguf(gguf, work / "qwen2-made", work / "qwen2.gguf")
        logits = (work / "logits.bin").read_bytes()
        run(TOOL, "logits", work / "qwen2.gguf", work / "ids.bin", 64, work / "logits.bin")
        check(logits == (work / "logits.bin").read_bytes(), "qwen2: the GGUF file gives other logits")
        run(LPCD, "export", work / "qwen2.gguf", "--format", "dense:fp32", "--out", work / "qwen2-out", "--quiet")
        compare(work, "qwen2 by way of GGUF", work / "qwen2-out")

    for name, path in shared_models().items():
        compare(work, name, path)

    gguf = real_gguf()
    if gguf is None:
        print("no real model: set LPCD_TEST_MODELS to a folder with a GGUF file")
    else:
        run(LPCD, "export", gguf, "--format", "dense:fp32", "--out", work / "real", "--quiet")
        compare(work, gguf.name, work / "real", length=128, sequences=2)

    # What a run wrote: the same logits, and the perplexity that lpcd reports.
    text = write_text(work / "text.txt")
    run(LPCD, "quantize", work / "llama0", "--out", work / "dense", "--format", "dense:fp16", "--calib", text,
        "--samples", 16, "--seq-len", 64, "--group-size", 32, "--quiet")  # fmt: skip
    model = compare(work, "dense:fp16 output", work / "dense")
    report = json.loads(run(LPCD, "eval", work / "dense", "--ppl", text, "--seq-len", 64, "--max-tokens", 2048,
                            "--json", "--quiet"))  # fmt: skip
    ids = torch.tensor(list(text.read_bytes()[:2048])).view(-1, 64)  # the tokens are bytes
    expected = math.exp(window_loss(model, ids))
    print(f"perplexity: lpcd {report['perplexity']:.6f}, transformers {expected:.6f}")
    check(abs(report["perplexity"] / expected - 1) < 1e-4, "perplexities differ")
