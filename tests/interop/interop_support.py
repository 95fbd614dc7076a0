"""Shared by the interop scripts: `SCRIPT LPCD INTEROP_TOOL`; exit code 77 means skipped."""

import importlib
import os
import pathlib
import subprocess
import sys

SKIPPED = 77  # SKIP_RETURN_CODE of the tests
LPCD, TOOL = sys.argv[1:3]
ROOT = pathlib.Path(__file__).resolve().parents[2]


def skip(why):
    print(f"skipped: {why}")
    sys.exit(SKIPPED)


def need(*modules):
    try:
        return [importlib.import_module(name) for name in modules]
    except ImportError as error:
        skip(error)


def check(condition, message):
    if not condition:
        sys.exit(f"FAILED: {message}")


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    check(done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def accepted(*command):
    """False if the command refuses its options."""
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    check(done.returncode in (0, 2), f"{command}: exit {done.returncode}\n{done.stderr}")
    return done.returncode == 0


def shared_models():
    """The shared models that are there, as {name: path}."""
    shared = pathlib.Path(os.environ.get("LPCD_SHARED_DIR", ROOT.parent / "shared")) / "models"
    names = ["story-llama", "stories260k", "tiny_llama3", "tiny_qwen3", "qwen3-stories"]
    return {name: shared / name for name in names if (shared / name / "config.json").exists()}


def real_gguf():
    """A real GGUF model of LPCD_TEST_MODELS, or None."""
    folder = os.environ.get("LPCD_TEST_MODELS")
    files = sorted(pathlib.Path(folder).glob("*.gguf")) if folder else []
    return files[0] if files else None


def write_text(path, size=60000):
    """Words that follow each other by rule and chance."""
    import random

    rng = random.Random(7)
    words = "the river ran under a stone bridge and some birds sang while old boats moved".split()
    out, at = [], 0
    while sum(map(len, out)) + len(out) < size:
        at = (at * 5 + 1 + rng.randrange(3)) % len(words)
        out.append(words[at])
    path.write_text(" ".join(out))
    return path
