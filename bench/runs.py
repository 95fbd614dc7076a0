"""Runs of lpcd that the comparisons of this folder share: each is kept in a folder of its own and used again."""

import hashlib
import json
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def finished(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    return done


def run(*command):
    return finished(command).stdout


def run_loud(*command):
    """With stderr, where the tools of llama.cpp put their results."""
    done = finished(command)
    return done.stdout + done.stderr


def add_arguments(parser, samples=128, required=True):
    parser.add_argument("--lpcd", default=HERE.parent / "build" / "bin" / "lpcd")
    parser.add_argument("--model", required=required)
    parser.add_argument("--calib", required=required, help="calibration text, or self")
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--samples", type=int, default=samples)
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("/tmp/lpcd-bench"))


def short_hash(*parts):
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:12]


class Runs:
    def __init__(self, args):
        self.args = args
        args.work.mkdir(parents=True, exist_ok=True)

    def quantize(self, name, bits, flags, extra=(), seed=None, samples=None, calib=None):
        """Folder of the model quantized with `flags`, which `name` stands for."""
        a = self.args
        seed = a.seed if seed is None else seed
        samples = a.samples if samples is None else samples
        calib = a.calib if calib is None else calib
        tag = "-".join(map(str, [name, bits, a.group, samples, seed, *extra]))
        if calib != a.calib:
            tag += f"-{calib}"
        out = a.work / "".join(c if c.isalnum() else "_" for c in tag)
        run(a.lpcd, "quantize", a.model, "--out", out, "--format", f"gptq:{bits},g{a.group}", "--calib", calib,
            "--samples", samples, "--seq-len", a.seq_len, "--seed", seed, "--quiet", "--resume", *flags,
            *extra)  # fmt: skip
        return out

    def divergence(self, out, text, max_tokens):
        """Perplexity, divergence from the original and errors of blocks, as `lpcd eval --json` reports them."""
        report = out / f"eval-{short_hash(text, max_tokens, self.args.seq_len)}.json"
        # Kept reports of older versions have no errors of blocks.
        if not report.exists() or "block_errors" not in report.read_text():
            report.write_text(run(self.args.lpcd, "eval", out, "--reference", self.args.model, "--ppl", text,
                                  "--max-tokens", max_tokens, "--seq-len", self.args.seq_len, "--json",
                                  "--quiet"))  # fmt: skip
        return json.loads(report.read_text())

    def tasks(self, model, files, limit):
        """Accuracies on the first `limit` items of the files; 0: all."""
        report = self.args.work / f"tasks-{short_hash(model, limit, *files)}.json"
        record = pathlib.Path(model) / "record.json"
        stale = report.exists() and record.exists() and record.stat().st_mtime > report.stat().st_mtime
        if stale or not report.exists():
            report.write_text(run(self.args.lpcd, "eval", model, "--tasks", ",".join(map(str, files)), "--task-limit",
                                  limit, "--json", "--quiet"))  # fmt: skip
        return json.loads(report.read_text())["tasks"]


def record_of(out):
    return json.loads((out / "record.json").read_text())
