"""What a run shows in a terminal, and elsewhere."""

import io

from rich.console import Console

from deepfusion.view import View, clock, sparkline, view_of

RECORD = {"step": 10, "loss": 3.0, "steps_per_second": 2.0, "tokens_per_second": 1e4, "mfu": 0.4, "input_wait": 0.01}


def test_a_sparkline_goes_from_low_to_high_and_averages_what_does_not_fit():
    assert sparkline([float(i) for i in range(8)]) == "▁▂▃▄▅▆▇█"
    assert sparkline([0.0, 2.0, 8.0, 6.0], width=2) == "▁█"
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([]) == ""


def test_durations_are_read_at_a_glance():
    assert [clock(s) for s in (7.0, 125.0, 3723.0)] == ["0:07", "2:05", "1:02:03"]


def test_without_a_terminal_the_view_is_plain_lines():
    out = io.StringIO()
    view = View(Console(file=out, width=30))
    view.begin("a", 0, 20)
    view.show(RECORD)
    view.show({"step": 10, "validation_loss": 2.5})
    lines = out.getvalue().splitlines()
    assert lines == [
        "a: steps 0 to 20",
        "a: step 10/20, loss 3.0000, 10,000 tokens/s, MFU 40.0%, waiting for input 1.0%, left 0:05",
        "a: step 10: validation loss 2.5000",
    ]


def test_in_a_terminal_the_view_stays_in_place():
    out = io.StringIO()
    record = RECORD | {"steps_per_second": 0.0, "mfu": None}
    with view_of(Console(file=out, force_terminal=True, width=100)) as view:
        view.begin("a", 0, 20)
        view.show(record)
        view.show({"step": 10, "validation_loss": 2.5})
        view.show(record | {"step": 15, "loss": 2.0})
    shown = out.getvalue()
    assert "█▁" in shown
    assert "step 15/20, loss 2.0000, validation 2.5000" in shown
