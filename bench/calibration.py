#!/usr/bin/env python3
"""How much calibration text the submodule solves need: residual against all of LPCD for growing numbers of
sequences, from a text and sampled from the model itself.

  bench/calibration.py --model MODEL.gguf --calib c4.txt --text wiki.test.raw --bits 3 --sizes 16,64,128,256

Runs are kept in --work, under the same names as those of bench/submodules.py, and used again.
"""

import argparse

import runs
from submodules import METHODS


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    runs.add_arguments(parser)
    parser.add_argument("--text", required=True, help="text to predict")
    parser.add_argument("--bits", default="3")
    parser.add_argument("--sizes", default="16,64,128,256", help="numbers of sequences")
    parser.add_argument("--sources", help="calibration sources [--calib and self]")
    parser.add_argument("--max-tokens", type=int, default=65536)
    args, extra = parser.parse_known_args()  # the rest goes to quantize

    kept = runs.Runs(args)
    sources = args.sources.split(",") if args.sources else [args.calib, "self"]
    print("| bits | calibration | tokens | residual: excess perplexity | KL | LPCD: excess perplexity | KL "
          "| change of KL | calibration / held-out error, last block |\n|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for bits in args.bits.split(","):
        for source in sources:
            for size in map(int, args.sizes.split(",")):
                found = []
                for name in ("residual", "lpcd"):
                    out = kept.quantize(name, bits, METHODS[name], extra, samples=size, calib=source)
                    result = kept.divergence(out, args.text, args.max_tokens)
                    found.append((result["perplexity"] - result["reference"]["perplexity"],
                                  result["reference"]["kl_mean"], runs.record_of(out)["blocks"][-1]))  # fmt: skip
                (ppl1, kl1, _), (ppl2, kl2, last) = found
                print(f"| {bits} | {source.split('/')[-1]} | {size * args.seq_len} | {ppl1:.2f} | {kl1:.4f} | {ppl2:.2f} "
                      f"| {kl2:.4f} | {kl2 / kl1 - 1:+.1%} | {last['token_error']:.4f} / "
                      f"{last['held_out_token_error']:.4f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
