#!/usr/bin/env python3
"""Perplexity, KL divergence and top-1 agreement of RTN, GPTQ, GPTQ + QEP and that with residual paths on one
model, calibrated and evaluated on given texts. Results are kept in --work and used again.

  bench/quality.py --model MODEL.gguf --calib c4.txt --text wiki.test.raw
"""

import argparse
import json
import os
import pathlib
import sys

from runs import Runs, run, short_hash

HERE = pathlib.Path(__file__).resolve().parent

# The methods as their papers have them: no searched scales, no refinement, all tokens alike, one metric, nothing
# held out, and the strengths and the damping of the reference package.
PLAIN = ["--scale-search", "off", "--refine", "0", "--own-metric", "off", "--token-weights", "off", "--holdout", "0",
         "--percdamp", "0.01", "--percdamp-power", "0", "--qep-strength", "0.5", "--qep-exclude", "down_proj",
         "--lpcd-strength", "0.5"]  # fmt: skip
METHODS = {
    "RTN": [*PLAIN, "--method", "rtn", "--qep", "off", "--lpcd", "none"],
    "GPTQ": [*PLAIN, "--qep", "off", "--lpcd", "none"],
    "GPTQ + QEP": [*PLAIN, "--qep", "on", "--lpcd", "none"],
    "GPTQ + QEP + residual": [*PLAIN, "--qep", "on", "--lpcd", "residual"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lpcd", default=HERE.parent / "build" / "bin" / "lpcd")
    parser.add_argument("--model", required=True)
    parser.add_argument("--calib", required=True, help="calibration text")
    parser.add_argument("--text", required=True, help="text to predict")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=65536)
    parser.add_argument("--format", default="gptq:3,g64")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/lpcd-quality"))
    args, extra = parser.parse_known_args()  # the rest goes to quantize

    kept = Runs(args)
    rows = []
    original = None
    for name, flags in METHODS.items():
        inputs = short_hash(args.model, args.calib, args.seq_len, *flags)
        tag = "-".join([args.format, name, str(args.samples), str(args.seed), *extra, inputs])
        out = args.work / "".join(c if c.isalnum() else "_" for c in tag)
        run(args.lpcd, "quantize", args.model, "--out", out, "--format", args.format, "--calib", args.calib,
            "--samples", args.samples, "--seq-len", args.seq_len, "--seed", args.seed, "--quiet", "--resume",
            *flags, *extra)  # fmt: skip
        result = kept.divergence(out, args.text, args.max_tokens)
        cost = json.loads((out / "record.json").read_text())["cost"]
        original = result["reference"]["perplexity"]
        rows.append((name, result["perplexity"], result["perplexity_error"], result["reference"]["kl_mean"],
                     result["reference"]["top1_agreement"], cost["total_seconds"], cost["peak_memory_bytes"]))
        print(f"{name}: {result['perplexity']:.2f}", file=sys.stderr)

    print(f"{os.path.basename(args.model)}, {args.format}, {args.samples} x {args.seq_len} tokens of "
          f"{os.path.basename(args.calib)}, first {args.max_tokens} tokens of {os.path.basename(args.text)}")
    print("| method | perplexity | KL divergence | same top-1 | time | peak memory |")
    print("|---|---|---|---|---|---|")
    print(f"| original | {original:.2f} | | | | |")
    for name, ppl, error, kl, top1, seconds, peak in rows:
        print(f"| {name} | {ppl:.2f} +- {error:.2f} | {kl:.4f} | {100 * top1:.1f} % | {seconds:.0f} s "
              f"| {peak / 2**20:.0f} MiB |")


if __name__ == "__main__":
    main()
