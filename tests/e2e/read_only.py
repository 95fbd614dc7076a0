"""An output on a read-only file system: one clear line, exit code 4."""

import tempfile

from command_support import *  # noqa: F403

with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    disk = work / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,ro", "tmpfs", str(disk)], capture_output=True).returncode:
        print("skipped: cannot mount a file system here")
        sys.exit(SKIPPED)
    try:
        text = text_file(work / "text.txt")
        model = tiny(work / "model")
        for out in (disk / "out", disk):
            done = lpcd("quantize", model, "--out", out, "--calib", text, "--samples", 8, "--seq-len", 32,
                        "--group-size", 32, "--quiet")  # fmt: skip
            expect_error(done, 4, "Read-only file system", name=str(out))
    finally:
        subprocess.run(["umount", str(disk)], check=False)
