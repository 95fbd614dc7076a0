#!/usr/bin/env python3
"""lpcd's GGUF files against llama-quantize's of the same types, without and with an imatrix from the
same calibration text: perplexity and KL divergence from the F16 file, measured by llama-perplexity.
Every file of lpcd is also loaded with --check-tensors and must have llama-quantize's types and size.

  bench/vs_llama_quantize.py --llama-cpp llama.cpp/build/bin --model MODEL --calib c4.txt --text wiki.test.raw

Results are kept in --work and used again.
"""

import argparse
import json
import math
import pathlib
import re
import sys

from runs import run_loud as run
from runs import short_hash

HERE = pathlib.Path(__file__).resolve().parent


def only_file(folder):
    (path,) = folder.glob("*.gguf")
    return path


def tensor_types(lpcd, path):
    tensors = json.loads(run(lpcd, "inspect", path, "--json"))["model"]["tensors"]["list"]
    return {t["name"]: t["type"] for t in tensors}


class Comparison:
    def __init__(self, options):
        self.o = options
        self.work = options.work
        # Names of what is kept tell what it was made from.
        self.calibration = short_hash(options.model, options.calib, options.samples, options.seq_len)
        self.text = short_hash(options.model, options.text, options.seq_len, options.chunks)
        self.work.mkdir(parents=True, exist_ok=True)

    def tool(self, name, *arguments):
        return run(self.o.llama_cpp / f"llama-{name}", *arguments)

    def cached(self, path, make):
        """A file with that path: kept, or made under another name first, so that what is there is whole."""
        if not path.exists():
            part = path.with_name("part-" + path.name)  # the tools look at the suffix
            make(part)
            part.rename(path)
        return path

    def original(self):
        folder = self.cached(self.work / f"f16-{short_hash(self.o.model)}", lambda path: run(
            self.o.lpcd, "export", self.o.model, "--format", "gguf:f16", "--out", path, "--quiet"))  # fmt: skip
        return only_file(folder)

    def imatrix(self, f16):
        return self.cached(self.work / f"imatrix-{self.calibration}.gguf", lambda path: self.tool(
            "imatrix", "-m", f16, "-f", self.o.calib, "-o", path, "-c", self.o.seq_len, "--chunks", self.o.samples,
            "-t", self.o.threads))  # fmt: skip

    def base(self, f16):
        return self.cached(self.work / f"base-{self.text}.kld", lambda path: self.tool(
            "perplexity", "-m", f16, "-f", self.o.text, "-c", self.o.seq_len, "--chunks", self.o.chunks,
            "--kl-divergence-base", path, "-t", self.o.threads))  # fmt: skip

    def measure(self, path, base):
        result = self.work / f"{short_hash(path)}-{self.text}.json"
        if not result.exists():
            text = self.tool("perplexity", "-m", path, "--kl-divergence-base", base, "--kl-divergence", "-t",
                             self.o.threads)  # fmt: skip
            # The running means after each window; the summary behind them is lost in some builds.
            pair = r"(-?[\d.]+) ± +[\d.]+ *%?\s+"
            rows = re.findall(rf"^ *(\d+) +{pair}{pair}{pair}{pair}([\d.]+) ±", text, re.MULTILINE)
            count, ppl, log_ratio, kl, _, top1 = map(float, rows[-1])
            result.write_text(json.dumps({
                "windows": count, "ppl": ppl, "excess": math.expm1(log_ratio), "kl": kl, "top1": top1,
                "bytes": path.stat().st_size}))  # fmt: skip
        return json.loads(result.read_text())

    def run(self):
        f16 = self.original()
        base = self.base(f16)
        imatrix = None if self.o.only_lpcd else self.imatrix(f16)
        print("| type | made by | bytes | perplexity | excess | KL | same top 1 |")
        print("|---|---|---|---|---|---|---|")
        for kind in self.o.types:
            plain = self.cached(self.work / f"plain-{short_hash(self.o.model)}-{kind}.gguf",
                                lambda p: self.tool("quantize", f16, p, kind))  # fmt: skip
            folder = self.work / f"lpcd-{self.calibration}-{kind}-{short_hash(self.o.options)}"
            files = []
            if not self.o.only_lpcd:
                weighted = self.cached(self.work / f"imatrix-{self.calibration}-{kind}.gguf",
                                       lambda p: self.tool("quantize", "--imatrix", imatrix, f16, p, kind))  # fmt: skip
                files = [("llama-quantize", plain), ("llama-quantize, imatrix", weighted)]
            if not self.o.baselines:
                files.append(("lpcd", self.ours(kind, folder, plain)))
            for name, path in files:
                m = self.measure(path, base)
                print(f"| {kind} | {name} | {m['bytes']} | {m['ppl']:.4f} | {m['excess']:.2%} | "
                      f"{m['kl']:.5f} | {m['top1']:.2f} % |", flush=True)  # fmt: skip

    def ours(self, kind, folder, plain):
        run(self.o.lpcd, "quantize", self.o.model, "--format", f"gguf:{kind.lower()}", "--out", folder, "--calib",
            self.o.calib, "--samples", self.o.samples, "--seq-len", self.o.seq_len, "--for", "llama.cpp", "--quiet",
            "--resume", *self.o.options.split())  # fmt: skip
        ours = only_file(folder)
        self.tool("completion", "-m", ours, "--check-tensors", "-p", "The", "-n", 8, "-no-cnv", "-t",
                  self.o.threads)  # fmt: skip
        if tensor_types(self.o.lpcd, ours) != tensor_types(self.o.lpcd, plain):
            print(f"note: {kind}: the types per tensor differ", file=sys.stderr)
        return ours


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--lpcd", type=pathlib.Path, default=HERE.parent / "build/bin/lpcd")
parser.add_argument("--llama-cpp", type=pathlib.Path, required=True, help="folder with llama-quantize and the others")
parser.add_argument("--model", required=True)
parser.add_argument("--calib", required=True)
parser.add_argument("--text", required=True)
parser.add_argument("--types", type=lambda t: t.split(","), default=["Q2_K", "Q3_K_M", "Q4_K_M"])
parser.add_argument("--samples", type=int, default=128)
parser.add_argument("--seq-len", type=int, default=512)
parser.add_argument("--chunks", type=int, default=64, help="windows of --text that are measured")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--options", default="", help="more options for lpcd quantize")
which = parser.add_mutually_exclusive_group()
which.add_argument("--baselines", action="store_true", help="measure llama-quantize's files only")
which.add_argument("--only-lpcd", action="store_true", help="measure lpcd's files only")
parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("vs_llama_quantize"))
Comparison(parser.parse_args()).run()
