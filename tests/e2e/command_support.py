"""Shared by the scripts that drive the command: `SCRIPT LPCD INTEROP_TOOL`; standard library only."""

import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

SKIPPED = 77  # SKIP_RETURN_CODE of the tests
LPCD, TOOL = sys.argv[1:3]


def check(condition, message):
    if not condition:
        sys.exit(f"FAILED: {message}")


def lpcd(*arguments, **options):
    return subprocess.run([LPCD, *map(str, arguments)], capture_output=True, text=True, errors="replace", **options)


def tiny(directory, architecture="llama", **keys):
    command = [TOOL, "tiny", str(directory), architecture, *(f"{k}={v}" for k, v in keys.items())]
    subprocess.run(command, check=True)
    return pathlib.Path(directory)


def text_file(path, size=60000):
    rng = random.Random(7)
    words = "the river ran under a stone bridge and some birds sang while old boats moved".split()
    out, length, at = [], 0, 0
    while length < size:
        at = (at * 5 + 1 + rng.randrange(3)) % len(words)
        out.append(words[at])
        length += len(words[at]) + 1
    path.write_text(" ".join(out))
    return path


def expect_error(done, code, *parts, name=""):
    """One line on stderr that starts with the program's name and has all parts; that exit code."""
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    where = f"{name}: exit {done.returncode}, stderr {done.stderr!r}"
    check(done.returncode == code, f"{where}: expected exit {code}")
    check(len(lines) == 1 and lines[0].startswith("lpcd: "), f"{where}: expected one line")
    for part in parts:
        check(part in lines[0], f"{where}: lacks {part!r}")
    check("Sanitizer" not in done.stderr, where)


def files_below(directory):
    return sorted(str(p.relative_to(directory)) for p in pathlib.Path(directory).rglob("*")) if os.path.exists(directory) else []


def model_bytes(directory):
    """All files of a finished model but the record, which holds times."""
    return {
        p.name: p.read_bytes()
        for p in pathlib.Path(directory).iterdir()
        if p.is_file() and p.name not in ("record.json", "report.html")
    }
