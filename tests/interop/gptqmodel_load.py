"""GPTQModel loads what lpcd writes as gptq: its dequantized weights are those that lpcd evaluates, bit for
bit, and its logits are those of the dense model. What it does not load is tried as well. transformers, which
reads this layout through optimum and GPTQModel, finds the same weights, rounded to its f16.

GPTQModel wants a newer torch than the other tests and packages that loading does not use, so it is not among
tests/requirements.txt and this test is skipped without it. To run it, add it to a venv that has those:

    pip install --no-deps -r tests/interop/requirements-gptqmodel.txt
    python tests/interop/gptqmodel_load.py LPCD INTEROP_TOOL
"""

import importlib.metadata
import json
import logging
import os
import pathlib
import sys
import tempfile

from interop_support import LPCD, TOOL, accepted, check, need, run, skip, write_text

os.environ["CUDA_VISIBLE_DEVICES"] = ""
np, torch, transformers, safetensors_torch = need("numpy", "torch", "transformers", "safetensors.torch")
try:
    VERSION = importlib.metadata.version("gptqmodel")
except importlib.metadata.PackageNotFoundError:
    skip("no gptqmodel package; see the head of gptqmodel_load.py")
sys.path.remove(str(pathlib.Path(__file__).resolve().parent))  # llama_cpp.py here is not the package it looks for
(gptqmodel,) = need("gptqmodel")
torch.set_num_threads(2)
logging.disable(logging.WARNING)
transformers.logging.set_verbosity_error()
if hasattr(transformers.utils.logging, "disable_progress_bar"):
    transformers.utils.logging.disable_progress_bar()

MODELS = {
    "llama": ["llama", "head_dim=32", "hidden=96", "ffn=160"],
    "qwen2": ["qwen2", "head_dim=32", "hidden=96", "ffn=192"],  # with biases
    "qwen3": ["qwen3", "head_dim=32", "hidden=128", "ffn=256", "tied=0"],
    "odd": ["llama", "head_dim=32", "hidden=96", "ffn=168"],  # not a multiple of 32
}
# (model, format and options, a part of the refusal or None)
CASES = [
    ("llama", "gptq:2,g32", None),
    ("llama", "gptq:3,g32", None),
    ("llama", "gptq:4,g32", None),
    ("llama", "gptq:8,g32", None),
    ("llama", "gptq:4,g-1", None),
    ("llama", "gptq:4,g16", None),
    ("llama", "gptq:3,g32,v2", None),
    ("llama", "gptq:4,g32,v2", None),
    ("llama", "gptq:2,g32,asym,v2", None),
    ("llama", "gptq:3,g32,asym,v2", None),
    ("llama", "gptq:4,g32,asym,v2", None),
    ("llama", "gptq:8,g-1,asym,v2", None),
    ("llama", "gptq:4,g64", None),  # the last group of a row has 32 inputs
    ("llama", "gptq:3,g32 --bits-for *down_proj*=4 --bits-for *v_proj*=2", None),
    ("qwen2", "gptq:4,g32", None),
    ("qwen2", "gptq:3,g32", None),
    ("qwen3", "gptq:4,g128", None),
    ("qwen3", "gptq:2,g64", None),
    ("odd", "gptq:4,g-1", None),
    ("odd", "gptq:8,g32", None),
    ("llama", "gptq:4,g32,asym", "only supported if produced by gptqmodel"),
    ("llama", "gptq:4,g48", "group_size"),
    ("llama", "gptq:4,g8", "group_size"),
]

TRANSFORMERS_CASES = [
    ("llama", "gptq:2,g32", None),
    ("llama", "gptq:3,g32", None),
    ("llama", "gptq:4,g32", None),
    ("llama", "gptq:8,g32", None),
    ("llama", "gptq:4,g32,asym", None),
    ("llama", "gptq:3,g32,asym,v2", None),
    ("llama", "gptq:3,g32 --bits-for *down_proj*=4", "ignore_mismatched_sizes"),  # optimum ignores `dynamic`
]


def load(path):
    """In f16, which keeps the stored scales, then in f32 for the arithmetic."""
    model = gptqmodel.GPTQModel.load(str(path), backend=gptqmodel.BACKEND.TORCH, device="cpu", dtype=torch.float16)
    return model.model.float().eval()


def load_by_transformers(path):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float16, device_map="cpu").eval()


def compare(model, dense_path, ids, case):
    """Largest difference of logits relative to the largest, for a model in f32 after equal weights."""
    dense = transformers.AutoModelForCausalLM.from_pretrained(dense_path, dtype=torch.float32).eval()
    weights = dense.state_dict()
    layers = {name: module for name, module in model.named_modules() if hasattr(module, "dequantize_weight")}
    check(len(layers) == 14, f"{case}: {len(layers)} quantized layers")
    for name, module in layers.items():
        weight = module.dequantize_weight().T
        check(torch.equal(weight, weights[f"{name}.weight"].to(weight.dtype)), f"{case}: {name} differs")
    with torch.no_grad():
        for name, values in dense.named_parameters():
            if name.removesuffix(".weight") not in layers:
                values.copy_(values.half())  # as it was loaded
        expected, found = dense(ids).logits, model(ids).logits.float()
    return ((expected - found).abs().max() / expected.abs().max()).item()


let_through = []


def try_case(work, consumer, loader, ids, name, case, refusal, bound):
    format, *options = case.split()
    with tempfile.TemporaryDirectory(dir=work) as folder:
        out, dense = pathlib.Path(folder) / "out", pathlib.Path(folder) / "dense"
        command = [LPCD, "quantize", work / name, "--out", out, "--format", format, *options, "--calib",
                   work / "text.txt", "--samples", 8, "--seq-len", 64, "--quiet"]  # fmt: skip
        allowed = accepted(*command, "--for", consumer)
        if not allowed:
            run(*command)
        try:
            model = loader(out)
        except Exception as error:
            check(refusal is not None and refusal in str(error), f"{name} {case}: {type(error).__name__}: {error}")
            if allowed:
                let_through.append(f"{consumer}: {name} {case}")
            result = f"refused: {' '.join(str(error).split())}"
            return result + (f" [--for {consumer} lets it through]" if allowed else "")
        check(refusal is None, f"{name} {case}: was to be refused")
        run(LPCD, "export", out, "--format", "dense:fp32", "--out", dense, "--quiet")
        error = compare(model, dense, ids, f"{name} {case}")
        check(error < bound, f"{name} {case}: logits differ by {error}")
        result = f"14 layers equal, largest difference {error:.1e} of the largest logit"
        return result + ("" if allowed else f" [--for {consumer} refuses it]")


print(f"gptqmodel {VERSION}, transformers {transformers.__version__}, torch {torch.__version__}")
with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    write_text(work / "text.txt")
    ids = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (2, 48)))
    for name, arguments in MODELS.items():
        run(TOOL, "tiny", work / name, *arguments)
        config = json.loads((work / name / "config.json").read_text())
        config["pad_token_id"] = 0  # GPTQModel takes that of real models otherwise, beyond a tiny vocabulary
        (work / name / "config.json").write_text(json.dumps(config))
    for name, case, refusal in CASES:
        result = try_case(work, "gptqmodel", load, ids, name, case, refusal, 1e-5)
        print(f"gptqmodel: {name} {case}: {result}", flush=True)
    try:
        optimum = importlib.metadata.version("optimum")
    except importlib.metadata.PackageNotFoundError:
        print("no optimum package: loading by transformers is not checked")
    else:
        print(f"optimum {optimum}")
        for name, case, refusal in TRANSFORMERS_CASES:
            result = try_case(work, "transformers", load_by_transformers, ids, name, case, refusal, 1e-2)  # f16
            print(f"transformers: {name} {case}: {result}", flush=True)
check(not let_through, f"--for lets through what does not load: {'; '.join(let_through)}")
