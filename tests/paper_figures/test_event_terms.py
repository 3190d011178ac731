"""Theory's terms at the growths, from the committed record."""

import pytest

from paper_figures.experiments import event_terms
from paper_figures.experiments.record import load_record


def test_terms_are_the_grown_networks_against_the_mean_of_its_sources():
    theory = {
        "loss_fused": 2.5,
        "modified_loss_fused": 2.75,
        "gradient_norm_fused": 0.5,
        "decrease_per_flop_fused": 0.25,
    }
    theory |= {f"{term}_source_{i}": 2.0 + i for i in (0, 1) for term in ("loss", "modified_loss")}
    theory |= {f"{term}_source_{i}": 1.0 for i in (0, 1) for term in ("gradient_norm", "decrease_per_flop")}
    found = event_terms.terms_of(theory | {"conflict": 3.0, "conflict_se": 0.1})
    assert found == {
        "loss": 0.0,
        "modified": 0.25,
        "gradient": 0.5,
        "decrease": 0.25,
        "conflict": 3.0,
        "conflict_se": 0.1,
    }


def test_velocity_factors_keep_the_modified_loss_and_kept_rates_do_not():
    nodes = next(iter(load_record(event_terms.NAME).seeds.values()))
    for event in event_terms.EVENTS:
        velocity, keep = (
            event_terms.terms_of(nodes[f"{event}_{name}"]["theory"]) for name in ("velocity_fuse", "keep_fuse")
        )
        assert velocity["loss"] == pytest.approx(0, abs=1e-4) == keep["loss"]
        assert abs(velocity["modified"]) < 1e-3 < 1e-2 < keep["modified"]


def test_the_table_has_a_row_for_each_growth():
    nodes = next(iter(load_record(event_terms.NAME).seeds.values()))
    rows = event_terms.table().splitlines()[4:]
    assert len(rows) == sum("theory" in node for name, node in nodes.items() if name.startswith(("early_", "late_")))
