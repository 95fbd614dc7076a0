#!/usr/bin/env python3
"""Zero-shot accuracy of a model and of what GPTQ, QEP and LPCD make of it at a few widths, with one projector.
The mean is over the files; +- is one standard error of it, with the items as the only source of chance.

  bench/zero_shot.py --model MODEL.gguf --calib c4.txt --bits 3,2 --limit 500 arc_easy.jsonl piqa.jsonl ...

Runs are kept in --work, under the same names as those of bench/submodules.py, and used again.
"""

import argparse
import math
import pathlib

import runs
from submodules import METHODS


def row(name, tasks):
    # The accuracy that is usual for a task: normalised by the length of the answers where they differ.
    pairs = []
    for task in tasks:
        figure = "acc_norm" if "acc_norm" in task else "acc"
        pairs.append((100 * task[figure], 100 * task[f"{figure}_stderr"]))
    mean = sum(value for value, _ in pairs) / len(pairs)
    error = math.sqrt(sum(e * e for _, e in pairs)) / len(pairs)
    cells = " | ".join(f"{value:.1f}" for value, _ in pairs)
    print(f"| {name} | {cells} | {mean:.2f} +- {error:.2f} |", flush=True)
    return mean


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    runs.add_arguments(parser)
    parser.add_argument("--bits", default="3,2")
    parser.add_argument("--methods", default="gptq,qep,residual,lpcd")
    parser.add_argument("--limit", type=int, default=500, help="first items of each file; 0: all")
    args, extra = parser.parse_known_args()  # the rest goes to quantize

    kept = runs.Runs(args)
    original = kept.tasks(args.model, args.files, args.limit)
    names = " | ".join(f"{task['name']} ({task['n']})" for task in original)
    print(f"| model | {names} | mean |\n|---|{'---|' * len(original)}---|")
    row("original", original)
    for bits in args.bits.split(","):
        means = {}
        for name in args.methods.split(","):
            out = kept.quantize(name, bits, METHODS[name], extra)
            means[name] = row(f"{name}, {bits} bits", kept.tasks(out, args.files, args.limit))
        best = max(means, key=means.get)
        print(f"best mean at {bits} bits: {best}")


if __name__ == "__main__":
    main()
