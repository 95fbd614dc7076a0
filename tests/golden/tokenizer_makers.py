"""Tokenizers with the configurations of the known families, trained on the spot on a little text.

Each is a dict: the tokenizer.json. Vocabulary and merges are small; everything else is as in the
files that the families ship.
"""

import json
import pydoc_data.topics
import random

import tokenizers
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

import tokenizer_texts

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + TAIL
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + TAIL
UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (
    UPPER + "*" + LOWER + "+" + CONTRACTIONS + "?|" + UPPER + "+" + LOWER + "*" + CONTRACTIONS + "?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    UPPER + "*" + LOWER + "+|" + UPPER + "+" + LOWER + r"*|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
]
QWEN35 = (
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


CATEGORIES = "Lu Lt Lm Lo Ll Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cf Co"
ADDED = "<a>|<a|a>|<a><b>|tok|token|the token| sp|sp |\n\n|é|_x_|▁k|123|<x>|x>".split("|")


def training_text():
    rng = random.Random(1)
    lines = []
    for topic in sorted(pydoc_data.topics.topics):
        lines += pydoc_data.topics.topics[topic][:1500].splitlines(keepends=True)
    nasty = tokenizer_texts.LANGUAGES + tokenizer_texts.EMOJI + tokenizer_texts.CODE
    nasty += tokenizer_texts.CONTRACTIONS + tokenizer_texts.SPACES
    for _ in range(3):
        lines += [t + "\n" for t in nasty]
    lines += ["".join(rng.choice(tokenizer_texts.PIECES) for _ in range(20)) for _ in range(300)]
    return lines


def added(id, content, special=True, **flags):
    token = {"id": id, "content": content, "single_word": False, "lstrip": False, "rstrip": False}
    token |= {"normalized": not special, "special": special}
    return token | flags


def split(pattern, behavior="Isolated", invert=False):
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}


def byte_level(add_prefix_space=False, use_regex=False):
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": True,
        "use_regex": use_regex,
    }


def sequence(kind, *parts):
    key = {
        "normalizer": "normalizers",
        "pre": "pretokenizers",
        "post": "processors",
        "decoder": "decoders",
    }[kind]
    return {"type": "Sequence", key: list(parts)}


def template(front, back=()):
    tokens = {name: id for name, id in list(front) + list(back)}
    piece = lambda name: {"SpecialToken": {"id": name, "type_id": 0}}  # noqa: E731
    single = (
        [piece(n) for n, _ in front]
        + [{"Sequence": {"id": "A", "type_id": 0}}]
        + [piece(n) for n, _ in back]
    )
    special = {n: {"id": n, "ids": [i], "tokens": [n]} for n, i in tokens.items()}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": special,
    }


def assemble(model, **parts):
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    whole |= {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None}
    return whole | parts | {"model": model}


def number(tokens, vocab):
    """Gives added tokens the ids that their place implies."""
    next_id = len(vocab)
    for token in tokens:
        if token["content"] in vocab:
            token["id"] = vocab[token["content"]]
        else:
            token["id"] = next_id
            next_id += 1
    return tokens


class Models:
    """Trained once, used by many configurations."""

    def __init__(self):
        lines = training_text()
        self.byte_level = self._byte_level(
            lines, Regex(LLAMA3), pre_tokenizers.ByteLevel.alphabet()
        )
        self.gaps = self._byte_level(lines, Regex(QWEN2), [])
        self.sentencepiece = self._sentencepiece(lines)
        self.pairs = self._pairs()

    @staticmethod
    def _byte_level(lines, pattern, alphabet):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(pattern, "isolated"),
                pre_tokenizers.ByteLevel(False, use_regex=False),
            ]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=4000, initial_alphabet=alphabet, show_progress=False
        )
        tokenizer.train_from_iterator(lines, trainer)
        return json.loads(tokenizer.to_str())["model"]

    @staticmethod
    def _sentencepiece(lines):
        # Words as SentencePiece sees them; then bytes in front, as in Llama 2.
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=3000, limit_alphabet=250, show_progress=False)
        tokenizer.train_from_iterator(lines, trainer)
        model = json.loads(tokenizer.to_str())["model"]
        tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
        tokens += [t for t in sorted(model["vocab"], key=model["vocab"].get) if t not in tokens]
        merges = list(model["merges"])
        for n in range(2, 17):  # runs of spaces
            run = "▁" * n
            if run not in tokens:
                tokens.append(run)
                merges.append(["▁" * (n - 1), "▁"])
        vocab = {t: i for i, t in enumerate(tokens)}
        return {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": merges,
        }

    @staticmethod
    def _pairs():
        """Every two neighbouring bytes merge, so that each word boundary shows in the ids."""
        chars = sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [[a, b] for a in chars for b in chars]
        random.Random(2).shuffle(merges)
        vocab = {t: i for i, t in enumerate(chars + ["".join(m) for m in merges])}
        return {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [" ".join(m) for m in merges],
        }


def byte_level_families(m):
    """name -> tokenizer.json of GPT-2, Llama 3, Qwen, SmolLM and others with their regexes."""
    model, gaps = m.byte_level, m.gaps
    out = {}
    eot = number([added(0, "<|endoftext|>")], model["vocab"])
    decoder = byte_level(True, True)
    out["gpt2"] = assemble(
        model,
        added_tokens=eot,
        pre_tokenizer=byte_level(False, True),
        post_processor=byte_level(),
        decoder=decoder,
    )
    out["gpt2-prefix-space"] = assemble(
        model, added_tokens=eot, pre_tokenizer=byte_level(True, True), decoder=decoder
    )
    names = ["<|begin_of_text|>", "<|end_of_text|>"] + [
        f"<|reserved_special_token_{i}|>" for i in range(250)
    ]
    names += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokens = number([added(0, n) for n in names], model["vocab"])
    bos = template([("<|begin_of_text|>", tokens[0]["id"])])
    out["llama3"] = assemble(
        model | {"ignore_merges": True},
        added_tokens=tokens,
        pre_tokenizer=sequence("pre", split(LLAMA3), byte_level()),
        post_processor=sequence("post", byte_level(), bos),
        decoder=decoder,
    )
    names = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|object_ref_start|>",
        "<|vision_pad|>",
    ]
    plain = [
        "<tool_call>",
        "</tool_call>",
        "<|fim_prefix|>",
        "<|repo_name|>",
        "<think>",
        "</think>",
    ]
    tokens = [added(0, n, normalized=False) for n in names] + [
        added(0, n, False, normalized=False) for n in plain
    ]
    for name, pattern in {"qwen2": QWEN2, "qwen35": QWEN35}.items():
        out[name] = assemble(
            model,
            added_tokens=number(tokens, model["vocab"]),
            normalizer={"type": "NFC"},
            pre_tokenizer=sequence("pre", split(pattern), byte_level()),
            post_processor=byte_level(),
            decoder=byte_level(),
        )
    names = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<repo_name>",
        "<reponame>",
        "<file_sep>",
        "<jupyter_code>",
    ]
    tokens = number([added(0, n) for n in names], gaps["vocab"])
    out["smollm"] = assemble(
        gaps,
        added_tokens=tokens,
        pre_tokenizer=sequence(
            "pre", {"type": "Digits", "individual_digits": True}, byte_level(False, True)
        ),
        post_processor=byte_level(True, True),
        decoder=decoder,
    )
    for name, parts in {
        "o200k": [split(O200K), byte_level()],
        "tekken": [split(TEKKEN), byte_level()],
        "deepseek": [split(pattern) for pattern in DEEPSEEK] + [byte_level()],
        "cl100k-removed-inverted": [split(LLAMA3, "Removed", True), byte_level()],
        "falcon": [
            {"type": "Punctuation", "behavior": "Contiguous"},
            byte_level(False, True),
            {"type": "Digits", "individual_digits": False},
            split("[0-9][0-9][0-9]"),
        ],
    }.items():
        out[name] = assemble(
            model, added_tokens=eot, pre_tokenizer=sequence("pre", *parts), decoder=decoder
        )
    return out


def sentencepiece_families(m):
    """name -> tokenizer.json of Llama 2 and Mistral, old and new, and variations."""
    model = m.sentencepiece
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    decoder = sequence(
        "decoder",
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    )
    specials = ["<unk>", "<s>", "</s>"]
    inst = ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]"]
    tokens = number([added(0, n) for n in specials + inst], model["vocab"])
    loose = number(
        [added(0, n, normalized=True) for n in specials] + [added(0, n, False) for n in inst],
        model["vocab"],
    )
    bos = template([("<s>", 1)])
    out = {}
    out["llama2"] = assemble(
        model,
        added_tokens=tokens,
        normalizer=sequence("normalizer", prepend, replace),
        post_processor=bos,
        decoder=decoder,
    )
    out["llama2-normalized-tokens"] = out["llama2"] | {"added_tokens": loose}
    out["llama2-eos"] = out["llama2"] | {"post_processor": template([("<s>", 1)], [("</s>", 2)])}
    for scheme in ("first", "always", "never"):
        for cut in (False, True):
            metaspace = {
                "type": "Metaspace",
                "replacement": "▁",
                "prepend_scheme": scheme,
                "split": cut,
            }
            fused = sequence("decoder", {"type": "ByteFallback"}, {"type": "Fuse"}, metaspace)
            out[f"mistral-{scheme}{'-split' if cut else ''}"] = assemble(
                model,
                added_tokens=tokens,
                pre_tokenizer=metaspace,
                post_processor=bos,
                decoder=fused if cut else metaspace,
            )
    # Some bytes are missing, so that there are unknown characters.
    missing = {f"<0x{b:02X}>" for b in range(0, 256, 3)}
    few = {t: i for t, i in model["vocab"].items() if t not in missing}
    few = {t: i for i, t in enumerate(few)}
    for fuse in (False, True):
        for fallback in (False, True):
            holes = model | {"vocab": few, "fuse_unk": fuse, "byte_fallback": fallback}
            out[f"unknown-fuse{fuse:d}-bytes{fallback:d}"] = assemble(
                holes,
                added_tokens=number([added(0, n) for n in specials], few),
                normalizer=sequence("normalizer", prepend, replace),
                decoder=decoder,
            )
    out["silent-drop"] = assemble(model | {"vocab": few, "unk_token": None, "byte_fallback": False})
    return out


def odd_parts(m):
    """name -> tokenizer.json: every option of every component at least once."""
    model = m.byte_level
    out = {}
    bytes_only = byte_level()
    for behavior in ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"):
        for invert in (False, True):
            for kind, pattern in {
                "regex": {"Regex": r"\p{N}|[a-e]+|\s"},
                "string": {"String": "e"},
            }.items():
                part = {"type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert}
                name = f"split-{behavior}-{kind}{'-inverted' if invert else ''}"
                out[name] = assemble(
                    model, pre_tokenizer=sequence("pre", part, bytes_only), decoder=bytes_only
                )
        part = {"type": "Punctuation", "behavior": behavior}
        out[f"punctuation-{behavior}"] = assemble(
            model, pre_tokenizer=sequence("pre", part, bytes_only)
        )
    empty = split(r"x*|(?=b)", "MergedWithNext")
    out["split-empty-matches"] = assemble(model, pre_tokenizer=sequence("pre", empty, bytes_only))
    out["whitespace-split"] = assemble(
        model, pre_tokenizer=sequence("pre", {"type": "WhitespaceSplit"}, bytes_only)
    )
    replace = {"type": "Replace", "pattern": {"Regex": r"\s+|e(?=s)"}, "content": "_x_"}
    for name, normalizer in {
        "nfc": {"type": "NFC"},
        "nfd": {"type": "NFD"},
        "nfkc": {"type": "NFKC"},
        "nfkd": {"type": "NFKD"},
        "lowercase": {"type": "Lowercase"},
        "strip": {"type": "Strip", "strip_left": True, "strip_right": True},
        "strip-left": {"type": "Strip", "strip_left": True, "strip_right": False},
        "strip-right": {"type": "Strip", "strip_left": False, "strip_right": True},
        "replace": replace,
        "nested": sequence(
            "normalizer", {"type": "Lowercase"}, sequence("normalizer", {"type": "NFKC"}, replace)
        ),
    }.items():
        tokens = [
            added(0, "Straße", False),
            added(0, "Ａb", False),
            added(0, "<X>"),
            added(0, " hi ", False),
        ]
        out[f"normalizer-{name}"] = assemble(
            model,
            normalizer=normalizer,
            pre_tokenizer=byte_level(False, True),
            decoder=byte_level(),
            added_tokens=number(tokens, model["vocab"]),
        )
    # Added tokens with every combination of flags, some inside others.
    tokens = []
    for i, content in enumerate(ADDED):
        bits = i * 7 % 16
        flags = {"lstrip": bool(bits & 1), "rstrip": bool(bits & 2), "single_word": bool(bits & 4)}
        tokens.append(added(0, content, bool(i & 1), **flags, normalized=bool(bits & 8)))
    for name, normalizer in {
        "plain": None,
        "lower": {"type": "Lowercase"},
        "prepend": {"type": "Prepend", "prepend": "▁"},
    }.items():
        out[f"added-{name}"] = assemble(
            model,
            normalizer=normalizer,
            pre_tokenizer=byte_level(True, True),
            decoder=byte_level(),
            added_tokens=number([dict(t) for t in tokens], model["vocab"]),
        )
    for flag in ("lstrip", "rstrip", "single_word"):
        flagged = number([added(0, c, **{flag: True}) for c in ADDED], model["vocab"])
        out[f"added-all-{flag}"] = assemble(
            model, pre_tokenizer=byte_level(False, True), added_tokens=flagged
        )
    out["no-decoder"] = assemble(model, pre_tokenizer=byte_level(False, True))
    return out


def boundary_probes(m):
    """name -> tokenizer.json whose ids show every word boundary, for texts with all characters."""
    out = {}
    simple = [
        {"type": "Digits", "individual_digits": True},
        split(r"\p{Han}+"),
        {"type": "Punctuation", "behavior": "Isolated"},
        {"type": "WhitespaceSplit"},
    ]
    parts = {
        "gpt2": [byte_level(False, True)],
        "llama3": [split(LLAMA3), byte_level()],
        "o200k": [split(O200K), byte_level()],
        "deepseek": [split(pattern) for pattern in DEEPSEEK] + [byte_level()],
        "simple": simple + [byte_level()],
        "perl-classes": [split(r"\s"), split(r"\d+"), split(r"\w+"), split(r"\h"), byte_level()],
        "categories": [split(rf"\p{{{c}}}") for c in CATEGORIES.split()] + [byte_level()],
        "boundary": [split(r"\b|\B(?=1)"), byte_level()],
    }
    for name, steps in parts.items():
        out[f"every-character-{name}"] = assemble(m.pairs, pre_tokenizer=sequence("pre", *steps))
    for form in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase"):
        out[f"every-character-{form.lower()}"] = assemble(
            m.pairs, normalizer={"type": form}, pre_tokenizer=byte_level()
        )
    return out


def load(tokenizer_json):
    return tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json))
