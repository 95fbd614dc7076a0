"""llama.cpp loads what lpcd wrote with --check-tensors, generates text from it, and measures the
perplexity that `lpcd eval --ppl-mode llama.cpp` measures.

LPCD_LLAMA_CPP names the folder with llama-completion and llama-perplexity. llama.cpp rounds activations
to 8 bits for block types, so only the F32 file is compared closely.
"""

import json
import os
import pathlib
import re
import subprocess
import tempfile

from interop_support import LPCD, check, real_gguf, run, shared_models, skip, write_text

folder = os.environ.get("LPCD_LLAMA_CPP")
if not folder or not (pathlib.Path(folder) / "llama-perplexity").exists():
    skip("set LPCD_LLAMA_CPP to a folder with llama-completion and llama-perplexity")
BIN = pathlib.Path(folder)
models = [shared_models().get("qwen3-stories"), real_gguf()]
if not any(models):
    skip("no model: set LPCD_SHARED_DIR or LPCD_TEST_MODELS")


def llama(tool, *arguments):
    done = subprocess.run([str(a) for a in (BIN / f"llama-{tool}", *arguments)], capture_output=True, text=True)
    check(done.returncode == 0, f"llama-{tool}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout + done.stderr


def compare(work, text, path, bound):
    llama("completion", "-m", path, "--check-tensors", "-p", "The", "-n", 4, "-no-cnv", "-t", 2)
    log = llama("perplexity", "-m", path, "-f", text, "-c", 128, "-b", 128, "--chunks", 8, "-t", 2)
    # The running value after each window; some builds lose the last lines of their log.
    count, theirs = re.findall(r"\[(\d+)\]([\d.]+),", log)[-1]
    count, theirs = int(count), float(theirs)
    check(count >= 4, f"{count} windows")
    ours = json.loads(run(LPCD, "eval", path, "--ppl", text, "--ppl-mode", "llama.cpp", "--seq-len", 128,
                          "--max-tokens", count * 128, "--json", "--quiet"))["perplexity"]  # fmt: skip
    print(f"{path.name}: perplexity {ours:.4f}, llama.cpp {theirs:.4f}")
    check(abs(ours / theirs - 1) < bound, "perplexities differ")


with tempfile.TemporaryDirectory() as temporary:
    work = pathlib.Path(temporary)
    text = write_text(work / "text.txt")
    for i, model in enumerate(filter(None, models)):
        run(LPCD, "export", model, "--format", "gguf:f32", "--out", work / f"f32-{i}", "--quiet")
        compare(work, text, next((work / f"f32-{i}").glob("*.gguf")), 1e-3)
        for kind in ["q2_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "exact",
                     "exact 2"]:  # fmt: skip
            if i > 0 and kind not in ("q4_k_m", "exact"):  # a real model takes long
                continue
            out = work / f"{kind.replace(' ', '')}-{i}"
            name, bits = (kind.split() + [4])[:2]
            run(LPCD, "quantize", model, "--out", out, "--format", f"gguf:{name}", "--method", "rtn", "--qep", "off",
                "--lpcd", "none", "--group-size", 64, "--bits", bits, "--for", "llama.cpp", "--quiet")  # fmt: skip
            compare(work, text, next(out.glob("*.gguf")), 0.05)
