#!/usr/bin/env python3
"""Peak memory of writing outputs: a run at 3 bits that writes its file at the end, and exports of that run into
other formats, against the size of what they write. Outputs are streamed, so memory does not grow with them.

  bench/export_memory.py --model MODEL.gguf --calib c4.txt --samples 8
"""

import argparse
import shutil
import sys

import runs
from vs_onecomp import run as measured

# What the same codes can become; gguf:exact needs groups of 32 or 64.
FORMATS = ["gptq:3,g64", "ct:3,g64", "gguf:exact", "dense:fp16"]


def size_of(folder):
    return sum(p.stat().st_size for p in folder.rglob("*") if p.suffix in (".safetensors", ".gguf")
               and ".lpcd" not in p.parts)  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    runs.add_arguments(parser, samples=8)
    args, extra = parser.parse_known_args()  # the rest goes to quantize
    args.work.mkdir(parents=True, exist_ok=True)
    peak_of = lambda *command: measured([str(c) for c in command], args.work / "export-memory.log")[2]
    mib = lambda n: f"{n / 2**20:.0f} MiB"
    out = args.work / "export-memory"
    shutil.rmtree(out, ignore_errors=True)
    print("| step | output | peak memory |\n|---|---|---|")
    run = peak_of(args.lpcd, "quantize", args.model, "--out", out, "--format", FORMATS[0], "--calib", args.calib,
                  "--samples", args.samples, "--seq-len", args.seq_len, "--lpcd", "none", "--quiet",
                  *extra)  # fmt: skip
    print(f"| quantize to {FORMATS[0]} | {mib(size_of(out))} | {mib(run)} |", flush=True)
    worst = 0
    for format in FORMATS[1:]:
        other = args.work / "export-memory-other"
        shutil.rmtree(other, ignore_errors=True)
        peak = peak_of(args.lpcd, "export", out, "--format", format, "--out", other, "--quiet")
        print(f"| export to {format} | {mib(size_of(other))} | {mib(peak)} |", flush=True)
        worst = max(worst, peak)
    if worst > run:
        sys.exit("FAILED: an export takes more memory than the run")


if __name__ == "__main__":
    main()
