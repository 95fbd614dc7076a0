"""A GGUF file of the gguf package's writer is read as its author meant it."""

import json
import math
import pathlib
import tempfile

from support import check, need, tool

np, gguf = need("numpy", "gguf")


def write_model(path, rng):
    """One key of every value type, one tensor of every supported type; returns both."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(64)
    scalars = {
        "uint8": 255, "int8": -128, "uint16": 65535, "int16": -32768, "uint32": 2**32 - 1,
        "int32": -(2**31), "uint64": 2**64 - 1, "int64": -(2**63), "float64": math.pi,
        "float32": 0.5, "bool": True, "string": "text with \"quotes\" and \u00fcmlauts",
    }  # fmt: skip
    metadata = {"general.architecture": "llama", "general.alignment": 64}
    for kind, value in scalars.items():
        getattr(writer, f"add_{kind}")(f"test.{kind}", value)
        metadata[f"test.{kind}"] = value
    arrays = {
        "strings": [f"\u0120token{i}" for i in range(5000)],
        "ints": [-1, 0, 2**30],
        "floats": [0.5, -2.25],
        "bools": [True, False, True],
    }
    for kind, value in arrays.items():
        writer.add_array(f"test.array.{kind}", value)
        metadata[f"test.array.{kind}"] = value

    tensors = {}
    plain = {"F32": np.float32, "F16": np.float16, "F64": np.float64, "I8": np.int8,
             "I16": np.int16, "I32": np.int32, "I64": np.int64}  # fmt: skip
    for name, dtype in plain.items():
        data = (rng.standard_normal((3, 5)) * 10).astype(dtype)
        writer.add_tensor(f"plain.{name}", data)
        tensors[f"plain.{name}"] = (name, [3, 5], data.tobytes())
    blocks = ["BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]
    for name in blocks:
        kind = gguf.GGMLQuantizationType[name]
        elems, size = gguf.GGML_QUANT_SIZES[kind]
        data = rng.integers(0, 256, (2, 3, 512 // elems * size), dtype=np.uint8)
        writer.add_tensor(f"block.{name}", data, raw_dtype=kind)
        tensors[f"block.{name}"] = (name, [2, 3, 512], data.tobytes())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return metadata, tensors


def main():
    rng = np.random.default_rng(7)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.gguf")
        metadata, tensors = write_model(path, rng)
        tool("dump", path, path)
        found = json.loads(pathlib.Path(f"{path}.json").read_text())
        for key in metadata.keys() | found["metadata"].keys():
            check(
                metadata.get(key) == found["metadata"].get(key),
                f"{key}: {found['metadata'].get(key)} for {metadata.get(key)}",
            )
        data = pathlib.Path(f"{path}.bin").read_bytes()
        names = [tensor["name"] for tensor in found["tensors"]]
        check(names == sorted(tensors), f"tensors {names}")
        for tensor in found["tensors"]:
            dtype, shape, raw = tensors[tensor["name"]]
            check((tensor["dtype"], tensor["shape"]) == (dtype, shape), f"{tensor}")
            check(data[: len(raw)] == raw, f"bytes of {tensor['name']}")
            data = data[len(raw) :]
        check(not data, f"{len(data)} bytes left over")
        print(f"{len(metadata)} keys and {len(tensors)} tensors read as written")


main()
