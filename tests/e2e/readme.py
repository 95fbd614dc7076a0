"""The commands of the README work as they stand there, one after the other, on a tiny model."""

import shlex
import tempfile

from command_support import *  # noqa: F403

README = pathlib.Path(__file__).resolve().parents[2] / "README.md"
commands = [line.strip() for line in README.read_text().splitlines() if line.startswith("    lpcd ")]
missing = {"quantize", "eval", "export", "generate", "inspect"} - {c.split()[1] for c in commands}
check(not missing, f"the README has no example of {missing}")

with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    tiny(work / "MODEL", hidden=128, ffn=256, head_dim=32)
    text_file(work / "text.txt")
    for command in commands:
        done = lpcd(*shlex.split(command)[1:], cwd=work)
        check(done.returncode == 0, f"{command}: exit {done.returncode}, {done.stderr}")
        print(f"$ {command}\n{done.stdout}")
