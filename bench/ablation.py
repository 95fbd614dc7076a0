#!/usr/bin/env python3
"""What each ingredient is worth: the full method with one of them taken away or changed, over several draws of
the calibration sequences. A positive change means that the method is better as it is.

  bench/ablation.py --model MODEL.gguf --calib c4.txt --text wiki.test.raw --bits 3,2 --seeds 0,1,2

Runs are kept in --work and used again. All of it takes hours: --results keeps the figures of each run in a file,
so that it can be done in parts, on several machines. The table is of all that the file holds:

  bench/ablation.py --results docs/ablation.jsonl --bits 3,2 --table
"""

import argparse
import json
import math
import os
import pathlib
import signal
import statistics
import sys

import runs

VARIANTS = {
    "full": [],
    "no qk": ["--lpcd", "vo,gate,ud,residual"],
    "no vo": ["--lpcd", "qk,gate,ud,residual"],
    "no gate": ["--lpcd", "qk,vo,ud,residual"],
    "no ud": ["--lpcd", "qk,vo,gate,residual"],
    "no residual": ["--lpcd", "qk,vo,gate,ud"],
    "no submodule solves (residual only)": ["--lpcd", "residual"],
    "no LPCD (QEP only)": ["--lpcd", "none"],
    "no QEP": ["--qep", "off"],
    "no scale search": ["--scale-search", "off"],
    "no refinement": ["--refine", "0"],
    "six sweeps of refinement": ["--refine", "6"],
    "no metric of its own": ["--own-metric", "off"],
    "no feedback between outputs": ["--output-feedback", "off"],
    "no token weights": ["--token-weights", "off"],
    "no massive weight": ["--massive-weight", "0"],
    "no guard (nothing held out)": ["--holdout", "0"],
    "one damping (0.01)": ["--percdamp", "0.01"],
    "two cycles": ["--alt-steps", "2"],
    "eight iterations on all tokens": ["--cg-iterations", "8", "--cg-sample", "1"],
    "fixed strengths (0.5)": ["--qep-strength", "0.5", "--lpcd-strength", "0.5"],
}


def measure(kept, args, extra, bits, seed, variant):
    out = kept.quantize(variant, bits, VARIANTS[variant], extra, seed=seed)
    result = kept.divergence(out, args.text, args.max_tokens)
    record = runs.record_of(out)
    machine = record["machine"]
    return {
        "model": os.path.basename(args.model),
        "setting": f"{args.samples} x {args.seq_len} tokens of {os.path.basename(args.calib)}, groups of {args.group}, "
                   f"measured on {args.max_tokens} of {os.path.basename(args.text)}"
                   + "".join(f" {e}" for e in extra),
        "bits": int(bits),
        "seed": seed,
        "variant": variant,
        "excess": round(result["perplexity"] - result["reference"]["perplexity"], 4),
        "kl": round(result["reference"]["kl_mean"], 6),
        "seconds": round(record["cost"]["total_seconds"]),
        "numerics": record["fingerprint"]["numerics_version"],
        "simd": "AMX" if "AMX" in machine["arithmetic"] else machine["simd"],
    }  # fmt: skip


def add(path, row):
    """One line at the end, by one write: parts that run side by side add to the same file."""
    with path.open("ab", buffering=0) as file:
        file.write((json.dumps(row) + "\n").encode())


def place(row):
    """What makes two runs the same."""
    return tuple(row[k] for k in ("model", "setting", "bits", "seed", "variant", "numerics", "simd"))


def pairs(rows, variant):
    """For each draw, the newest run of `variant` and the full method's run of that draw: one by the same numerics on
    the same vectors if there is one, else the newest."""
    found = {}
    for row in sorted((r for r in rows if r["variant"] == variant), key=lambda r: r["numerics"]):
        full = [r for r in rows if r["variant"] == "full" and r["seed"] == row["seed"]]
        if full:
            alike = lambda r: (r["numerics"] == row["numerics"], r["simd"] == row["simd"], r["numerics"])
            found[row["seed"]] = (row, max(full, key=alike))
    return [found[seed] for seed in sorted(found)]


def table(rows):
    print("| variant | excess perplexity | of full | KL divergence | of full | change of KL | time | numerics |\n"
          "|---|---|---|---|---|---|---|---|")  # fmt: skip
    for variant in VARIANTS:
        found = pairs(rows, variant)
        if not found or variant == "full":
            continue
        # Pairs of the same draw: what the draw does to both drops out.
        change = [row["kl"] / full["kl"] - 1 for row, full in found]
        error = f" +- {statistics.stdev(change) / math.sqrt(len(change)):.1%}" if len(change) > 1 else ""
        times = [row["seconds"] / full["seconds"] for row, full in found if row["seconds"] and full["seconds"]]
        time = f"{statistics.mean(times):.2f}" if times else ""
        each = lambda i, key, digits: ", ".join(f"{pair[i][key]:.{digits}f}" for pair in found)
        numerics = ", ".join(str(row["numerics"]) + ("" if row["numerics"] == full["numerics"] else f" to {full['numerics']}")
                             for row, full in found)  # fmt: skip
        print(f"| {variant} | {each(0, 'excess', 2)} | {each(1, 'excess', 2)} | {each(0, 'kl', 4)} | {each(1, 'kl', 4)} "
              f"| {statistics.mean(change):+.1%}{error} | {time} | {numerics} |")  # fmt: skip


def versions(rows):
    """What the full method has come to, release by release."""
    print("| numerics | simd | draws | excess perplexity | KL divergence | mean |\n|---|---|---|---|---|---|")
    full = [r for r in rows if r["variant"] == "full"]
    for numerics, simd in sorted({(r["numerics"], r["simd"]) for r in full}):
        found = sorted((r for r in full if (r["numerics"], r["simd"]) == (numerics, simd)), key=lambda r: r["seed"])
        each = lambda key, digits: ", ".join(f"{r[key]:.{digits}f}" for r in found)
        print(f"| {numerics} | {simd} | {each('seed', 0)} | {each('excess', 2)} | {each('kl', 4)} "
              f"| {statistics.mean(r['kl'] for r in found):.4f} |")  # fmt: skip


def main():
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the table may go into head
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    runs.add_arguments(parser, samples=16, required=False)
    parser.add_argument("--text", help="text to predict")
    parser.add_argument("--bits", default="3,2")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--max-tokens", type=int, default=16384)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    parser.add_argument("--results", type=pathlib.Path, help="file of figures to add to, one JSON object a run")
    parser.add_argument("--table", action="store_true", help="print what --results holds, measure nothing")
    args, extra = parser.parse_known_args()  # the rest goes to quantize
    if args.table and not (args.results and args.results.exists()):
        parser.error("--table needs a file of --results")
    if not args.table and not (args.model and args.calib and args.text):
        parser.error("--model, --calib and --text are needed to measure")

    rows = {}
    if args.results and args.results.exists():
        rows = {place(r): r for r in map(json.loads, args.results.read_text().splitlines())}
    settings = []
    if not args.table:
        kept = runs.Runs(args)
        for bits in args.bits.split(","):
            for seed in map(int, args.seeds.split(",")):
                for variant in ["full", *(v for v in args.variants.split(",") if v != "full")]:
                    row = measure(kept, args, extra, bits, seed, variant)
                    known = rows.get(place(row)) == row  # a kept run that is in the file
                    rows[place(row)] = row
                    settings = [(row["model"], row["setting"])]
                    print(f"{bits} bits, seed {seed}, {variant}: {row['excess']:.2f}, {row['kl']:.4f}, {row['seconds']} s",
                          file=sys.stderr, flush=True)  # fmt: skip
                    if args.results and not known:
                        add(args.results, row)
    for setting in settings or sorted({(r["model"], r["setting"]) for r in rows.values()}):
        for bits in map(int, args.bits.split(",")):
            chosen = [r for r in rows.values() if (r["model"], r["setting"]) == setting and r["bits"] == bits]
            if not chosen:
                continue
            print(f"\n{setting[0]}, {bits} bits, {setting[1]}\n")
            table(chosen)
            print("\nThe full method, by version of the numerics:\n")
            versions(chosen)


if __name__ == "__main__":
    main()
