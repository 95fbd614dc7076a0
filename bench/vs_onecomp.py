#!/usr/bin/env python3
"""Time and peak memory of lpcd and of onecomp 1.4.0 on the same model, token ids and settings.

Both quantize with GPTQ + QEP + LPCD residual (--preset onecomp reproduces that package), one after
the other, in processes of their own, on all processors. The ids are handed to onecomp, whose text
loader calibrates on the whole text whatever the number of samples says.

Needs, in the Python that runs this script: torch (CPU), transformers, safetensors, onecomp 1.4.0.
  pip install torch==2.13.0 transformers safetensors accelerate datasets lm-eval ortools primefac
  pip install --no-deps --ignore-requires-python onecomp==1.4.0 hqq gemlite
  pip install termcolor einops triton

  bench/vs_onecomp.py --model MODEL.gguf --text c4.txt
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))


def run(command, log):
    """Elapsed seconds, processor seconds and peak bytes of one command."""
    start = time.monotonic()
    with open(log, "w") as out:
        child = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        sys.exit(f"failed: {' '.join(command)}\n{open(log).read()[-2000:]}")
    return time.monotonic() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


def onecomp_worker(model, ids_file, bits, group, out):
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    import torch
    from safetensors.torch import load_file, save_file

    import onecomp.lpcd._lpcd_runner as lpcd_runner
    from onecomp import ModelConfig, Runner
    from onecomp.lpcd import LPCDConfig
    from onecomp.qep import QEPConfig
    from onecomp.quantizer.gptq import GPTQ

    ids = load_file(ids_file)["input_ids"].long()
    lpcd_runner.prepare_calibration_dataset = lambda **_: {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
    }
    runner = Runner(
        model_config=ModelConfig(path=model, device="cpu", dtype="float32"),
        quantizer=GPTQ(wbits=bits, groupsize=group),
        qep=True,
        qep_config=QEPConfig(device="cpu"),
        lpcd=True,
        lpcd_config=LPCDConfig(device="cpu"),
    )
    runner.run()
    weights = {
        f"{name}.weight": result.compute_dequantized_weight()
        for name, result in runner.quantizer.results.items()
    }
    save_file(weights, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--lpcd", default=os.path.join(HERE, "..", "build", "bin", "lpcd"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", required=True, help="calibration text")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--keep", help="directory to leave both results in")
    args = parser.parse_args()

    work = args.keep or tempfile.mkdtemp(prefix="vs_onecomp-")
    os.makedirs(work, exist_ok=True)
    join = lambda name: os.path.join(work, name)
    original = join("original")  # onecomp reads Hugging Face directories
    if not os.path.exists(original):
        subprocess.run(
            [args.lpcd, "export", args.model, "--format", "dense:fp32", "--out", original, "--quiet"],
            check=True,
        )
    shutil.rmtree(join("lpcd"), ignore_errors=True)
    settings = ["--samples", str(args.samples), "--seq-len", str(args.seq_len)]
    ours = run(
        [args.lpcd, "quantize", original, "--out", join("lpcd"), "--preset", "onecomp",
         "--format", f"gptq:{args.bits},g{args.group}", "--calib", args.text, "--quiet", *settings],
        join("lpcd.log"),
    )
    ids = os.path.join(join("lpcd"), ".lpcd", "calibration.safetensors")
    worker = [sys.executable, os.path.abspath(__file__), "--worker", original, ids, str(args.bits),
              str(args.group), join("onecomp.safetensors")]
    theirs = run(worker, join("onecomp.log"))

    cost = json.load(open(os.path.join(join("lpcd"), "record.json")))["cost"]
    print(f"{args.model}: {args.bits} bits, group {args.group}, {args.samples} x {args.seq_len} tokens, "
          f"GPTQ + QEP + residual, fp32, {os.cpu_count()} processors")
    print(f"{'':10}{'seconds':>12}{'of processors':>16}{'peak memory':>16}")
    for name, (seconds, processor, peak) in (("onecomp", theirs), ("lpcd", ours)):
        print(f"{name:10}{seconds:12.1f}{processor:16.1f}{peak / 2**20:12.0f} MiB")
    ratios = [other / own for other, own in zip(theirs, ours)]
    print(f"{'ratio':10}{ratios[0]:12.2f}{ratios[1]:16.2f}{ratios[2]:12.2f}")
    print(f"lpcd: {100 * cost['share_of_gemm_rate']:.0f} % of the measured GEMM rate of "
          f"{cost['gemm_flops_per_second'] / 1e9:.0f} GFLOP/s over the whole run")
    if not args.keep:
        shutil.rmtree(work)


if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] == "--worker":
        onecomp_worker(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
    else:
        main()
