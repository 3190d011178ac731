r"""T5-Large, scaled down: four ways to the large network, and a fifth in two steps.

From scratch at the best rate; two M fused; one M fused with itself; two S fused to M, twice, then the two M; and one S fused
with itself to M, and that with itself to L. S, M and L have the widths 16, 32 and 64. All at equal FLOPs, sources paid.

Every tick is a seed, the dot their mean, the bar Student's 95 % interval. Saved are FLOPs up to the loss that the best network
from scratch has at the budget; open dots are upper bounds, where an arm did not reach that loss in every seed.

What one should see: the dots of grown arms to the left of the dashed line, which is the network from scratch; the way in two
steps to the left of the others, since the smallest network leads at the beginning.
"""

from matplotlib.figure import Figure

from paper_figures import arms
from paper_figures.experiments.comparison import FLOAT32, REFERENCE
from paper_figures.results import Results

SEED = 0
DEPENDS = ("fusion_core",)
RECORDS = ("t5_large", REFERENCE, FLOAT32)
LABELS = {
    "m_m": "M + M",
    "m_self": "M with itself",
    "s_s_m_m": "S + S to M twice, then M + M",
    "two_steps": "S with itself, M with itself",
}


def compute(preset: str) -> Results:
    """Read the record, or run the shared tiny plan at the preset "smoke"."""
    return arms.table_results("t5_large", preset, SEED)


def draw(results: Results) -> Figure:
    """Draw a row an arm: its loss and what it saves."""
    return arms.draw_table(results, "T5-Large, scaled down: ways to the large network", LABELS)


def finding(results: Results) -> str:
    """Return what the numbers say."""
    return arms.table_finding(results, LABELS)
