"""Ctrl-C, SIGTERM and SIGHUP end a run at a safe point and say how to go on; that command works. Readers of its output
that end do not end it."""

import shlex
import signal
import tempfile
import time

from command_support import *  # noqa: F403

with tempfile.TemporaryDirectory() as folder:
    work = pathlib.Path(folder)
    text = text_file(work / "text.txt")
    model = tiny(work / "model", hidden=128, ffn=384, blocks=6, head_dim=32)
    base = ["quantize", str(model), "--calib", str(text), "--samples", "12", "--seq-len", "128", "--group-size", "32",
            "--quiet", "--threads", "1"]  # fmt: skip
    check(lpcd(*base, "--out", work / "expected").returncode == 0, "plain run")
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        out = work / f"out{number}"
        child = subprocess.Popen([LPCD, *base, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not (out / ".lpcd" / "blocks" / "00000" / "record.json").exists() and child.poll() is None:
            time.sleep(0.001)
        child.send_signal(number)
        stdout, stderr = child.communicate()
        done = subprocess.CompletedProcess([], child.returncode, stdout, stderr)
        expect_error(done, 130, "--resume", name=number.name)
        check(not (out / "config.json").exists(), "a model appeared")
        resume = stderr.strip().split("Go on with: lpcd ", 1)[1]
        done = lpcd(*shlex.split(resume))
        check(done.returncode == 0, f"{resume}: {done.stderr}")
        check(model_bytes(out) == model_bytes(work / "expected"), f"{number.name}: other bytes after resuming")

    # A terminal that is closed, as by the end of a session over ssh: the progress line has nowhere to go.
    out = work / "closed"
    ours, theirs = os.openpty()
    child = subprocess.Popen([LPCD, *(a for a in base if a != "--quiet"), "--out", str(out)], stdin=theirs,
                             stdout=theirs, stderr=theirs, start_new_session=True)  # fmt: skip
    os.close(theirs)
    while not (out / ".lpcd" / "blocks" / "00000" / "record.json").exists() and child.poll() is None:
        os.read(ours, 1 << 16)
    os.close(ours)
    child.send_signal(signal.SIGHUP)
    check(child.wait() == 130, f"closed terminal: exit {child.returncode}")
    done = lpcd(*base, "--out", out, "--resume")
    check(done.returncode == 0, done.stderr)
    check(model_bytes(out) == model_bytes(work / "expected"), "closed terminal: other bytes after resuming")

    # Readers that end, as `tee` does at Ctrl-C or with its terminal.
    def without_reader(stream, *arguments):
        ours, theirs = os.pipe()
        os.close(ours)
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: theirs}
        done = subprocess.run([LPCD, *map(str, arguments)], text=True, **streams)
        os.close(theirs)
        return done

    loud = [a for a in base if a != "--quiet"]
    for stream, code in (("stderr", 0), ("stdout", 4)):
        out = work / f"no-{stream}"
        done = without_reader(stream, *loud, "--out", out)
        check(done.returncode == code, f"{stream} without reader: exit {done.returncode}, {done.stderr}")
        check(model_bytes(out) == model_bytes(work / "expected"), f"{stream} without reader: other bytes")
    check("standard output" in done.stderr, done.stderr)
    done = without_reader("stdout", "inspect", model)
    check(done.returncode == -signal.SIGPIPE and not done.stderr, f"inspect | head: {done.returncode}, {done.stderr}")
