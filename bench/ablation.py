#!/usr/bin/env python3
"""What each ingredient is worth: the full method with one of them taken away, over several draws of the
calibration sequences. A positive change means that the ingredient pays.

  bench/ablation.py --model MODEL.gguf --calib c4.txt --text wiki.test.raw --bits 3,2 --seeds 0,1,2

Runs are kept in --work and used again.
"""

import argparse
import math
import statistics

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
    "no metric of its own": ["--own-metric", "off"],
    "no feedback between outputs": ["--output-feedback", "off"],
    "no token weights": ["--token-weights", "off"],
    "no massive weight": ["--massive-weight", "0"],
    "no guard (nothing held out)": ["--holdout", "0", "--percdamp", "0.05"],
    "one damping (0.01)": ["--percdamp", "0.01"],
    "fixed strengths (0.5)": ["--qep-strength", "0.5", "--lpcd-strength", "0.5"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    runs.add_arguments(parser, samples=16)
    parser.add_argument("--text", required=True, help="text to predict")
    parser.add_argument("--bits", default="3,2")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--max-tokens", type=int, default=16384)
    parser.add_argument("--variants", default=",".join(VARIANTS))
    args, extra = parser.parse_known_args()  # the rest goes to quantize

    kept = runs.Runs(args)
    seeds = [int(s) for s in args.seeds.split(",")]
    for bits in args.bits.split(","):
        print(f"\n{bits} bits, {args.samples} x {args.seq_len} tokens, seeds {args.seeds}\n")
        print("| variant | excess perplexity | KL divergence | change of KL | seconds |\n|---|---|---|---|---|")
        full = []
        for name in ["full", *(v for v in args.variants.split(",") if v != "full")]:
            excess, kl, seconds = [], [], []
            for seed in seeds:
                out = kept.quantize(name, bits, VARIANTS[name], extra, seed=seed)
                result = kept.divergence(out, args.text, args.max_tokens)
                excess.append(result["perplexity"] - result["reference"]["perplexity"])
                kl.append(result["reference"]["kl_mean"])
                seconds.append(runs.record_of(out)["cost"]["total_seconds"])
            if name == "full":
                full = kl
            # Pairs of the same seed: what the draw does to both drops out.
            change = [b / a - 1 for a, b in zip(full, kl)]
            error = statistics.stdev(change) / math.sqrt(len(change)) if len(change) > 1 else 0.0
            spread = lambda v: f" ({min(v):.3f} to {max(v):.3f})" if len(v) > 1 else ""
            print(f"| {name} | {statistics.mean(excess):.2f}{spread(excess)} | {statistics.mean(kl):.4f}{spread(kl)} "
                  f"| {statistics.mean(change):+.1%} +- {error:.1%} | {statistics.mean(seconds):.0f} |",
                  flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
