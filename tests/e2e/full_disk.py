"""A disk that fills up: one clear line, nothing half-written, and --resume ends with the same bytes."""

import os
import shutil
import tempfile
import time

from command_support import *  # noqa: F403

with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    disk = work / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        print("skipped: cannot mount a small file system here")
        sys.exit(SKIPPED)
    try:
        text = text_file(work / "text.txt")
        model = tiny(work / "model", hidden=128, ffn=384, blocks=8, head_dim=32)
        base = ["--calib", text, "--samples", 32, "--seq-len", 96, "--group-size", 32, "--quiet"]
        done = lpcd("quantize", model, "--out", work / "expected", *base)
        check(done.returncode == 0, done.stderr)

        # Too small from the start: refused before any work.
        filler = disk / "filler"
        filler.write_bytes(b"x" * (23 << 20))
        done = lpcd("quantize", model, "--out", disk / "out", *base)
        expect_error(done, 5, "free", "needs", name="too little space")
        check(not [f for f in files_below(disk / "out") if "." in f and not f.startswith(".lpcd")], "left files")
        filler.unlink()

        # Full in the middle: the disk is filled as soon as the first block is committed, and what the run gives back
        # of it is taken. That streams are not saved is no more than a warning; the next block is the end.
        out = disk / "out"
        child = subprocess.Popen([LPCD, "quantize", str(model), "--out", str(out), *map(str, base), "--threads", "1"],
                                 stderr=subprocess.PIPE, text=True)  # fmt: skip
        first = out / ".lpcd" / "blocks" / "00000" / "record.json"
        while not first.exists() and child.poll() is None:
            time.sleep(0.001)
        fd = os.open(filler, os.O_WRONLY | os.O_CREAT)
        while child.poll() is None:
            try:
                os.write(fd, b"x" * 4096)
            except OSError:
                time.sleep(0.001)
        os.close(fd)
        lines = child.communicate()[1].splitlines()
        warnings = [line for line in lines if line.startswith("warning: ")]
        check(all("state.bin" in line for line in warnings), f"disk full: {lines}")
        errors = [line for line in lines if line not in warnings]
        done = subprocess.CompletedProcess([], child.returncode, "", "\n".join(errors))
        expect_error(done, 4, "No space left on device", name="disk full")
        check(not (out / "config.json").exists(), "a model appeared")
        # Still too little: better said at once than after hours. The error leaves what there is.
        done = lpcd("quantize", model, "--out", out, "--resume", *base)
        expect_error(done, 5, "free", "needs", "more", name="too little space to go on")
        check(first.exists(), "the first block is gone")
        filler.unlink()
        done = lpcd("quantize", model, "--out", out, "--resume", *base)
        check(done.returncode == 0, done.stderr)
        check(model_bytes(out) == model_bytes(work / "expected"), "other bytes after resuming")
    finally:
        subprocess.run(["umount", str(disk)], check=False)
