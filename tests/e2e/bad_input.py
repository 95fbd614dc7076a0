"""Bad input: one line with cause and remedy, the right exit code, nothing half-written."""

import json
import struct
import tempfile

from command_support import *  # noqa: F403: the vocabulary of these tests

USAGE, INPUT, IO, RESOURCE = 2, 3, 4, 5


def read_safetensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def write_safetensors(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def damage_weights(model, change):
    """Rewrites model.safetensors after change(header, data) -> data."""
    path = model / "model.safetensors"
    header, data = read_safetensors(path)
    write_safetensors(path, header, change(header, data))


def first_tensor(header):
    return next(v for k, v in header.items() if k != "__metadata__")


def overlap(header, data):
    names = [k for k in header if k != "__metadata__"]
    header[names[1]]["data_offsets"] = header[names[0]]["data_offsets"]
    return data


def lie(header, data):
    first_tensor(header)["shape"][0] += 1
    return data


def poison(value):
    def change(header, data):
        begin = header["model.layers.1.mlp.up_proj.weight"]["data_offsets"][0]
        return data[: begin + 40] + struct.pack("<f", value) + data[begin + 44 :]

    return change


def misshape(header, data):
    shape = header["model.layers.0.self_attn.k_proj.weight"]["shape"]
    shape.reverse()
    return data


def drop_tensors(header, data):
    for name in ("model.norm.weight", "model.layers.1.self_attn.v_proj.weight"):
        info = header.pop(name)
        begin, end = info["data_offsets"]
        data = data[:begin] + data[end:]
        for other in header.values():
            offsets = other.get("data_offsets")
            if offsets and offsets[0] >= end:
                other["data_offsets"] = [offsets[0] - (end - begin), offsets[1] - (end - begin)]
    return data


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def gguf(count_tensors=1, dims=(32, 2), offset=0, data=b"\0" * 256):
    head = b"GGUF" + struct.pack("<IQQ", 3, count_tensors, 1)
    head += string("general.architecture") + struct.pack("<I", 8) + string("llama")
    head += string("token_embd.weight") + struct.pack("<I", len(dims))
    head += b"".join(struct.pack("<Q", d) for d in dims) + struct.pack("<IQ", 0, offset)
    return head + b"\0" * (-len(head) % 32) + data


with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    text = text_file(work / "text.txt")
    base = ["--calib", text, "--samples", 8, "--seq-len", 32, "--group-size", 32, "--quiet"]
    cases = 0

    def quantize(model, *extra, out=None):
        out = out or work / f"out{cases}"
        return lpcd("quantize", model, "--out", out, *base, *extra), out

    def refused(name, model, code, *parts, extra=(), out=None, leaves=()):
        global cases
        cases += 1
        done, out = quantize(model, *extra, out=out)
        expect_error(done, code, *parts, name=name)
        left = [f for f in files_below(out) if f.split("/")[0] not in leaves]
        # A run that got as far as its directory may leave its journal, for --resume, but no model.
        check(not [f for f in left if not f.startswith(".lpcd")], f"{name}: left {left}")

    def fresh(**keys):
        return tiny(work / f"model{cases}", **keys)

    refused("missing model", work / "nothing", INPUT + 1, "no such file")
    empty = work / "empty.gguf"
    empty.write_bytes(b"")
    refused("empty GGUF", empty, INPUT, "empty.gguf")
    (work / "folder").mkdir(exist_ok=True)
    refused("no config.json", work / "folder", INPUT, "no config.json")

    model = fresh()
    (model / "model.safetensors").write_bytes(b"")
    refused("empty safetensors", model, INPUT, "model.safetensors")
    model = fresh()
    (model / "model.safetensors").unlink()
    refused("missing safetensors", model, INPUT + 1, "safetensors")
    model = fresh()
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    refused("truncated safetensors", model, INPUT, "model.safetensors")
    for name, change, part in (
        ("header lies about a size", lie, "model.safetensors"),
        ("overlapping offsets", overlap, "model.safetensors"),
        ("wrong shape", misshape, "k_proj.weight is [64, 32], expected [32, 64]"),
        ("NaN weight", poison(float("nan")), "up_proj.weight"),
        ("Inf weight", poison(float("inf")), "up_proj.weight"),
    ):
        model = fresh()
        damage_weights(model, change)
        refused(name, model, INPUT, part, leaves=(".lpcd",))
    model = fresh()
    damage_weights(model, drop_tensors)
    refused("missing tensors", model, INPUT, "model.norm.weight", "model.layers.1.self_attn.v_proj.weight", "2 tensors")
    model = fresh()
    (model / "config.json").write_text("{\"model_type\": \"llama\",")
    refused("broken config.json", model, INPUT, "config.json", "JSON")
    model = fresh()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "model_type": "mamba"}))
    refused("unsupported model", model, INPUT, "mamba", "llama", "qwen2", "qwen3")
    model = fresh(vocab=200)
    refused("vocabulary larger than the embedding", model, INPUT, "256 tokens", "200")

    for name, content in (
        ("truncated GGUF", gguf()[:-200]),
        ("GGUF count lies", gguf(count_tensors=1 << 60)),
        ("GGUF dimensions overflow", gguf(dims=(1 << 62, 1 << 62))),
        ("GGUF offset outside", gguf(offset=1 << 40)),
        ("GGUF without keys", gguf()),
        ("not a GGUF file", b"hello" * 100),
    ):
        path = work / "bad.gguf"
        path.write_bytes(content)
        refused(name, path, INPUT, "bad.gguf")

    good = tiny(work / "good")
    short = work / "short.txt"
    short.write_text("too short")
    refused("calibration text too short", good, INPUT, "short.txt", "--seq-len", extra=["--calib", short])
    short.write_text("")
    refused("calibration text empty", good, INPUT, "empty", extra=["--calib", short])
    refused("calibration text missing", good, IO, "gone.txt", extra=["--calib", work / "gone.txt"])
    refused("calibration misspelt", good, IO, "slef: cannot open", "takes self", extra=["--calib", "slef"])
    refused("memory budget", good, RESOURCE, "--max-memory", "needs at least", extra=["--max-memory", "20M"])
    refused("nonsense memory", good, USAGE, "--max-memory", extra=["--max-memory", "much"])

    other = work / "other"
    other.mkdir()
    (other / "novel.txt").write_text("chapter one")
    done, _ = quantize(good, out=other)
    expect_error(done, IO, "not empty", name="directory with other things")
    check(files_below(other) == ["novel.txt"], "directory with other things: touched")
    done, _ = quantize(good, out=work / "other" / "novel.txt")
    expect_error(done, IO, "is a file", name="output is a file")

    # Root writes everywhere but into the kernel's own file systems.
    done, _ = quantize(good, out="/proc/lpcd-out")
    expect_error(done, IO, "/proc/lpcd-out", name="unwritable output")

    for arguments, parts in (
        (["quantize", good, "--out", work / "x", "--bit", "3"], ["--bit", "--bits"]),
        (["quantize", good, "--out", work / "x", "--methd", "gptq"], ["--method"]),
        (["quantize", good, "--out", work / "x", "--method", "gtpq"], ["did you mean \"gptq\""]),
        (["quantize", good, "--out", work / "x", "--bits", "three"], ["--bits", "2 to 8"]),
        (["quantize", good, "--out", work / "x", "--bits", "16"], ["--bits", "2 to 8"]),
        (["quantize", good, "--out", work / "x", "--format", "gptq:3,g"], ["gptq:2|3|4|8"]),
        (["quantize", good, "--out", work / "x", "--qep", "maybe"], ["--qep", "on"]),
        (["quantize", good], ["--out"]),
        (["quantize", "--out", work / "x"], ["MODEL"]),
        (["quantize", good, "stray", "--out", work / "x"], ["stray"]),
        (["quantize", good, "--out", work / "x", "--lpcd", "residul"], ["did you mean \"residual\""]),
        (["quantize", good, "--out", work / "x", "--qep-exclude", "down_prj"], ["did you mean \"down_proj\""]),
        (["quantize", good, "--out", work / "x", "--format", "gtpq:3,g64"], ["did you mean \"gptq\""]),
        (["quantize", good, "--out", work / "x", "--preset=onecmp"], ["did you mean \"onecomp\""]),
        (["quantise", good], ["did you mean \"quantize\""]),
        (["--versoin"], ["did you mean \"--version\""]),
        (["export", good, "--fromat", "gptq:3,g64"], ["did you mean --format"]),
        (["inspect", good, "--jsn"], ["did you mean --json"]),
        (["eval"], ["PATH"]),
        (["eval", good, "--ppl-mode", "llama"], ["llama.cpp"]),
        (["generate", good], ["prompt"]),
        (["--dry-run", "quantize", good, "--out", work / "x"], ["--dry-run", "stands before the command quantize"]),
        (["--nonsense", "eval", good], ["--nonsense", "stands before"]),
        (["stray", "inspect", good], ["stray", "stands before"]),
        (["inspect", good, "eval", good], ["unexpected argument \"eval\""]),
    ):
        cases += 1
        done = lpcd(*arguments)
        expect_error(done, 3 if arguments[0] == "generate" else USAGE, *parts, name=str(arguments))
    check(not (work / "x").exists(), "usage errors must not create the output")

    # The last one counts, as of every option.
    plain, first, last = (lpcd("quantize", *presets, "--help").stdout
                          for presets in ([], ["--preset", "onecomp"], ["--preset=onecomp", "--preset", "default"]))  # fmt: skip
    check(plain == last and plain != first, "--preset given twice")

    # A command's name where a path is expected is a path.
    done = lpcd("inspect", "eval", cwd=work)
    expect_error(done, IO, "eval: no such file", name="a path called eval")

    # Paths that the system refuses, and damaged files of a run.
    for path, part in ((work / ("n" * 300), "too long"), (work / "loop" / "model", "symbolic links")):
        if not (work / "loop").is_symlink():
            (work / "loop").symlink_to("loop")
        expect_error(lpcd("inspect", path), IO, part, name=str(path)[:80])
        done, _ = quantize(good, "--calib", path, out=work / "y")
        expect_error(done, IO, part, name="calibration text")
        done, _ = quantize(good, out=path)
        expect_error(done, IO, part, name="output")
    done, run = quantize(good, out=work / "run")
    check(done.returncode == 0, done.stderr)
    for name in ("record.json", ".lpcd/run.json"):
        kept = (run / name).read_bytes()
        (run / name).write_text("{}")
        done, _ = quantize(good, "--resume", out=run)
        expect_error(done, INPUT, "JSON", name=f"damaged {name}")
        (run / name).write_bytes(kept)

    # A closed stderr takes no message; the exit code stays that of the error.
    for target in ("2> /dev/full", "2>&-"):
        done = subprocess.run(["sh", "-c", f"exec '{LPCD}' inspect /nonexistent {target}"])
        check(done.returncode == IO, f"{target}: exit {done.returncode}")

    # A result that cannot be printed is no success.
    for arguments in (["inspect", good, "--json"], ["eval", good, "--ppl", text, "--quiet"], ["--help"],
                      ["generate", good, "--prompt", "the river", "--tokens", 4]):  # fmt: skip
        for target in ("> /dev/full", ">&-"):
            command = " ".join(["exec", *(f"'{a}'" for a in [LPCD, *arguments]), target])
            done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True)
            expect_error(done, IO, "standard output", name=command)

    for command in ("quantize", "eval", "export", "generate", "inspect"):
        done = lpcd(command, "--help")
        check(done.returncode == 0 and "usage: lpcd " + command in done.stdout, f"{command} --help")
        longest = max(map(len, done.stdout.splitlines()))
        check(longest <= 80, f"{command} --help has a line of {longest} characters")
    print(f"{cases} cases")
