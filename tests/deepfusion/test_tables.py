"""In tables for the terminal no number is ever cut."""

import re

import pytest

from deepfusion.tables import duration, prefixed, print_facts, print_table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (7, "7"), (999, "999"), (999.6, "1 k"), (17_200, "17.2 k"), (4_200_000, "4.2 M"),
        (1.0234e15, "1.02 P"), (9.995e20, "1 Z"), (3e27, "3e+03 Y"), (-5e9, "-5 G"), (0.25, "0.25"),
    ],
)  # fmt: skip
def test_a_quantity_has_three_digits_and_a_prefix(value, text):
    assert prefixed(value) == text
    assert prefixed(value, "B") == (f"{text}B" if text[-1].isalpha() else f"{text} B")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0763, "0.076 s"),
        (12, "12 s"),
        (204, "3.4 min"),
        (7560, "2.1 h"),
        (449280, "5.2 days"),
        (1e9, "31.7 years"),
    ],
)
def test_a_time_has_the_largest_unit_of_which_there_is_one(seconds, text):
    assert duration(seconds) == text


COLUMNS = ("name", "from", "parameters", "steps", "total FLOPs", "loss")
ROWS = [
    ("a", "random start", "76.9 M", "1,000,000", "13.6 E", "3.1234 ± 0.0021"),
    ("a_network_with_a_name_that_is_far_too_long_for_any_terminal", "a + b + c + d", "1.2 G", "0 to 1,000", "1 Y", ""),
]
NUMBERS = [cell for row in ROWS for cell in row[2:] if cell]


@pytest.mark.parametrize("width", [24, 40, 60, 80, 200])
def test_every_number_is_whole_at_any_width(capsys, width):
    print_table(COLUMNS, ROWS, title="Networks", text=("name", "from"), width=width)
    out = capsys.readouterr().out
    assert "…" not in out
    assert all(len(line) <= width for line in out.splitlines())
    for number in NUMBERS:
        assert re.search(rf"(?<![\d,.]){re.escape(number)}(?!\d|[,.]\d)", out), number
    assert "".join(out.split()).count(ROWS[1][0][-8:]) == 1


def test_columns_share_the_width_and_numbers_are_on_the_right(capsys):
    print_table(("name", "n"), [("a", "5"), ("b", "1,000")], text=("name",), width=80)
    assert capsys.readouterr().out == "name      n\n───────────\na         5\nb     1,000\n"


@pytest.mark.parametrize("width", [40, 60, 80])
def test_a_long_fact_goes_on_below_itself(capsys, width):
    print_facts([("parameters", "123,456,789"), ("files", "model-00001-of-00002.safetensors " * 4)], width)
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "parameters  123,456,789"
    assert out.count("model-00001-of-00002.safetensors") == 4
