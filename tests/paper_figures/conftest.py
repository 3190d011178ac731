import types

import pytest
from matplotlib.figure import Figure

import paper_figures.registry
from paper_figures.results import Results


@pytest.fixture
def tiny_figure(monkeypatch, tmp_path):
    """A figure that costs nothing, in the registry as "tiny"; ``computed`` counts its computations."""
    module = types.ModuleType("tiny", "A tiny <figure>.\n\nOne should see a line.\n\n.. math:: y = x")
    source = tmp_path / "tiny.py"
    source.write_text("# version 1\n")
    module.__file__ = str(source)
    module.SEED, module.DEPENDS, module.computed = 0, ("toy_models",), []

    def compute(preset):
        module.computed.append(preset)
        return Results.of("tiny", preset, module.SEED, {"n": 3}, {"x": [0.0, 1.0, 2.0]}, 0.0)

    def draw(results):
        figure = Figure()
        figure.add_subplot().plot(results.arrays["x"])
        return figure

    module.compute, module.draw, module.finding = compute, draw, lambda results: "It is a line."
    monkeypatch.setitem(paper_figures.registry.FIGURES, "tiny", module)
    return module
