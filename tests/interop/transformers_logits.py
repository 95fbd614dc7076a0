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


def window_loss(model, ids):
    with torch.no_grad():
        logits = model(ids).logits
    return torch.nn.functional.cross_entropy(
        logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)
    ).item()


with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    for architecture in ("llama", "qwen3"):
        for tied in (0, 1):
            path = work / f"{architecture}{tied}"
            run(TOOL, "tiny", path, architecture, f"tied={tied}", "bf16=1", "head_dim=32", "hidden=96")
            compare(work, path.name, path)
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
