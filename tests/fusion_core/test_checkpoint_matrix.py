"""Architecture × dtype × tied or not × sharded or not × old or new layout: fused with itself, judged by transformers.

The settings of each architecture are all pairs of two values, in six checkpoints. The table of docs/checkpoints.md is made of
the results: ``DEEPFUSION_WRITE_TABLES=1 python -m pytest tests/fusion_core/test_checkpoint_matrix.py`` renews it.
"""

import inspect
import math
import os
import pathlib
import re

import numpy as np
import pytest

from fusion_core import checkpoints
from fusion_core.models.decoder import gemma2, gpt_neox, mistral, phi3, qwen3
from fusion_core.models.t5 import relatives
from tests.strategies import hub

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers', which are not ours
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "checkpoints.md"
BEGIN, END = "<!-- table: matrix -->", "<!-- end of table -->"
ROUNDING = {
    "float32": 2e-5,
    "bfloat16": 2.0**-5,
    "float16": 2.0**-8,
}  # of the largest logit, where a factor is no power of 2
# all pairs of two settings
LAYOUTS = [
    {"dtype": dtype, "tied": tied, "sharded": sharded, "old": old}
    for dtype, tied, sharded, old in (
        ("float32", True, False, False),
        ("float32", False, True, True),
        ("bfloat16", True, True, True),
        ("bfloat16", False, False, False),
        ("float16", True, False, True),
        ("float16", False, True, False),
    )
]
# records without a forward pass of their own
RECORDS = {
    **{"mt5": relatives, "umt5": relatives, "mistral": mistral, "qwen3": qwen3, "gemma2": gemma2, "phi3": phi3},
    "gpt_neox": gpt_neox,
}
NAMES = list(hub.ARCHITECTURES)
RESULTS = {}


def test_the_layouts_have_all_pairs_of_settings():
    settings = {name: {layout[name] for layout in LAYOUTS} for name in LAYOUTS[0]}
    for a in settings:
        for b in settings:
            wanted = {(x, y) for x in settings[a] for y in settings[b] if a != b or x == y}
            assert {(layout[a], layout[b]) for layout in LAYOUTS} == wanted


def same(folder, layout, out):
    """Whether a checkpoint fused with itself has its logits in transformers."""
    before = hub.logits(folder)
    recipe = checkpoints.fusion_recipe([folder, folder])
    checkpoints.write_recipe(recipe, out, probe=False)
    scales = {scale for tensor in recipe.tensors for scale in tensor.rule.scales}
    exact = all(math.log2(scale).is_integer() for scale in scales)
    tolerance = ROUNDING["float32" if exact else layout["dtype"]]
    difference = np.abs(hub.logits(out) - before).max()
    assert difference <= tolerance * np.abs(before).max(), (layout, difference)
    assert set(recipe.dtypes) == {{"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[layout["dtype"]]}
    return recipe


@pytest.mark.parametrize("name", NAMES)
def test_in_every_layout_it_is_read_and_fused_with_itself_exactly(name, tmp_path):
    for i, layout in enumerate(LAYOUTS):
        recipe = same(hub.laid_out(tmp_path / f"a{i}", name, **layout), layout, tmp_path / f"b{i}")
    # as one network that newer and older versions have saved
    assert checkpoints.fusion_recipe([tmp_path / "a0", tmp_path / "a4"]).kept == ()
    RESULTS[name] = (len(LAYOUTS), recipe)


def lines_of(module):
    """Number of lines of a record's code: without its docstrings, imports and blank lines."""
    text = re.sub(r'""".*?"""', "", inspect.getsource(module), flags=re.DOTALL)
    return sum(bool(line.strip()) and not re.match(r"(from|import) ", line) for line in text.splitlines())


def table():
    head = ["architecture", "model_type", "lines", "fused with itself", "different sources", "forward pass here"]
    rows = [head, ["---"] * len(head)]
    for name in NAMES:
        number, recipe = RESULTS[name]
        kind = hub.ARCHITECTURES[name][0]
        caveat = recipe.sources[0].architecture.caveat
        rows.append(
            [
                *(name, f"`{kind}`", str(lines_of(RECORDS[kind])) if kind in RECORDS else ""),
                f"same logits in {number} of {len(LAYOUTS)} layouts",
                "mean, up to the norms' statistics" + (f"; {caveat}" if caveat else ""),
                "no" if recipe.cannot_run else "yes",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def test_the_table_in_the_docs_is_what_was_found():
    if RESULTS.keys() != set(NAMES):
        pytest.skip("the table needs all architectures: run the whole file")
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    wanted = f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"
    if os.environ.get("DEEPFUSION_WRITE_TABLES"):
        PAGE.write_text(wanted, encoding="utf-8")
        return
    assert wanted == text, "run this file with DEEPFUSION_WRITE_TABLES=1"


@pytest.mark.parametrize("kind", RECORDS)
def test_a_record_has_at_most_40_lines(kind):
    assert lines_of(RECORDS[kind]) <= 40
