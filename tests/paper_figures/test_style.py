"""The colours of the figures: told apart in grey, and with each of the three colour blindnesses."""

import itertools

import matplotlib
import numpy as np
import pytest

from paper_figures.style import style

# linear RGB -> what is left of it with one kind of cones missing. Source: Machado, Oliveira & Fernandes (2009), severity 1
BLIND = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "none": np.eye(3),
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
OKABE_ITO = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]


def palette():
    with style():
        return matplotlib.rcParams["axes.prop_cycle"].by_key()["color"]


def lab(colour, matrix):
    """CIE L*a*b* of a colour, as it is seen."""
    rgb = np.array(matplotlib.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = XYZ @ np.clip(np.asarray(matrix) @ linear, 0, 1) / XYZ.sum(axis=1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def smallest_step(colours):
    """The smallest difference of two lightnesses L*, from 0 to 100: what grey shows."""
    return float(np.diff(sorted(lab(colour, BLIND["none"])[0] for colour in colours)).min())


def test_every_colour_has_a_lightness_of_its_own():
    assert smallest_step(palette()) > 8
    assert smallest_step(OKABE_ITO) < 1  # which the usual palette has not
    assert max(lab(colour, BLIND["none"])[0] for colour in palette()) < 80  # and is seen on white


@pytest.mark.parametrize("kind", BLIND)
def test_the_colours_are_told_apart(kind):
    """A difference of 2.3 is just noticeable."""
    seen = [lab(colour, BLIND[kind]) for colour in palette()]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)) > 15
    alike = [lab(colour, BLIND["deuteranopia"]) for colour in ("#c03030", "#507020")]
    assert np.linalg.norm(alike[0] - alike[1]) < 25  # red and green are nearly one
