"""Shared by the golden scripts: run as `SCRIPT GOLDEN_TOOL`, exit code 77 means skipped."""

import importlib
import subprocess
import sys

SKIPPED = 77  # SKIP_RETURN_CODE of the tests


def need(*modules):
    """The modules, or the end of the script as skipped if one of them cannot be imported."""
    try:
        return [importlib.import_module(name) for name in modules]
    except ImportError as error:
        print(f"skipped: {error}")
        sys.exit(SKIPPED)


def tool(*arguments):
    """Runs the golden tool and gives its output; its failure is the script's."""
    command = [sys.argv[1], *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command[:3])} ...: exit {done.returncode}\n{done.stderr}")
    return done.stdout


def check(condition, message):
    if not condition:
        sys.exit(f"FAILED: {message}")
