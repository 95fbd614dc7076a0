"""A model that is cut short or overwritten while a run reads it: one line, and no model that mixes old and new.
--resume goes on to the same bytes once a file that was cut short is mended."""

import signal
import tempfile
import time

from command_support import *  # noqa: F403


def stopped_after_first_block(out):
    child = subprocess.Popen([LPCD, *base, "--out", str(out)], stderr=subprocess.PIPE, text=True)
    while not (out / ".lpcd" / "blocks" / "00000" / "record.json").exists() and child.poll() is None:
        time.sleep(0.001)
    child.send_signal(signal.SIGSTOP)
    check(not (out / "config.json").exists(), "too late to damage the model")
    return child


def ended(child):
    child.send_signal(signal.SIGCONT)
    stderr = child.communicate()[1]
    return subprocess.CompletedProcess([], child.returncode, "", stderr)


with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    text = text_file(work / "text.txt")
    model = tiny(work / "model", hidden=128, ffn=384, blocks=6, head_dim=32)
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    base = ["quantize", str(model), "--calib", str(text), "--samples", "12", "--seq-len", "128", "--group-size", "32",
            "--quiet", "--threads", "1"]  # fmt: skip
    check(lpcd(*base, "--out", work / "expected").returncode == 0, "plain run")

    # In place, as a failing disk or a download that starts again would do it: the file stays the same to the system.
    out = work / "truncated"
    child = stopped_after_first_block(out)
    os.truncate(weights, 4096)
    expect_error(ended(child), 4, "cut short", "--resume", name="truncated")
    check(not (out / "config.json").exists(), "a model appeared")
    with weights.open("r+b") as file:
        file.write(whole)
    done = lpcd(*base, "--out", out, "--resume")
    check(done.returncode == 0, done.stderr)
    check(model_bytes(out) == model_bytes(work / "expected"), "truncated: other bytes after resuming")

    out = work / "changed"
    child = stopped_after_first_block(out)
    header = 8 + int.from_bytes(whole[:8], "little")
    with weights.open("r+b") as file:
        file.seek(header)
        file.write(bytes(64))
    expect_error(ended(child), 3, str(model), "changed while", name="changed")
    check(not (out / "config.json").exists(), "a model appeared")
    weights.write_bytes(whole)
    # Blocks may have seen the other weights: that the file is mended does not mend them.
    expect_error(lpcd(*base, "--out", out, "--resume"), 2, "cannot resume", name="changed, then mended")
