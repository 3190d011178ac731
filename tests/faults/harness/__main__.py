"""``python -m tests.faults.harness``: faults tried, and the table of them."""

from __future__ import annotations

import argparse
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time
from typing import Any

from tests.faults.harness import shim

ROOT = pathlib.Path(__file__).parents[3]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=300, help="faults at random; 300")
    parser.add_argument(
        "--every", type=int, default=0, metavar="STRIDE", help="also at every such call of quick commands"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="words of the kinds that are tried, with commas")
    parser.add_argument("--commands", help="commands, with commas")
    parser.add_argument(
        "--out", type=pathlib.Path, help="JSON file of what was tried; one that is there is gone on from"
    )
    parser.add_argument(
        "--with", type=pathlib.Path, action="append", default=[], dest="others", metavar="FILE",
        help="JSON file of an earlier run, whose faults are in the table too; may stand several times",
    )  # fmt: skip
    parser.add_argument("--write", type=pathlib.Path, help="page into which the table is written")
    parser.add_argument("--folder", type=pathlib.Path, help="for inputs, caches and cases in which something was lost")
    return parser.parse_args()


def trials(asked: argparse.Namespace) -> list[tuple[Any, str, int | None, int]]:
    """Return (kind, command, call or None, number) of all faults, the random ones in the ratio of the kinds' shares."""
    from tests.faults.harness.table import ALL_KINDS

    commands = None if asked.commands is None else asked.commands.split(",")
    words = (asked.only or "").split(",")
    cells = [
        (kind, command)
        for kind in ALL_KINDS
        if any(word in kind.name for word in words)
        for command in kind.commands
        if commands is None or command in commands
    ]
    rng = random.Random(asked.seed)
    weights = [kind.share / len(kind.commands) * (0.3 if name == "demo" else 1) for kind, name in cells]
    first = rng.sample(cells, min(len(cells), asked.faults))  # each once, then by their shares
    drawn = first + rng.choices(cells, weights, k=max(0, asked.faults - len(first)))
    return [(kind, name, None, i) for i, (kind, name) in enumerate(drawn)]


def main() -> int:
    asked = arguments()
    shim.preload()
    from rich.progress import Progress

    from tests.faults.harness import table
    from tests.faults.harness.processes import import_all

    import_all()
    from tests.faults.harness.workloads import Bench

    root = asked.folder or pathlib.Path(tempfile.mkdtemp(prefix="deepfusion-faults-"))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(root / "compiled"))
    tried = table.Table.of(asked.out, ROOT, asked.others)
    bench = Bench(root)
    with Progress(transient=True) as progress:
        todo = trials(asked)
        if asked.every:
            todo += [
                (kind, name, number, number)
                for kind in table.ALL_KINDS
                if kind.action and any(word in kind.name for word in (asked.only or "").split(","))
                for name in kind.commands
                if asked.commands is None or name in asked.commands.split(",")
                for number in range(1, bench.calls(name) + 1, asked.every)
            ]
        task = progress.add_task("faults", total=len(todo))
        for kind, name, call, number in todo:
            key = f"{kind.name} / {name} / {asked.seed} / {'call ' if call else ''}{number}"
            if key not in tried.faults:
                begun = time.monotonic()
                try:
                    found = kind.at_call(bench, name, call) if call else kind.tried(bench, name, random.Random(key))
                    lost, where = found.lost, found.where
                except Exception as error:
                    lost, where = f"the harness: {type(error).__name__}: {error}", ""
                if lost:
                    kept = bench.keep()
                    progress.console.print(f"LOST {key}: {lost} ({where}); {kept}", markup=False, highlight=False)
                tried.add(key, kind.name, name, lost, where, round(time.monotonic() - begun, 2))
            progress.advance(task)
    bench.warm.close()
    print(tried.markdown())
    if asked.write:
        tried.write(asked.write)
    if asked.folder is None and not tried.losses():
        shutil.rmtree(root, ignore_errors=True)
    return int(bool(tried.losses()))


if __name__ == "__main__":
    sys.exit(main())
