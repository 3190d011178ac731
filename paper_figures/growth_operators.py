r"""Every growth operator in the same place of the same run.

One small network after 35 % of the budget is grown by each operator of ``fusion_core``, with the learning rates and the
optimizer state that the operator's own rule gives, and trains for the rest of the budget. Operators that deepen go on from a
network of half the depth that has cost as much. Beside them the network from scratch at its best rate, and one small network.

Every tick is a seed, the dot their mean, the bar Student's 95 % interval. Saved are FLOPs up to the loss that the best network
from scratch has at the budget; open dots are upper bounds, where an arm did not reach that loss in every seed.

What one should see: Deep Fusion's row leftmost, with its interval apart from those of the other operators.
"""

from matplotlib.figure import Figure

from paper_figures import arms
from paper_figures.experiments.comparison import FLOAT32, REFERENCE, Comparison
from paper_figures.results import Results

SEED = 0
DEPENDS = ("fusion_core",)
RECORDS = ("growth_operators", REFERENCE, FLOAT32)
OURS = "deep_fusion"  # how the names of Deep Fusion's arms begin
LABELS = {
    "deep_fusion": "Deep Fusion",
    "deep_fusion_keep": "Deep Fusion, rates kept",
    "deep_fusion_fresh_new": "Deep Fusion, new half fresh",
    "hypercloning": "HyperCloning",
    "hypercloning_keep": "HyperCloning, rates kept",
    "net2net_width": "Net2Net",
    "aki": "AKI (bert2BERT)",
    "random_off_diagonal": "random off-diagonal blocks",
    "random_block": "random new block",
    "sparkling": "SPARKLING",
    "shrink_perturb": "shrink and perturb",
    "random_init": "random start",
    "stacking": "stacking",
    "identity_layers": "identity layers",
}


def compute(preset: str) -> Results:
    """Read the record, or run the shared tiny plan at the preset "smoke"."""
    return arms.table_results("growth_operators", preset, SEED)


def draw(results: Results) -> Figure:
    """Draw a row an operator: its loss and what it saves."""
    return arms.draw_table(results, "Growth operators, one place of one run", LABELS, by_loss=True)


def finding(results: Results) -> str:
    """Return what the numbers say, and whether Deep Fusion is ahead of every other operator."""
    found = Comparison(results)
    ours = [arm for arm in found.others if arm.startswith(OURS)]
    theirs = [arm for arm in found.others if arm in LABELS and not arm.startswith(OURS)]
    table = arms.table_finding(results, LABELS)
    if not ours or not theirs:
        return table
    level = lambda arm: estimate.mean if (estimate := found.loss(arm)) else float("inf")
    best, other = min(ours, key=level), min(theirs, key=level)
    ahead = "ahead of" if level(best) < level(other) else "NOT ahead of"
    return (
        f"{table} Deep Fusion's best ({arms.name_of(found, best, LABELS)}) is {ahead} every other operator; it ends "
        f"{arms.against(found, best, other)} the best of them, {LABELS[other]}."
    )
