"""A long run on a disk that is nearly full, killed again and again: its weights and records end as an undisturbed run's.

``python -m tests.faults.soak --minutes 60 --kill-every 60``. The disk is a tmpfs of a few MB where mounting works (as root);
otherwise files are limited by RLIMIT_FSIZE to less than a checkpoint for every fourth process. In every fourth process the disk
is full: it ends by itself, with one line, and the next one has room again. A run that would end before the minutes are over is
paused (SIGSTOP) when it is ahead of them, so that they are minutes of one run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from tests.faults.harness import checks
from tests.faults.harness.processes import Outcome, Started, import_all
from tests.strategies.plans import MODEL
from tests.strategies.texts import documents

AHEAD = 0.95  # share of the steps that a run has made when the minutes are over, at most
CADENCE, EVERY = 100, 500  # steps between checkpoints (and records), and between evaluations
PLAN = f"""
name = "soak"
steps_per_dispatch = 50
[data]
text = ["text.txt"]
vocab = 300
validation_share = 0.2
validation_batches = 2
[defaults]
batch = 4
length = 16
optimizer = {{ name = "adafactor", rate = 0.005 }}
cadence = {{ log = {CADENCE}, evaluate = {EVERY}, checkpoint = {CADENCE} }}
[node.a]
model = {MODEL}
steps = STEPS
"""


def log(*words: object) -> None:
    print(time.strftime("%H:%M:%S"), *words, flush=True)


def write_plan(folder: pathlib.Path, steps: int) -> pathlib.Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text("\n\n\n".join(documents(0, 60)), encoding="utf-8")
    plan = folder / "plan.toml"
    plan.write_text(PLAN.replace("STEPS", str(steps)), encoding="utf-8")
    return plan


def run(plan: pathlib.Path, out: pathlib.Path, output: pathlib.Path) -> Started:
    return Started(["train", plan, "--out", out, "--resume"], output)


def undisturbed(root: pathlib.Path, steps: int) -> tuple[pathlib.Path, float]:
    """The run that nobody kills, and its seconds."""
    out = root / f"undisturbed-{steps}"
    done = run(write_plan(root / "inputs", steps), out, root / "output").end()
    assert done.code == 0, done.stderr
    return out, done.seconds


def size(folder: pathlib.Path) -> int:
    """Bytes on a disk of pages of 4096."""
    return sum(-(-path.lstat().st_size // 4096) * 4096 for path in [folder, *folder.rglob("*")])


class Disk:
    """A small disk, of which there is little left; and full when it is wanted to be.

    Attributes:
      folder: on it.
      kind: what it is, in words.
    """

    def __init__(self, root: pathlib.Path, room: int) -> None:
        self.folder = root / "disk"
        self.folder.mkdir(exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(self.folder)]
        with contextlib.suppress(FileNotFoundError):
            self.mounted = not subprocess.run(mount, capture_output=True).returncode
        self.kind = f"a tmpfs of {room:,} bytes" if self.mounted else "a limit on the size of files (RLIMIT_FSIZE)"
        self._ballast = self.folder / "ballast"

    def full(self, on: bool) -> None:
        """Fill it, or make room."""
        if not self.mounted:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192 if on else hard, hard))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            return
        self._ballast.unlink(missing_ok=True)
        if on:
            with contextlib.suppress(OSError), self._ballast.open("wb") as file:
                while True:
                    file.write(bytes(4096))
                    file.flush()

    def free(self) -> int:
        """Bytes that are left."""
        found = os.statvfs(self.folder)
        return found.f_bavail * found.f_frsize

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", str(self.folder)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--kill-every",
        type=float,
        default=60.0,
        help="seconds after a process's first checkpoint, or start",
    )
    parser.add_argument(
        "--steps",
        type=int,
        help="of the run; default: about as many as the minutes allow, after which nothing is done to it",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=pathlib.Path)
    asked = parser.parse_args()
    import_all()
    root = asked.folder or pathlib.Path(tempfile.mkdtemp(prefix="deepfusion-soak-"))
    root.mkdir(parents=True, exist_ok=True)
    os.environ |= {"DEEPFUSION_CACHE": str(root / "cache")}
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(root / "compiled"))
    rng = random.Random(asked.seed)
    (_, begun), (little, one), (more, two) = (undisturbed(root, n * EVERY) for n in (1, 2, 10))
    pace, start = 8 * EVERY / max(two - one, 1e-9), one - 2 * EVERY * (two - one) / (8 * EVERY)
    steps = asked.steps
    if steps is None:  # a start takes its time in every process
        share = max(0.1, 1 - max(start, 0.0) / asked.kill_every)
        steps = max(EVERY, int(0.75 * pace * share * 60 * asked.minutes / EVERY) * EVERY)
    log(f"first process {begun:.0f} s, {pace:.0f} steps/s, a start takes {start:.1f} s: {steps:,} steps")
    checkpoint = max(path.stat().st_size for path in more.rglob("step-*.safetensors"))
    records = (size(more) - size(little)) * max(0, steps / EVERY - 10) / 8
    disk = Disk(root, size(more) + int(1.05 * records) + 3 * checkpoint + (64 << 10))
    log(f"checkpoints of {checkpoint:,} bytes; the disk is {disk.kind}")
    plan, out, whole = write_plan(root / "inputs", steps), disk.folder / "run", root / f"undisturbed-{steps}"
    beside = run(plan, whole, root / "undisturbed-output")  # at the same time
    begun, wanted, paused = time.monotonic(), 60 * asked.minutes, 0.0

    def waited(process: Started, condition: Callable[[], bool], free: bool) -> bool:
        """Wait for the condition or the end of the process, paused while its run is ahead; return whether the first came."""
        nonlocal paused
        stopped = 0.0  # since when

        def look() -> bool:
            nonlocal stopped, paused
            ahead = not free and newest(out) > AHEAD * steps * (time.monotonic() - begun) / wanted
            met = condition()
            if process.running() and (ahead and not met) != bool(stopped):
                os.kill(process.pid, signal.SIGCONT if stopped else signal.SIGSTOP)
                paused += time.monotonic() - stopped if stopped else 0.0
                stopped = 0.0 if stopped else time.monotonic()
            return met

        return process.wait_for(look, 0.1)

    counts, least = dict.fromkeys(("kill -9", "SIGTERM", "full"), 0), 1 << 60
    try:
        for number in range(1_000_000):
            over = time.monotonic() - begun > wanted  # it may end in peace
            disk.full(full := number % 4 == 3 and not over)
            process = run(plan, out, root / "output")
            limit = asked.kill_every * (0.5 + rng.random())
            if not over and rng.random() < 0.8:  # the others may end in their first seconds
                before = newest(out)
                waited(process, lambda before=before: newest(out) > before, full)
                limit += process.passed
            sign = signal.SIGTERM if rng.random() < 0.2 else signal.SIGKILL
            if not over and waited(process, lambda p=process, limit=limit: p.passed > limit, full):
                os.kill(process.pid, sign)
            done = process.end()
            least = min(least, disk.free()) if not full else least
            if done.code == 0:
                break
            wrong = judged(done, full, out)
            if wrong:
                log(f"LOST: {wrong}\n{done.stderr}")
                return 1
            kind = {-9: "kill -9", 143: "SIGTERM", -15: "SIGTERM", 2: "full"}[done.code]
            counts[kind] += 1
            log(f"{kind} after {done.seconds:.0f} s; the newest checkpoint is of step {newest(out):,} of {steps:,}")
        minutes = (time.monotonic() - begun) / 60
        alone = beside.end()
        assert alone.code == 0, alone.stderr
        log(f"undisturbed, beside it: {alone.seconds:.0f} s, {size(whole):,} bytes")
        wrong = checks.differences(checks.result(out), checks.result(whole)) or checks.temporaries(out)
        told = ", ".join(f"{count} × {kind}" for kind, count in counts.items() if count)
        log(f"{minutes:.1f} minutes, {paused:.0f} s of them paused; {steps:,} steps, {told}")
        log(f"least room {least:,} bytes on {disk.kind}")
        log(f"LOST: {wrong}" if wrong else "weights, records and facts equal those of the undisturbed run, bit for bit")
        return int(bool(wrong))
    finally:
        beside.stop()
        disk.full(False)
        disk.close()


def newest(out: pathlib.Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.stem[5:]) for path in (out / "nodes/a/checkpoints").glob("step-*.safetensors")), default=0)


def judged(done: Outcome, full: bool, out: pathlib.Path) -> str:
    """What is wrong after a process has ended early, in words."""
    if done.code not in (-9, -15, 143) and not (full and done.code == 2):
        return f"exit code {done.code}"
    if done.code == 2 and not any(word in done.stderr for word in ("No space", "no room", "too large")):
        return "another error than that of a full disk"
    return checks.message(done, interrupted=done.code == 143) or (checks.half_written(out, {}) if out.exists() else "")


if __name__ == "__main__":
    sys.exit(main())
