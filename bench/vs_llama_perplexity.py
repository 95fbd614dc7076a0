#!/usr/bin/env python3
"""Perplexity of the same weights by llama-perplexity and by `lpcd eval --ppl-mode llama.cpp`.

The model is first turned into an F16 GGUF by llama-quantize, so that both programs read the same
numbers. --llama names the folder with the programs of llama.cpp, for example made from the source
package of llama-cpp-python:

  pip download --no-deps --no-binary llama-cpp-python llama-cpp-python==0.3.36
  tar xzf llama_cpp_python-0.3.36.tar.gz
  cmake -S llama_cpp_python-0.3.36/vendor/llama.cpp -B llama-build -DCMAKE_BUILD_TYPE=Release
  cmake --build llama-build --target llama-perplexity llama-quantize

  bench/vs_llama_perplexity.py --llama llama-build/bin --model MODEL.gguf --text wiki.test.raw
"""

import argparse
import json
import os
import pathlib
import re
import sys
import tempfile

from runs import run_loud as run

HERE = pathlib.Path(__file__).resolve().parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lpcd", default=HERE.parent / "build" / "bin" / "lpcd")
    parser.add_argument("--llama", type=pathlib.Path, required=True, help="folder of llama-perplexity and llama-quantize")
    parser.add_argument("--model", required=True, help="GGUF file")
    parser.add_argument("--text", required=True)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--seq-len", type=int, default=512)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as work:
        f16 = os.path.join(work, "f16.gguf")
        run(args.llama / "llama-quantize", "--allow-requantize", args.model, f16, "F16")
        theirs = run(args.llama / "llama-perplexity", "-m", f16, "-f", args.text, "-c", args.seq_len, "--chunks",
                     args.windows)  # fmt: skip
        found = re.search(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)", theirs)
        if not found:
            sys.exit(theirs[-2000:])
        ours = json.loads(run(args.lpcd, "eval", f16, "--ppl", args.text, "--ppl-mode", "llama.cpp", "--seq-len",
                              args.seq_len, "--max-tokens", args.windows * args.seq_len, "--json", "--quiet"))  # fmt: skip
    llama = float(found[1])
    print(f"{os.path.basename(args.model)} as F16, first {args.windows} windows of {args.seq_len} tokens of "
          f"{os.path.basename(args.text)}, second half of each scored")
    print(f"llama-perplexity                {llama:.4f} +- {found[2]}")
    print(f"lpcd eval --ppl-mode llama.cpp  {ours['perplexity']:.4f} +- {ours['perplexity_error']:.4f}")
    print(f"difference                      {100 * (ours['perplexity'] / llama - 1):+.3f} %")


if __name__ == "__main__":
    main()
