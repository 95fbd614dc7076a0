"""compressed-tensors packs the codes to the bytes that lpcd wrote, and transformers, which loads the
model through it, computes the logits that lpcd computes: 2 to 8 bits, symmetric and not, groups and
one scale per row, mixed widths.

transformers 5.23 with compressed-tensors 0.20 loads no asymmetric model at all: it prepares zero points
of the unpacked shape and refuses the packed ones that compressed-tensors itself writes. Asymmetric layers
are therefore decompressed by compressed-tensors first.
"""

import json
import pathlib
import tempfile

from interop_support import LPCD, TOOL, check, need, run, write_text

np, torch, transformers, safetensors_torch = need("numpy", "torch", "transformers", "safetensors.torch")
packing, pack_quantized, ct_quantization = need(
    "compressed_tensors.compressors.pack_quantized.helpers",
    "compressed_tensors.compressors.pack_quantized.base",
    "compressed_tensors.quantization",
)
torch.set_num_threads(2)
transformers.logging.set_verbosity_error()
if hasattr(transformers.utils.logging, "disable_progress_bar"):
    transformers.utils.logging.disable_progress_bar()

CASES = {
    "llama": ["ct:2,g32", "ct:3,g32,asym", "ct:4,g-1,asym", "ct:8,g32", "ct:5,g32", "ct:3,g32 --bits-for *down_proj*=4"],
    "qwen3": ["ct:2,g32,asym", "ct:3,g32", "ct:4,g32", "ct:8,g-1,asym"],
}


def check_bytes(tensors, base, weight):
    """Codes and zero points packed by compressed-tensors itself, from the weights that lpcd evaluates."""
    packed = tensors[f"{base}.weight_packed"]
    rows, cols = tensors[f"{base}.weight_shape"].tolist()
    scale = tensors[f"{base}.weight_scale"].float()
    bits = packed.shape[1] * 32 // cols
    zero = torch.zeros(scale.shape, dtype=torch.int8)
    if f"{base}.weight_zero_point" in tensors:
        stored = tensors[f"{base}.weight_zero_point"]
        zero = packing.unpack_from_int32(stored, bits, torch.Size(scale.shape), packed_dim=0)
        check(torch.equal(packing.pack_to_int32(zero, bits, packed_dim=0), stored), f"{base}: zero points")
    codes = packing.unpack_from_int32(packed, bits, torch.Size([rows, cols]))
    check(torch.equal(packing.pack_to_int32(codes, bits), packed), f"{base}: codes")
    group = cols // scale.shape[1]
    expand = lambda t: t.float().repeat_interleave(group, dim=1)
    check(torch.equal(expand(scale) * (codes.float() - expand(zero)), weight), f"{base}: weights")


def decompressed(path, tensors):
    """The model with its layers decompressed by compressed-tensors, then loaded by transformers."""
    config = transformers.AutoConfig.from_pretrained(path)
    groups = json.loads((path / "config.json").read_text())["quantization_config"]["config_groups"]
    check(len(groups) == 1, "one scheme")
    scheme = ct_quantization.QuantizationScheme.model_validate(groups["group_0"])
    del config.quantization_config
    state = {name: t for name, t in tensors.items() if name.count(".weight_") == 0}
    for name in tensors:
        if not name.endswith(".weight_packed"):
            continue
        base = name[: -len("weight_packed")]
        parts = {key[len(base) :]: value for key, value in tensors.items() if key.startswith(base)}
        parts["weight_scale"] = parts["weight_scale"].float()
        parts["weight_shape"] = torch.Size(parts["weight_shape"].tolist())
        done = pack_quantized.PackedQuantizationCompressor.decompress(parts, scheme)
        state[f"{base}weight"] = done["weight"]
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(state)
    return model.eval()


with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    text = write_text(work / "text.txt")
    ids = np.random.default_rng(1).integers(0, 256, (3, 64)).astype(np.int32)
    ids.tofile(work / "ids.bin")
    for architecture, formats in CASES.items():
        run(TOOL, "tiny", work / architecture, architecture, "head_dim=32", "hidden=96", "ffn=192", "tied=0")
        for i, case in enumerate(formats):
            out = work / f"{architecture}{i}"
            format, *options = case.split()
            run(LPCD, "quantize", work / architecture, "--out", out, "--format", format, *options, "--calib", text,
                "--samples", 16, "--seq-len", 64, "--lpcd", "residual", "--quiet")  # fmt: skip
            run(TOOL, "weights", out, work / "weights")
            ours = safetensors_torch.load_file(work / "weights" / "weights.safetensors")
            tensors = safetensors_torch.load_file(out / "model.safetensors")
            layers = [name[: -len(".weight_packed")] for name in tensors if name.endswith(".weight_packed")]
            check(len(layers) == 14, f"{case}: {len(layers)} layers")
            for base in layers:
                check_bytes(tensors, base, ours[f"{base}.weight"])
            run(TOOL, "logits", out, work / "ids.bin", 64, work / "logits.bin")
            logits = np.fromfile(work / "logits.bin", np.float32).reshape(3, 64, -1)
            if format.endswith("asym"):
                model = decompressed(out, tensors)
            else:
                model = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
            with torch.no_grad():
                theirs = model(torch.from_numpy(ids).long()).logits.numpy()
            error = np.abs(logits - theirs).max() / np.abs(theirs).max()
            print(f"{architecture} {case}: bytes equal, largest difference {error:.2e} of the largest logit")
            check(error < 1e-4, f"{case}: logits differ by {error}")
