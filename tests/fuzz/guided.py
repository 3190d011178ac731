"""Cases that follow the coverage of our code: libFuzzer through the package atheris, with the mutations of the targets."""

from __future__ import annotations

import os
import pathlib
import random
import sys
from collections.abc import Callable

from tests.fuzz.cases import LONGEST, Cases, Tally
from tests.fuzz.guard import Outcome


def run_guided(
    cases: Cases,
    seed: int,
    number: int,
    folder: pathlib.Path,
    before: Callable[[int, bytes], None],
    after: Callable[[Tally], None],
    found: Callable[[Outcome, bytes], None],
    end: Callable[[Tally], None],
) -> None:
    """Run so many cases, and end this process, as libFuzzer does. The arguments are those of ``run_cases``.

    Args:
      folder: for the inputs to begin with; libFuzzer adds those that reach new branches.
      end: called with the tally of all cases.
    """
    import atheris

    corpus, tally = folder / "corpus", Tally()
    corpus.mkdir()
    for i, data in enumerate(cases.valid):
        (corpus / f"valid-{i}").write_bytes(data)

    def one(data: bytes) -> None:
        before(tally.cases, data)
        outcome = cases.outcome(data)
        if tally.add(outcome, data):
            found(outcome, data)
        after(tally)
        if tally.cases >= number:
            end(tally)
            os._exit(0)

    def mutated(data: bytes, longest: int, drawn: int) -> bytes:
        rng = random.Random(drawn)
        if rng.random() < 0.2:  # libFuzzer's own, which knows what was compared with what
            return atheris.Mutate(data, longest)
        return cases.target.mutate(rng, data)[:longest]

    options = [
        f"-seed={seed + 1}",
        f"-max_len={LONGEST}",
        "-runs=-1",
        "-timeout=0",
        "-rss_limit_mb=0",
        "-len_control=0",
    ]
    options += ["-print_final_stats=0", "-verbosity=0", "-handle_int=0", "-handle_term=0"]
    options += [f"-artifact_prefix={folder}/", "-report_slow_units=100000"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], one, custom_mutator=mutated, internal_libfuzzer=True)
    atheris.Fuzz()
