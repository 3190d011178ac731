r"""T5-Medium, scaled down: fusing two sources or one with itself, against training from scratch.

The large network from scratch at the best of its rates, with and without width factors; two sources fused with zero
off-diagonal blocks, and with random ones; one source fused with itself; and the small network with the whole budget. All at
equal FLOPs with the sources paid, but for the arms whose sources are trained twice as long, which are for whoever has them.

Every tick is a seed, the dot their mean, the bar Student's 95 % interval. Saved are FLOPs up to the loss that the best network
from scratch has at the budget; open dots are upper bounds, where an arm did not reach that loss in every seed.

What one should see: the dots of grown arms to the left of the dashed line, which is the network from scratch, and their
savings to the right of zero.

.. math:: 1 - \frac{C_A(\ell_S(B)) - c}{B}
"""

from matplotlib.figure import Figure

from paper_figures import arms
from paper_figures.experiments.comparison import FLOAT32, REFERENCE
from paper_figures.results import Results

SEED = 0
DEPENDS = ("fusion_core",)
RECORDS = ("t5_medium", REFERENCE, FLOAT32)
LABELS = {
    "two_zero": "two sources, zero blocks",
    "two_random": "two sources, random blocks",
    "self": "one source with itself",
    "self_keep": "one with itself, rates kept",
    "two_zero_full": "two full sources, zero blocks",
    "two_random_full": "two full sources, random blocks",
}


def compute(preset: str) -> Results:
    """Read the record, or run the shared tiny plan at the preset "smoke"."""
    return arms.table_results("t5_medium", preset, SEED)


def draw(results: Results) -> Figure:
    """Draw a row an arm: its loss and what it saves."""
    return arms.draw_table(results, "T5-Medium, scaled down: ways to the large network", LABELS)


def finding(results: Results) -> str:
    """Return what the numbers say."""
    return arms.table_finding(results, LABELS)
