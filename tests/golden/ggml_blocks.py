"""Every ggml block type decodes to the bits that the gguf package computes."""

import pathlib
import tempfile

from support import check, need, tool

np, gguf, quants = need("numpy", "gguf", "gguf.quants")

# Offsets of the fp16 fields of each type.
TYPES = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}
# +-0, smallest and largest subnormal, smallest normal, 1, -1, largest, a few ordinary ones, Inf, NaN.
SPECIAL = [0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x8400, 0x3C00, 0xBC00, 0x7BFF,
           0xFBFF, 0x2E66, 0xAE66, 0x1234, 0x9234, 0x7C00, 0xFC00, 0x7E00, 0xFE01]  # fmt: skip
ROWS = 64
BLOCKS_PER_ROW = 32


def random_blocks(name, rng):
    """Blocks of random bytes: scales uniform over all fp16 patterns, and rows of special scales."""
    elems, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    blocks = rng.integers(0, 256, (ROWS * BLOCKS_PER_ROW, size), dtype=np.uint8)
    blocks[0, :] = 0x00
    blocks[1, :] = 0xFF
    half = len(blocks) // 2
    for offset in TYPES[name]:
        # One half: scales of the size that models have; the other: every kind of special value.
        usual = (rng.standard_normal(half) * 0.02).astype(np.float16)
        special = rng.choice(np.array(SPECIAL, dtype=np.uint16), len(blocks) - half - 2)
        blocks[2 : half + 2, offset : offset + 2] = usual.view(np.uint8).reshape(-1, 2)
        blocks[half + 2 :, offset : offset + 2] = special.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(ROWS, BLOCKS_PER_ROW * size)


def main():
    rng = np.random.default_rng(20240501)
    with tempfile.TemporaryDirectory() as folder:
        source, result = pathlib.Path(folder, "blocks"), pathlib.Path(folder, "f32")
        for name in TYPES:
            blocks = random_blocks(name, rng)
            source.write_bytes(blocks.tobytes())
            tool("decode", name, source, result)
            with np.errstate(all="ignore"):
                expected = quants.dequantize(blocks, gguf.GGMLQuantizationType[name]).ravel()
            found = np.frombuffer(result.read_bytes(), dtype=np.float32)
            check(found.shape == expected.shape, f"{name}: {found.shape} values")
            # NaN is NaN: its payload is up to the order of operands that a compiler chose.
            same = found.view(np.uint32) == expected.view(np.uint32)
            same |= np.isnan(found) & np.isnan(expected)
            bad = np.flatnonzero(~same)
            check(
                bad.size == 0,
                f"{name}: {bad.size} values differ, first at {bad[:1]}: "
                f"{found[bad[:1]]} for {expected[bad[:1]]}",
            )
            print(f"{name}: {found.size} values, {np.isfinite(found).sum()} finite, same bits")


main()
