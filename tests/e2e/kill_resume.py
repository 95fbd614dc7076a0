"""kill -9 at random moments of a run, then --resume: the bytes of the run that was not killed."""

import os
import random
import shutil
import signal
import tempfile
import time

from command_support import *  # noqa: F403

BLOCKS = 6
TRIALS = int(os.environ.get("LPCD_KILL_TRIALS", "20"))
seed = int.from_bytes(os.urandom(4), "little")
print(f"seed {seed}")
rng = random.Random(seed)

with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    text = text_file(work / "text.txt")
    model = tiny(work / "model", hidden=128, ffn=384, blocks=BLOCKS, head_dim=32)

    def command(out, *extra):
        return [LPCD, "quantize", str(model), "--out", str(out), "--calib", str(text), "--samples", "24",
                "--seq-len", "128", "--group-size", "32", "--quiet", *extra]  # fmt: skip

    start = time.monotonic()
    subprocess.run(command(work / "expected"), check=True, stdout=subprocess.DEVNULL)
    duration = time.monotonic() - start
    expected = model_bytes(work / "expected")

    states = {}
    between = 0  # kills after the first block and before the last one was committed
    trial = -1
    # Later runs may be faster or slower than the first: enough of the kills must have met work.
    while trial + 1 < TRIALS or (between < TRIALS / 4 and trial < 4 * TRIALS):
        trial += 1
        out = work / "killed"
        shutil.rmtree(out, ignore_errors=True)
        child = subprocess.Popen(command(out), stdout=subprocess.DEVNULL)
        # Stretched beyond the end: the moments of writing the result count too.
        time.sleep(rng.uniform(0.0, 1.1 * duration))
        child.send_signal(signal.SIGKILL)
        child.wait()
        # Sometimes kill the resumption as well.
        if trial % 4 == 3:
            child = subprocess.Popen(command(out, "--resume"), stdout=subprocess.DEVNULL)
            time.sleep(rng.uniform(0.0, 0.8 * duration))
            child.send_signal(signal.SIGKILL)
            child.wait()
        blocks = len(list((out / ".lpcd" / "blocks").glob("*/record.json"))) if out.exists() else -1
        states[blocks] = states.get(blocks, 0) + 1
        between += 1 <= blocks < BLOCKS
        if (out / "config.json").exists():  # a model that appears is complete
            check(lpcd("inspect", out).returncode == 0, f"trial {trial}: an incomplete model")
        done = lpcd(*command(out, "--resume")[1:])
        check(done.returncode == 0, f"trial {trial}: {done.stderr}")
        got = model_bytes(out)
        check(got == expected, f"trial {trial}: other bytes, killed with {blocks} blocks committed; "
              f"files {sorted(k for k in expected if got.get(k) != expected[k])}")  # fmt: skip
    check(between >= TRIALS / 4, f"only {between} of {trial + 1} kills came between two blocks: {states}")
    print(f"{trial + 1} kills; committed blocks at the kill: {dict(sorted(states.items()))}; a run takes {duration:.2f} s")
