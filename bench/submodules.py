#!/usr/bin/env python3
"""Output error of every block, and perplexity, for GPTQ, QEP, residual and LPCD with one projector, and
for what onecomp computes (--preset onecomp): the LPCD paper's Figure 1 (arXiv 2512.01546).

Errors are ||X_q - X_f||^2 / ||X_f||^2 on the text to predict, of which no run has seen anything; errors per
token are means of |x_q / |x_q| - x_f / |x_f||^2, which is what the next norm sees of them. Runs are kept in
--work and used again.

  bench/submodules.py --model MODEL.gguf --calib c4.txt --text wiki.test.raw --bits 3,2 --samples 128
"""

import argparse
import math
import os
import pathlib

import runs

# The objectives of the papers, with the projector of the defaults: all tokens alike, fixed strengths.
AS_PUBLISHED = ["--token-weights", "off", "--qep-strength", "0.5", "--qep-exclude", "down_proj",
                "--lpcd-strength", "0.5"]  # fmt: skip
METHODS = {
    # A strength that changes nothing makes a run of plain GPTQ carry the original along and measure errors.
    "gptq": ["--qep-strength", "0.000001", "--lpcd", "none"],
    "qep": ["--lpcd", "none"],
    "residual": ["--lpcd", "residual"],
    "lpcd": ["--lpcd", "all"],
    "onecomp": ["--preset", "onecomp"],
    "onecomp-all": ["--preset", "onecomp", "--lpcd", "all"],
    "qep-published": ["--lpcd", "none", *AS_PUBLISHED],
    "residual-published": ["--lpcd", "residual", *AS_PUBLISHED],
}
COLOURS = {"gptq": "#888888", "qep": "#d08000", "residual": "#2070c0", "lpcd": "#c02020"}


def panel(title, left, curves):
    """Error over blocks, one line a method, logarithmic."""
    width, height, margin = 480, 400, 60
    values = [v for curve in curves.values() for v in curve if v > 0]
    low, high = math.log10(min(values)), math.log10(max(values))
    count = max(len(c) for c in curves.values())
    x = lambda i: left + margin + (width - 1.5 * margin) * i / max(1, count - 1)
    y = lambda v: height - margin - (height - 2 * margin) * (math.log10(v) - low) / max(1e-9, high - low)
    out = [f'<text x="{left + margin}" y="24">{title}</text>']
    for power in range(math.floor(low), math.ceil(high) + 1):
        for tick in (10.0**power, 2 * 10.0**power, 5 * 10.0**power):
            if low <= math.log10(tick) <= high:
                out.append(f'<line x1="{x(0):.1f}" x2="{x(count - 1):.1f}" y1="{y(tick):.1f}" y2="{y(tick):.1f}" '
                           f'stroke="#ddd"/><text x="{left + 8}" y="{y(tick) + 4:.1f}">{tick:g}</text>')  # fmt: skip
    for n, (name, curve) in enumerate(curves.items()):
        points = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in enumerate(curve) if v > 0)
        colour = COLOURS.get(name, "#208020")
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
                   f'<text x="{left + margin + 80 * n}" y="{height - 12}" fill="{colour}">{name}</text>')  # fmt: skip
    for i in range(0, count, 5):
        out.append(f'<text x="{x(i):.1f}" y="{height - margin + 16}" text-anchor="middle">{i}</text>')
    return out


def svg(path, bits, errors, token_errors):
    out = ['<svg xmlns="http://www.w3.org/2000/svg" width="980" height="400" font-family="sans-serif" font-size="12">'
           '<rect width="100%" height="100%" fill="white"/>',
           *panel(f"Error of each block's output on held-out text, {bits} bits", 0, errors),
           *panel("The same per token", 490, token_errors), "</svg>\n"]  # fmt: skip
    pathlib.Path(path).write_text("\n".join(out))


def print_blocks(curves, token_curves):
    """Errors of every block, one column a method."""
    columns = list(curves.items()) + [(f"{name}, per token", curve) for name, curve in token_curves.items()]
    print("| block | " + " | ".join(name for name, _ in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for block in range(len(columns[0][1])):
        print(f"| {block} | " + " | ".join(f"{curve[block]:.5f}" for _, curve in columns) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    runs.add_arguments(parser)
    parser.add_argument("--text", required=True, help="text to predict")
    parser.add_argument("--bits", default="4,3,2")
    parser.add_argument("--max-tokens", type=int, default=65536)
    parser.add_argument("--methods", default="gptq,qep,residual,lpcd,onecomp")
    parser.add_argument("--blocks", action="store_true", help="print the errors of every block, not only two")
    parser.add_argument("--svg", metavar="FILE", help="draw the errors of every block: FILE-BITS.svg")
    args, extra = parser.parse_known_args()  # the rest goes to quantize

    kept = runs.Runs(args)
    for bits in args.bits.split(","):
        curves, token_curves = {}, {}
        print(f"{os.path.basename(args.model)}, {bits} bits, groups of {args.group}, {args.samples} x {args.seq_len} "
              f"tokens of {os.path.basename(args.calib)}, perplexity on the first {args.max_tokens} tokens of "
              f"{os.path.basename(args.text)}")  # fmt: skip
        rows = []
        original = None
        for name in args.methods.split(","):
            out = kept.quantize(name, bits, METHODS[name], extra)
            result = kept.divergence(out, args.text, args.max_tokens)
            record = runs.record_of(out)
            original = result["reference"]["perplexity"]
            errors = curves[name] = result["reference"]["block_errors"]
            angles = token_curves[name] = result["reference"]["block_token_errors"]
            cost = record["cost"]
            rows.append((name, result["perplexity"], result["reference"]["kl_mean"], errors[len(errors) // 2],
                         errors[-1], angles[-1], cost["total_seconds"], cost["peak_memory_bytes"]))  # fmt: skip
        print("| method | perplexity | excess | KL divergence | error, middle block | error, last block "
              "| per token, last block | time | memory |")  # fmt: skip
        print("|---|---|---|---|---|---|---|---|---|")
        print(f"| original | {original:.2f} | | | | | | | |")
        for name, ppl, kl, middle, last, token, seconds, peak in rows:
            print(f"| {name} | {ppl:.2f} | {ppl - original:.2f} | {kl:.4f} | {middle:.5f} | {last:.5f} | {token:.5f} "
                  f"| {seconds:.0f} s | {peak / 2**20:.0f} MiB |")  # fmt: skip
        for what, of in [("errors", curves), ("errors per token", token_curves)]:
            others = {n: c for n, c in of.items() if n != "lpcd"}
            if "lpcd" in of and others:
                lowest = sum(all(e <= c[i] for c in others.values()) for i, e in enumerate(of["lpcd"]))
                print(f"{what}: lpcd is the lowest curve in {lowest} of {len(of['lpcd'])} blocks; at the last block "
                      + ", ".join(f"{of['lpcd'][-1] / c[-1] - 1:+.1%} against {n}" for n, c in others.items()))  # fmt: skip
        if args.blocks:
            print_blocks(curves, token_curves)
        if args.svg:
            svg(f"{args.svg}-{bits}.svg", bits, curves, token_curves)


if __name__ == "__main__":
    main()
