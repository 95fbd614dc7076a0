"""Our safetensors files are byte for byte those of the reference writer, and our reader accepts
what the reference reader accepts, but for what it refuses on purpose."""

import json
import pathlib
import random
import tempfile

from support import check, need, tool

torch, hub, safetensors, safetensors_torch = need(
    "torch", "huggingface_hub", "safetensors", "safetensors.torch"
)
UNLIMITED = 2**62


def tensors():
    """All dtypes that lpcd writes, scalars and empty tensors, names that JSON has to escape."""
    torch.manual_seed(3)
    dtypes = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8",
              "uint64", "uint32", "uint16", "uint8", "bool"]  # fmt: skip
    result = {}
    for i, name in enumerate(dtypes):
        dtype = getattr(torch, name)
        result[f"b.{name}"] = (torch.rand(7, i + 1) * 100).to(dtype)
        result[f"a.{name}"] = (torch.rand(3) * 100).to(dtype)
    result["scalar"] = torch.tensor(1.5)
    result["empty"] = torch.zeros(0, 4)
    result['name with "quotes" and \\'] = torch.ones(2)
    return {name: result[name] for name in sorted(result)}


def write_reference(state, folder, max_shard_size):
    split = hub.split_torch_state_dict_into_shards(
        state, filename_pattern="model{suffix}.safetensors", max_shard_size=max_shard_size
    )
    for file, names in split.filename_to_tensors.items():
        part = {name: state[name] for name in names}
        safetensors_torch.save_file(part, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / "model.safetensors.index.json").write_text(text)


def check_writer(root):
    state = tensors()
    for number, limit in enumerate([UNLIMITED, 2000, 300, 100]):
        reference, ours = root / f"reference{number}", root / f"ours{number}"
        reference.mkdir()
        write_reference(state, reference, limit)
        tool("rewrite", reference, ours, limit)
        expected = sorted(path.name for path in reference.iterdir())
        found = sorted(path.name for path in ours.iterdir())
        check(found == expected, f"limit {limit}: files {found} for {expected}")
        for name in expected:
            same = (ours / name).read_bytes() == (reference / name).read_bytes()
            check(same, f"limit {limit}: {name} differs")
        print(f"shards of {limit} bytes: {len(expected)} files, same bytes")


# Where we are stricter than the reference reader.
STRICTER = [
    'does not begin with "{"',  # as the format demands; the reference also takes blanks before it
    "appears twice",  # the reference takes the last of two equal keys
    "is not supported",  # dtypes we do not decode
    "is not printable UTF-8",  # names with control characters
    "must be a JSON object",  # the reference also takes a tensor as [dtype, shape, offsets]
]


def mutate(data, rng):
    data = bytearray(data)
    header = 8 + int.from_bytes(data[:8], "little")
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        kind = rng.random()
        place = rng.randrange(min(header, len(data)) if rng.random() < 0.9 else len(data))
        if kind < 0.4:
            data[place] = rng.randrange(256)
        elif kind < 0.7:
            data[place] = rng.choice(b'0123456789-.e[]{}",: \x00')
        elif kind < 0.8:
            del data[place:]
        elif kind < 0.9:
            data[place:place] = bytes(rng.choice(b' 0"{}\x00') for _ in range(rng.randint(1, 9)))
        else:
            del data[place : place + rng.randint(1, 9)]
        if not data:
            break
    return bytes(data)


def crafted():
    """Files of 24 data bytes with headers that are right or wrong in one point."""
    w, b = '"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}', '"b":{"dtype":"I64","shape":[],"data_offsets":[16,24]}'
    headers = [
        "{%s,%s}" % (w, b), "{%s,%s}" % (b, w), "{%s,%s}   " % (w, b), "{ %s,\n\t%s}\r\n" % (w, b),
        " {%s,%s}" % (w, b), "\ufeff{%s,%s}" % (w, b), "{%s,%s}\0" % (w, b), "{%s,%s}x" % (w, b),
        "{%s}" % w, "{%s,%s,}" % (w, b), "{%s,%s,%s}" % (w, b, b), "[%s]" % w, "{}", "",
        '{"__metadata__":null,%s,%s}' % (w, b), '{"__metadata__":{},%s,%s}' % (w, b),
        '{"__metadata__":{"a":1},%s,%s}' % (w, b), '{"__metadata__":[],%s,%s}' % (w, b),
        '{"__metadata__":{"a":"b","a":"c"},%s,%s}' % (w, b),
        '{"__metadata__":{"a":"b"},"__metadata__":{"c":"d"},%s,%s}' % (w, b),
    ]  # fmt: skip
    edits = [
        ("[2,2]", "[4]"), ("[2,2]", "[1,1,4,1]"), ("[2,2]", "[2,3]"), ("[2,2]", "[2,-2]"), ("[2,2]", "[-0,2]"),
        ("[2,2]", "[2.0,2]"), ("[2,2]", "[2e0,2]"), ("[2,2]", '["2",2]'), ("[2,2]", "null"),
        ("[2,2]", "[4294967296,4294967296,4]"), ("[2,2]", "[18446744073709551615,4]"),
        ("[2,2]", "[18446744073709551616,4]"), ("[0,16]", "[16,0]"), ("[0,16]", "[0,15]"),
        ("[0,16]", "[0,16,0]"), ("[0,16]", "[0]"), ("[0,16]", "[8,24]"), ("[16,24]", "[0,8]"),
        ("[16,24]", "[24,32]"), ("[16,24]", "[16,23]"), ("F32", "I32"), ("F32", "F64"), ("F32", "f32"),
        ("F32", "Q4_0"), ("F32", ""), ("F32", "C64"), ("I64", "C64"), ('"F32"', "null"), ('"F32"', "7"),
        ('"w"', '""'), ('"w"', '"b"'), ('"w"', '"\\u0077"'), ('"w"', '"\\ud800"'), ('"w"', '"\\u0001"'),
        ('"dtype":"F32",', ""), ('"shape":[2,2],', ""), (',"data_offsets":[0,16]', ""),
        ('"dtype":"F32"', '"dtype":"F32","extra":[1,{"a":null}]'), ('"dtype":"F32"', '"dtype":"F32","dtype":"F32"'),
        ('{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]}', '["F32",[2,2],[0,16]]'),
        ('[],"data_offsets":[16,24]}', '[],"data_offsets":[16,24]},"e":{"dtype":"F32","shape":[0,5],"data_offsets":[24,24]}'),
        ('[],"data_offsets":[16,24]}', '[],"data_offsets":[16,24]},"e":{"dtype":"F32","shape":[0],"data_offsets":[8,8]}'),
    ]  # fmt: skip
    for old, new in edits:
        header = headers[0].replace(old, new, 1)
        assert header != headers[0], old
        headers.append(header)
    for header in headers:
        text = header.encode("utf-8")
        for data_bytes in (24, 23, 0):
            yield len(text).to_bytes(8, "little") + text + bytes(data_bytes)
    for length in (0, 1, 100_000_001, 2**63, 2**64 - 1):
        yield length.to_bytes(8, "little") + b"{}"
    yield b"\2\0\0\0\0\0\0"


def reference_accepts(path):
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            file.keys()
        return True
    except Exception:
        return False


def check_reader(root):
    rng = random.Random(11)
    seed_state = {"w": torch.ones(2, 3), "b": torch.ones(3, dtype=torch.float16), "s": torch.ones(())}
    seed = safetensors_torch.save(seed_state, metadata={"format": "pt", "a": "b"})
    paths = []
    for data in [*crafted(), *(mutate(seed, rng) for _ in range(3000))]:
        paths.append(root / f"{len(paths)}.safetensors")
        paths[-1].write_bytes(data)
    answers = tool("accept", *paths).splitlines()
    check(len(answers) == len(paths), f"{len(answers)} answers for {len(paths)} files")
    counts = {"both accept": 0, "both refuse": 0, "refused on purpose": 0}
    for path, answer in zip(paths, answers):
        theirs = reference_accepts(path)
        if answer == "ok":
            check(theirs, f"accepted, but not by the reference: {path.read_bytes()}")
            counts["both accept"] += 1
        elif not theirs:
            counts["both refuse"] += 1
        else:
            check(any(part in answer for part in STRICTER), f"{answer}: {path.read_bytes()}")
            counts["refused on purpose"] += 1
    check(min(counts["both accept"], counts["both refuse"]) >= 20, f"one-sided: {counts}")
    print("crafted and mutated files:", counts)


def main():
    with tempfile.TemporaryDirectory() as folder:
        check_writer(pathlib.Path(folder))
        check_reader(pathlib.Path(folder))


main()
