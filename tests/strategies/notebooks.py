"""Notebooks run in this process: no kernel to start, and what is imported and compiled already is not again."""

import ast
import contextlib
import dataclasses
import io
import json
import pathlib
import re

import jax
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

ROOT = pathlib.Path(__file__).parent.parent.parent
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclasses.dataclass
class Shown:
    """What one code cell shows: its prints, the value of its last line, the figures."""

    printed: str
    value: object
    figures: list[Figure]


def read(name):
    return json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))


def code_of(notebook):
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def run(notebook):
    """Run the code cells in order, and return what each shows. JAX's precision and the figures are as before afterwards."""
    names, found, double = {"__name__": "__main__"}, [], jax.config.jax_enable_x64
    backend = matplotlib.get_backend()
    matplotlib.use("agg")
    plt.close("all")  # of other tests
    try:
        with plt.rc_context():
            plt.rcdefaults()
            for number, code in enumerate(code_of(notebook)):
                found.append(_shown(code, names, f"<cell {number}>"))
    finally:
        plt.close("all")
        jax.config.update("jax_enable_x64", double)
        matplotlib.use(backend)
    return found


def _shown(code, names, origin):
    tree, out = ast.parse(code, origin), io.StringIO()
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(out):
        exec(compile(tree, origin, "exec"), names)
        value = eval(compile(ast.Expression(last.value), origin, "eval"), names) if last else None
    figures = [plt.figure(number) for number in plt.get_fignums()]
    plt.close("all")
    lines = out.getvalue().splitlines(keepends=True)
    # formulas, which a kernel draws
    printed = "".join(line for line in lines if not line.startswith("<IPython.core.display."))
    return Shown(printed, value, figures + ([value] if isinstance(value, Figure) else []))


def committed(notebook):
    """What each code cell has printed, and how many pictures it has."""
    found = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            outputs = cell["outputs"]
            text = "".join("".join(out["text"]) for out in outputs if out.get("name") == "stdout")
            found.append((text, sum("image/png" in out.get("data", {}) for out in outputs)))
    return found


def assert_as_committed(notebook, shown, tolerance, loose=()):
    """Every line has the words that the repository shows, and its numbers up to the rounding of another machine.

    Lines that begin with one of ``loose`` tell the outcome of a race, which rounding may decide: they only have to be there.
    """
    for (text, pictures), now in zip(committed(notebook), shown, strict=True):
        lines = [said.splitlines() for said in (now.printed, text)]
        strict = ["\n".join(line for line in some if not line.startswith(tuple(loose))) for some in lines]
        assert NUMBER.sub("#", strict[0]) == NUMBER.sub("#", strict[1])
        numbers = [np.array([float(n) for n in NUMBER.findall(said)]) for said in strict]
        np.testing.assert_allclose(*numbers, rtol=tolerance, atol=2e-6)
        assert bool(lines[0]) == bool(lines[1])
        assert len(now.figures) == pictures
