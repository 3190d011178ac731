"""The long mode: ``python -m tests.fuzz --cases 10000 --json out.json``; ``--guided`` follows coverage (atheris).

Every target runs in a process of its own, which says what it does in lines of JSON; one that dies or hangs in a library costs
the case that it was at, which is saved, and goes on with the next.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from typing import Any

GRACE = 60  # seconds after its own bounds until a case that cannot be interrupted ends its process
BELT = 6 << 30  # bytes of address space that a target's process may take on top of what it begins with


def parsed() -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="cases a target")
    parser.add_argument("--target", action="append", default=[], help="only this one; may stand several times")
    parser.add_argument("--skip", action="append", default=[], help="not this one; may stand several times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path, help="file for what became of the cases")
    parser.add_argument(
        "--save", type=pathlib.Path, default=pathlib.Path("fuzz-found"), help="folder for what is found"
    )
    parser.add_argument("--guided", action="store_true", help="follow coverage, with the package atheris")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def say(**facts: Any) -> None:
    """Write a line for the parent."""
    print(json.dumps(facts), file=sys.__stdout__, flush=True)


def work(options: argparse.Namespace) -> None:
    """Run the cases of one target in this process."""
    with contextlib.ExitStack() as stack:
        if options.guided:
            from tests.fuzz.instrument import instrumented

            stack.enter_context(instrumented())
        from tests.fuzz.cases import Cases, Tally, run_cases
        from tests.fuzz.guard import WAITS, Outcome, limit_memory
        from tests.fuzz.targets import TARGETS

        target = TARGETS[options.worker]
        cases = Cases(target, options.folder)
        for outcome in cases.warm():
            if outcome.kind != "read":
                say(invalid=outcome.what, trace=outcome.trace)
    limit_memory(BELT)
    last = [0.0]

    def before(number: int, data: bytes) -> None:
        (options.folder / "now").write_bytes(data)
        faulthandler.dump_traceback_later(WAITS * target.seconds + GRACE, exit=True)

    def after(tally: Tally) -> None:
        faulthandler.cancel_dump_traceback_later()
        if time.monotonic() - last[0] > 0.5:
            last[0] = time.monotonic()
            tell(tally)

    def tell(tally: Tally) -> None:
        say(cases=tally.cases, kinds=tally.kinds, slowest=tally.slowest, memory=tally.memory)

    def found(outcome: Outcome, data: bytes) -> None:
        faulthandler.cancel_dump_traceback_later()
        data = cases.smaller(outcome, data)
        file = hashlib.sha256(data).hexdigest()[:12]
        (options.folder / "found").mkdir(exist_ok=True)
        (options.folder / "found" / file).write_bytes(data)
        say(found=outcome.kind, what=outcome.what, where=outcome.where, trace=outcome.trace, file=file)

    if options.guided:
        from tests.fuzz.guided import run_guided

        run_guided(cases, options.seed, options.cases, options.folder, before, after, found, tell)
        return
    tell(run_cases(cases, options.seed, range(options.first, options.first + options.cases), before, after, found))


def run_target(name: str, options: argparse.Namespace, show: Any) -> dict[str, Any]:
    """Run a target in other processes until all its cases are done; return what became of them."""
    total: dict[str, Any] = {"cases": 0, "kinds": Counter(), "slowest": 0.0, "memory": 0, "found": [], "invalid": []}
    begun = time.monotonic()
    base = "/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None
    while total["cases"] < options.cases:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-", dir=base))
        first, left = options.first + total["cases"], options.cases - total["cases"]
        words = ["--worker", name, "--cases", left, "--first", first, "--seed", options.seed, "--folder", folder]
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the process)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz", *map(str, words), *(["--guided"] if options.guided else [])],
            stdout=subprocess.PIPE, stderr=errors, text=True,
        )  # fmt: skip
        done: dict[str, Any] = {"cases": 0, "kinds": {}, "slowest": 0.0, "memory": 0}
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith("{"):
                continue
            said = json.loads(line)
            if "found" in said:
                keep(options.save / name, folder / "found" / said["file"], said)
                total["found"].append(said)
            elif "invalid" in said:
                total["invalid"].append(said)
            else:
                done = said
            show(total["cases"] + done["cases"], total["kinds"] + Counter(done["kinds"]))
        code = process.wait()
        died = code != 0
        total["kinds"] += Counter(done["kinds"])
        total["cases"] += done["cases"]
        total["slowest"], total["memory"] = max(total["slowest"], done["slowest"]), max(total["memory"], done["memory"])
        if died:
            errors.seek(0)
            text = errors.read()[-3000:]
            kind = "hang" if code == 1 and "Timeout" in text else "crash"
            said = {"found": kind, "what": f"the process ended with {code}", "where": "", "trace": text, "file": "died"}
            total["kinds"][kind] += 1
            total["cases"] += 1
            if (folder / "now").exists():
                said["file"] = hashlib.sha256((folder / "now").read_bytes()).hexdigest()[:12]
                keep(options.save / name, folder / "now", said)
            else:  # it has not begun
                total["cases"] = options.cases
            total["found"].append(said)
        shutil.rmtree(folder, ignore_errors=True)
    return total | {"seconds": round(time.monotonic() - begun, 1), "memory_mib": total.pop("memory") >> 20}


def keep(folder: pathlib.Path, file: pathlib.Path, said: dict[str, Any]) -> None:
    """Save an input that was found, and what it does."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / said["file"])
    text = "\n".join(said[name] for name in ("what", "where", "trace"))
    (folder / f"{said['file']}.txt").write_text(text, encoding="utf-8", errors="replace")


def main() -> None:
    """Run all targets, one after another; exit with 1 if a promise was broken."""
    options = parsed()
    if options.worker:
        return work(options)
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from tests.fuzz.targets import TARGETS

    if unknown := set(options.target + options.skip) - TARGETS.keys():
        sys.exit(f"there is no target {min(unknown)}; there are {', '.join(TARGETS)}")
    names = [name for name in options.target or TARGETS if name not in options.skip]
    results: dict[str, Any] = {}
    text = TextColumn("{task.description:18} {task.fields[counts]}")
    with Progress(text, BarColumn(30), MofNCompleteColumn(), TimeElapsedColumn()) as progress:
        for name in names:
            task = progress.add_task(name, total=options.cases, counts="")

            def show(cases: int, kinds: Counter[str], task: Any = task) -> None:
                counts = ", ".join(f"{count:,} {kind}" for kind, count in sorted(kinds.items()))
                progress.update(task, completed=cases, counts=counts)

            results[name] = run_target(name, options, show)
            if options.json is not None:
                values = {"seed": options.seed, "guided": options.guided, "targets": results}
                options.json.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
            if not sys.stdout.isatty():
                facts = results[name]
                print(
                    f"{name}: {facts['cases']:,} cases, {dict(facts['kinds'])}, {len(facts['found'])} mistakes, slowest "
                    f"{facts['slowest']:.2f} s, memory {facts['memory_mib']:,} MiB, {facts['seconds']:,} s", flush=True,
                )  # fmt: skip
    bad = sum(len(facts["found"]) + len(facts["invalid"]) for facts in results.values())
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
