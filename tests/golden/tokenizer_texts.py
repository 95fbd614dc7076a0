"""Texts that are hard on tokenizers: a fixed list, random strings, texts of all characters."""

import random

LANGUAGES = [
    "The quick brown fox jumps over the lazy dog. It's 9:41 AM; they've paid $1,234.56 (≈ €1.140,00)!",
    "Größe, naïve café, Ærøskøbing, Łódź, żółć, dž ǅ Ǆ, ﬁn ﬂow ﬀ ﬃ, ẞ ß",
    "cafe\u0301 A\u030a o\u0302\u0323 o\u0323\u0302 q\u0307\u0323 \u1e9b\u0323 \u2126 \u212b \u212a",
    "我能吞下玻璃而不伤身体。東京都は日本の首都です。한국어 문장도 있습니다. ㄱㄴㄷ ｶﾞｷﾞ",
    "\u1112\u1161\u11ab\u1100\u116e\u11a8 \uac00\u11a8 \u1100\u1161\u1100\u1161\u11a8",
    "لغة عربية مع تَشْكِيل وأرقام ١٢٣٤٥٦ و۱۲۳ \u0651\u064e\u0651 שָׁלוֹם עולם",
    "हिन्दी में लिखा हुआ वाक्य १२३४ क्षत्रिय ज़ \u0958 \u0915\u093c বাংলা ১২৩ தமிழ் తెలుగు \u0c15\u0c3c ಕನ್ನಡ മലയാളം",
    "ภาษาไทยไม่มีช่องว่าง ๑๒๓ ລາວ ខ្មែរ မြန်မာ བོད་སྐད་ ༡༢༣",
    "Русский текст, ещё ёлка; Ελληνικά ΑΣΣ ς; Հայերեն; ქართული; አማርኛ ፩፪፫; ᏣᎳᎩ ꮳꮃꭹ",
    "𝕌𝕟𝕚𝕔𝕠𝕕𝕖 𝟙𝟚𝟛 𝒜 𐐷 𐐏 𠜎𠜱 🄰🅰🆎 ⓐⓩ ① ② ⅷ ⅻ ½ ¼ ² ³ ¹ ₁ ₂ 〇 一二三 ㊀ ㊉",
]
EMOJI = [
    "👩‍👩‍👧‍👦 👨🏽‍💻 🤦🏼‍♂️ 🏳️‍🌈 🇩🇪🇺🇸🇯 ❤️ ❤ ☺︎ 1️⃣ #️⃣ 🧑🏿‍🚀👍🏻👍🏿😀😃",
    "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f 🫠🫡🫢🪿🩷",
]
SPACES = [
    "",
    " ",
    "  ",
    "\n",
    "\r\n\r\n \r\n\t\n",
    "a  b   c    d \t e\t\tf \u00a0g\u00a0 \u1680h \u2000\u2001\u2002\u2003\u2009\u200a i \u202f \u205f \u3000 j",
    "line\u0085next\u2028sep\u2029par\x0bvt\x0cff\x1cfs\x1dgs\x1ers\x1fus\n\n\n  \n end  ",
    "zero\u200bwidth \u200c\u200d joiner \u2060 \ufeff bom \u180e mongolian \u00ad shy",
    "trailing   ",
    "   leading",
    "\n\n   \n\n\n x \n \n y\r\r\n",
    " \u3000 \u3000x\u00a0\u00a0\u00a0y \u2003\u2003z",
    "▁ ▁▁ a▁b ▁c ▁▁▁ d▁ ",
    "Ġ Ċ ĠĠa ÂĠ â Ã© ł Ń ",
]
CONTROL = [
    "\x00",
    "a\x00b\x00\x00 c",
    "".join(chr(c) for c in range(0x20)),
    "".join(chr(c) for c in range(0x7F, 0xA1)),
    "\ufffd \ufffe \uffff \U0010ffff \ue000 \U000f0000 \u0378 \u0380",
    "<0x0A> <0x41> <0xE2><0x96><0x81> <0x> <0xZZ> <unk> <unk><unk>",
]
CONTRACTIONS = [
    "I'm you're he's we've they'll I'd can't IT'S DON'T WE'LL THEY'VE i'M 'S 'T 'Re 'vE 'lL 'D",
    "'ſ it'ſ 'ſſ don’t it’s 's't're've'm'll'd 'sa 'ta ''s '''t 'll'll x'rex 'LLx 'Kx '\u212a 'ﬆ 'ﬅ",
    "'\u017fs 'S\u0301 's\u0301 'l l 'v e 'r\u0301e ' s 'S'T'M",
]
CODE = [
    "def f(x: int) -> str:\n    return f\"{x!r:>{10}}\"  # comment\n\n\nif __name__ == '__main__':\n\tf(0x1F)\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 3.14e-10f; } /* ... */ // =====\n#include <x.h>\n",
    '<html><body class="a">&nbsp;&lt;</body></html>\n{"key": [1, 2.5, null, true]}\n\\\\n \\u00e9 $$x^2_1$$',
    "SELECT * FROM t WHERE a!='b' AND c<>3;-- $%^&*()_+-=[]{}|;:,.<>/?`~@#",
    "0 1 12 123 1234 12345 123456 1234567 12,345,678.90 1e5 0xFF 3٣४५6 ١٢٣٤ 1²3 ⅷ9 a1b2c3 1a 12ab34",
]
INVALID = [
    b"\xff\xfe\xfd",
    b"a\x80b\xc3(c\xe2\x82d\xf0\x9f\x98e\xf0\x9fz",
    b"\xc0\xaf \xe0\x80\xaf \xf0\x80\x80\xaf \xed\xa0\x80 \xed\xbf\xbf \xf4\x90\x80\x80 \xf8\x88\x80\x80\x80",
    b"\xe2\x82",
    b"ok \xf0\x90\x80 \xf4\x8f\xbf\xbf \xf4\x8f\xbf",
    b"\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41",
    bytes(range(128, 256)),
]
LONG = [
    "a" * 5000,
    " " * 5000,
    " " * 700 + "x",
    "\n" * 3000 + " " * 300 + "\n",
    "ab" * 2000,
    "!" * 3000 + "?" * 1000,
    "1" * 2500,
    "é" * 1000 + "e\u0301" * 1000,
    "\u0301\u0323" * 800,
    "中" * 2000,
    "😀" * 500,
    "aA" * 500 + "Aa" * 500 + "A" * 800,
    "\u00a0" * 600 + " " * 10 + "\t" * 400 + "z",
    "word " * 1000,
]
PIECES = [
    "a", "b", "e", "s", "t", "the", "The", "THE", "ing", "hello", "World", "ll", "re", " ", "  ", "   ", "\n",
    "\r\n", "\r", "\t", "\u00a0", "\u2003", "\u2028", "\u0085", "\u3000", "\u200b", "\u200d", "\u180e", "'", "'s",
    "'S", "'ll", "'LL", "'ſ", "’s", "\u017f", "\u212a", "0", "1", "12", "2024", "٣", "४", "²", "½", "Ⅷ", "①", "é",
    "e\u0301", "\u0301", "\u0323", "\u030a", "A\u030a", "\u0345", "ß", "İ", "ı", "Σ", "ς", "Ǆ", "ǅ", "ﬁ", "ﬀ",
    "中", "文", "\u3042", "\u30a2", "\uff71\uff9e", "가", "\u1100", "\u1161", "\u11a8", "ก", "ำ", "\u0e31", "न", "\u093f", "\u094d",
    "क\u093c", "\u0958", "م", "\u064e", "\u0651", "ש\u05c1", "😀", "👍🏽", "👩‍💻", "🇩🇪", "❤️", "\ufe0f", "\U0001f3fd",
    "\x00", "\x01", "\x1f", "\x7f", "\ufeff", "\ufffd", "\ue000", "\U0010fffd", "▁", "▁▁", "▁the", "Ġ", "Ċ", "!",
    "!!", "?", ".", ",", "...", "-", "--", "_", "/", "\\", "(", ")", "[", "]", "{", "}", "<", ">", "</", "=", "==",
    "+", "$", "€", "%", "&", "#", "@", "~", "^", "|", "`", '"', "“", "”", "—", "·", "。", "、", "！", "<0x0A>", "<0x",
    "\u0c3c", "\u09fe", "\u1ab0", "\u0898", "𝒜", "𠜎", "\U00031350", "\U0002ebf0", "\u1c89", "\U0001e4d0",
]  # fmt: skip


def long_runs():
    """Lines that take algorithms of quadratic time forever."""
    n = 200_000
    runs = [
        "a" * n,
        " " * n,
        "\n" * n,
        " " * n + "x",
        "ab" * (n // 2),
        "!" * n,
        "7" * n,
        "中" * (n // 3),
    ]
    runs += ["\u0301\u0323" * (n // 4), " \n" * (n // 2), "the quick brown fox " * (n // 20)]
    return [t.encode() for t in runs]


def stress():
    """The fixed list, each text alone and all of them as one, as bytes."""
    texts = LANGUAGES + EMOJI + SPACES + CONTROL + CONTRACTIONS + CODE
    whole = "\n".join(texts)
    texts = (
        texts
        + [whole, " ".join(texts), whole.replace(" ", ""), whole.upper(), whole.lower()]
        + LONG
    )
    return [t.encode() for t in texts] + INVALID + [b" ".join(INVALID)]


def with_tokens(tokens, rng, count):
    """Added tokens in all kinds of company: glued together, cut, amid spaces and words."""
    glue = ["", "", " ", "  ", "\n", "a", " a ", "é", "_", "1", "▁", "<", ">", "|", "\u00a0", "\t "]
    texts = []
    for _ in range(count):
        text = rng.choice(glue)
        for _ in range(rng.randint(1, 5)):
            token = rng.choice(tokens)
            kind = rng.randrange(8)
            if kind == 0:
                token = token[: rng.randint(0, len(token))]
            elif kind == 1:
                token = token[rng.randint(0, len(token)) :]
            elif kind == 2:
                token = token.upper()
            elif kind == 3:
                token += token[rng.randint(0, len(token)) :]
            text += token + rng.choice(glue)
        texts.append(text.encode())
    return texts


def random_texts(seed, count, tokens):
    """Strings of nasty pieces, most of them short; every eighth has a byte cut out."""
    rng = random.Random(seed)
    pieces = PIECES + list(tokens)[:10]
    texts = []
    for i in range(count):
        length = rng.randint(1, 12) if i % 50 else rng.randint(100, 1000)
        text = "".join(rng.choice(pieces) for _ in range(length)).encode()
        if i % 8 == 0 and len(text) > 1:
            at = rng.randrange(len(text))
            text = text[:at] + text[at + 1 :]
        texts.append(text)
    return texts


def every_character():
    """All characters, each in a few places, a block at a time.

    Of the ideographs, syllables and private characters, which are alike, the first and last few
    blocks of each range."""
    alike = [
        (0x3400, 0x4D00),
        (0x4E00, 0x9F00),
        (0xAC00, 0xD700),
        (0xE000, 0xF800),
        (0x17000, 0x18700),
    ]
    alike += [
        (0x20000, 0x2A600),
        (0x2A700, 0x2EB00),
        (0x2EC00, 0x31300),
        (0x31400, 0x32300),
        (0x32400, 0xE0000),
    ]
    alike += [(0xE0200, 0x10FF00)]
    texts = []
    for block in range(0, 0x110000, 128):
        if any(first + 256 <= block < last - 256 for first, last in alike):
            continue
        chars = [chr(c) for c in range(block, block + 128) if not 0xD800 <= c < 0xE000]
        if chars:
            texts.append("".join(f"a{c}a 1{c}1 {c}{c}!{c} \n{c}\n" for c in chars).encode())
    return texts
