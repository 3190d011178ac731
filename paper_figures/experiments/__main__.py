"""``python -m paper_figures.experiments``: list, run, record and tabulate the paper's experiments."""

from __future__ import annotations

import argparse
import dataclasses
import pathlib
import sys

from fusion_core.errors import InputError, Interrupted, TrainingDiverged
from fusion_core.runs.run import RESULTS
from fusion_core.train.devices import first_process
from paper_figures.experiments import finetuning, page, record, runner, smoke, tables

EXAMPLES = """examples:
  python -m paper_figures.experiments                                               list the experiments
  python -m paper_figures.experiments after_growth --out runs/after --seeds 0,1,2   run one, or go on, and write its record
  python -m paper_figures.experiments after_growth --out runs/tiny --smoke          the same graph at a toy's size; no record
  python -m paper_figures.experiments after_growth --record runs/a/results.json runs/b/results.json
                                                                                    one record of runs with different seeds
  python -m paper_figures.experiments --table after_growth                          print its tables as Markdown
  python -m paper_figures.experiments --write docs/growing.md                       renew the page's tables and sentences
"""
TUNED = "finetuned"  # folder of a run with its fine-tuned networks


def main(arguments: list[str] | None = None) -> int:
    """Do what the arguments say; return the exit code: 0, 2 after a line that says what is wrong with the input, or 130."""
    parser = argparse.ArgumentParser(
        prog="python -m paper_figures.experiments",
        description="Run the paper's experiments from their plan files, and keep what they gave as small records.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("name", nargs="?", metavar="NAME", help="experiment: the name of its plan file, without the ending")
    add("--plan", type=pathlib.Path, metavar="FILE", help="plan file (default: that of the experiment)")
    add("--out", type=pathlib.Path, metavar="FOLDER", help="run the plan in this folder, or go on with the run in it")
    add("--seeds", metavar="0,1,2", help="run it once for each of these seeds (default: the plan's)")
    add(
        "--smoke",
        action="store_true",
        help="run a copy of a toy's size, and write no record unless --to names its file",
    )
    add("--glue", type=pathlib.Path, metavar="FOLDER", help="then fine-tune every arm on SST-2 and RTE of this folder")
    add(
        "--scores",
        type=pathlib.Path,
        metavar="FOLDER",
        help="with --record: its networks, fine-tuned in seed-N/ARM/TASK",
    )
    add(
        "--record",
        type=pathlib.Path,
        nargs="+",
        metavar="FILE",
        help="make the record of these results.json or records",
    )
    add("--to", type=pathlib.Path, metavar="FILE", help="file of the record (default: beside the plan)")
    add("--table", metavar="NAME", help="print the tables of an experiment as Markdown")
    add("--write", type=pathlib.Path, metavar="FILE", help="renew the tables and sentences of a page from the records")
    options = parser.parse_args(arguments)
    try:
        if options.table:
            print(page.table_of(options.table))
        elif options.write:
            print("\n".join(page.write(options.write)))
        elif options.name is None:
            print("\n".join(tables.listing()))
        elif options.record:
            _write(options.name, _plan_file(options), options.record, options.to, options.scores)
        elif options.out:
            return _run(options)
        else:
            parser.error("give --out FOLDER to run the experiment, or --record FILES to make its record")
    except (InputError, TrainingDiverged) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _plan_file(options: argparse.Namespace) -> pathlib.Path:
    """Return the plan's file. Raise InputError if there is none."""
    file = options.plan or record.path_of(options.name, "toml")
    if not file.exists():
        raise InputError(f"there is no plan {file}; there are experiments {', '.join(record.names())}")
    return file


def _write(
    name: str, plan: pathlib.Path, files: list[pathlib.Path], to: pathlib.Path | None, tuned: pathlib.Path | None
) -> None:
    path, made = to or record.path_of(name, "json"), record.record_of(name, plan, files)
    if tuned is not None:
        made = dataclasses.replace(made, scores=finetuning.scores_in(tuned))
    made.save(path)
    print(path)


def _run(options: argparse.Namespace) -> int:
    """Run a plan, or its copy of a toy's size, and write the record."""
    file, out = _plan_file(options), options.out
    if options.smoke:
        file = smoke.tiny_copy(file, out)
    plan = record.read_plan(file)
    if options.seeds:
        plan = dataclasses.replace(plan, seeds=_numbers(options.seeds))
    try:
        runner.run_noted(plan, out)
        if options.glue:
            finetuning.finetune_arms(out, options.glue, out / TUNED, note=runner.say)
    except (Interrupted, KeyboardInterrupt):
        print("Interrupted; the same command goes on.", file=sys.stderr)
        return 130
    if first_process() and (not options.smoke or options.to):
        _write(options.name, file, [out / RESULTS], options.to, out / TUNED if options.glue else None)
    return 0


def _numbers(seeds: str) -> tuple[int, ...]:
    parts = seeds.split(",")
    if not all(part.strip().isdigit() for part in parts):
        raise InputError(f"--seeds is {seeds!r}; give numbers, 0 or more, with commas, such as 0,1,2")
    return tuple(int(part) for part in parts)


if __name__ == "__main__":
    sys.exit(main())
