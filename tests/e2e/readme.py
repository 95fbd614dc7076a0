"""The commands of the README work as they stand there, one after the other, on a tiny model.

LPCD_README_SAMPLES: sequences to calibrate on, in place of what the commands say (for slow builds)."""

import os
import shlex
import tempfile

from command_support import *  # noqa: F403

README = pathlib.Path(__file__).resolve().parents[2] / "README.md"
commands = [line.strip() for line in README.read_text().splitlines() if line.startswith("    lpcd ")]
missing = {"quantize", "eval", "export", "generate", "inspect"} - {c.split()[1] for c in commands}
check(not missing, f"the README has no example of {missing}")


def words_of(command):
    words = shlex.split(command)[1:]
    samples = os.environ.get("LPCD_README_SAMPLES")
    if samples and words[0] == "quantize":
        if "--samples" in words:
            words[words.index("--samples") + 1] = samples
        else:
            words += ["--samples", samples]
    return words


with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    tiny(work / "MODEL", hidden=128, ffn=256, head_dim=32)
    text_file(work / "text.txt")
    for command in commands:
        done = lpcd(*words_of(command), cwd=work)
        check(done.returncode == 0, f"{command}: exit {done.returncode}, {done.stderr}")
        print(f"$ {command}\n{done.stdout}")
