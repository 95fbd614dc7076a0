"""An independent reader of the gptq layout finds exactly the weights that lpcd evaluates."""

import json
import pathlib
import tempfile

from interop_support import LPCD, TOOL, check, need, run, write_text

np, safetensors_numpy = need("numpy", "safetensors.numpy")


def fields(words, bits, count, axis):
    """Unsigned `bits`-wide fields of little-endian bit streams along `axis` of an int32 array."""
    words = np.moveaxis(words.view(np.uint32), axis, -1)
    stream = (words[..., None] >> np.arange(32, dtype=np.uint32)) & 1
    stream = stream.reshape(*words.shape[:-1], -1)[..., : count * bits].reshape(*words.shape[:-1], count, bits)
    return np.moveaxis((stream << np.arange(bits, dtype=np.uint32)).sum(-1), -1, axis)


def unpack(tensors, base, bits, v1):
    g_idx = tensors[f"{base}.g_idx"]
    scales = tensors[f"{base}.scales"].astype(np.float32)
    codes = fields(tensors[f"{base}.qweight"], bits, len(g_idx), 0).astype(np.float32)
    zeros = fields(tensors[f"{base}.qzeros"], bits, scales.shape[1], 1)
    zeros = ((zeros + 1) % 2**bits if v1 else zeros).astype(np.float32)
    return (scales[g_idx] * (codes - zeros[g_idx])).T


with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    text = write_text(work / "text.txt")
    run(TOOL, "tiny", work / "model", "llama", "head_dim=32", "hidden=96", "ffn=160")
    for i, format in enumerate(["gptq:2,g32", "gptq:3,g64", "gptq:4,g-1,asym", "gptq:8,g32,v2", "gptq:3,g32,asym,v2"]):
        out = work / f"out{i}"
        run(LPCD, "quantize", work / "model", "--out", out, "--format", format, "--calib", text, "--samples", 16,
            "--seq-len", 64, "--quiet")  # fmt: skip
        config = json.loads((out / "config.json").read_text())["quantization_config"]
        check(config == json.loads((out / "quantize_config.json").read_text()), "two configurations")
        check(config["desc_act"] is False and config["quant_method"] == "gptq", "configuration")
        tensors = safetensors_numpy.load_file(out / "model.safetensors")
        run(TOOL, "weights", out, work / f"weights{i}")
        ours = safetensors_numpy.load_file(work / f"weights{i}" / "weights.safetensors")
        layers = [name[: -len(".qweight")] for name in tensors if name.endswith(".qweight")]
        check(len(layers) == 14, f"{len(layers)} layers")
        for base in layers:
            weight = unpack(tensors, base, config["bits"], config["checkpoint_format"] == "gptq")
            check(np.array_equal(weight, ours[f"{base}.weight"]), f"{format}: {base} differs")
        print(f"{format}: {len(layers)} layers equal")
