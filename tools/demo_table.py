#!/usr/bin/env python3
"""The table that demo.sh ends with: `demo_table.py LPCD MODEL FOLDER NAME...`.

FOLDER/NAME is a finished run and FOLDER/NAME.json what `lpcd eval --json` said about it.
"""

import json
import pathlib
import subprocess
import sys

MIB = 1 << 20


def lay_out(header, rows):
    """Lines of a table: first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    line = lambda cells: "  ".join(
        cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(cells, widths))
    )
    rule = "  ".join("-" * width for width in widths)
    return [line(header), rule, *map(line, rows)]


def main():
    command, model, folder, *names = sys.argv[1:]
    inspected = json.loads(subprocess.run([command, "inspect", model, "--json"], check=True, stdout=subprocess.PIPE).stdout)
    layers = [t for t in inspected["model"]["tensors"]["list"] if ".attn_" in t["name"] or ".ffn_" in t["name"]]
    layers = [t for t in layers if len(t["shape"]) == 2]
    stored = sum(t["bytes"] for t in layers)
    weights = sum(t["shape"][0] * t["shape"][1] for t in layers)

    rows, sampling = [], 0.0
    for name in names:
        run = json.loads((pathlib.Path(folder) / name / "record.json").read_text())
        figures = json.loads((pathlib.Path(folder) / f"{name}.json").read_text())
        reference, cost = figures["reference"], run["cost"]
        sampling += cost["calibration_seconds"]
        rows.append([
            {"gptq": "GPTQ", "lpcd": "GPTQ + QEP + LPCD"}[name],
            f"{run['bits_per_weight']:.2f}",
            f"{run['bits_per_weight'] * weights / 8 / MIB:.1f} MiB",
            f"{run['outputs'][0]['weight_bytes'] / MIB:.1f} MiB",
            f"{figures['perplexity']:.2f}",
            f"{reference['kl_mean']:.3f}",
            f"{100 * reference['top1_agreement']:.1f} %",
            f"{cost['total_seconds'] - cost['calibration_seconds']:.0f} s",
            f"{cost['peak_memory_bytes'] / MIB:.0f} MiB",
        ])  # fmt: skip
    original = ["original", f"{8 * stored / weights:.2f}", f"{stored / MIB:.1f} MiB",
                f"{pathlib.Path(model).stat().st_size / MIB:.1f} MiB", f"{reference['perplexity']:.2f}", "0", "100 %", "", ""]  # fmt: skip
    header = ["", "bits/weight", "layers", "file", "perplexity", "KL", "same top-1", "time", "peak memory"]
    print("\n".join("  " + line for line in lay_out(header, [original, *rows])))
    print(f"""
  Perplexity (less is better), KL divergence from the original in nats (less is better) and how often
  the most likely next token is the original's, over {figures['tokens']} tokens of this project's documentation.
  Layers: the linear layers of the blocks, which are what is quantized. File: with the embedding,
  which this original holds in 8 bits and the gptq checkpoint in 16. Time: without writing the
  calibration text ({sampling:.0f} s), which the first run did; its peak memory is that of the writing.""")


if __name__ == "__main__":
    main()
