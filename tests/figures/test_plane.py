"""Decisions on the plane: each in its place, and in the colour of its class."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from depthlab import figures
from depthlab.figures.style import HUES


def readings(lattice, key="a"):
    """From an array indexed [x, y]."""
    rows = [
        {"key": key, "probe": "decision", "layer": f"plane.{x}.{y}", "value": float(lattice[x, y])}
        for x, y in np.random.default_rng(0).permutation(list(np.ndindex(lattice.shape)))
    ]
    return pd.DataFrame(rows)


LATTICE = np.random.default_rng(1).integers(0, 2, (12, 11))


def test_decisions_come_back_in_their_places():
    assert np.array_equal(figures.decisions(readings(LATTICE)), LATTICE.T)


def test_gaps_and_several_runs_are_refused():
    with pytest.raises(ValueError, match=r"131 decisions do not fill a lattice of 12 x 11 points"):
        figures.decisions(readings(LATTICE).query("layer != 'plane.3.4'"))
    with pytest.raises(ValueError, match=r"decisions of one run, given 2"):
        figures.decisions(pd.concat([readings(LATTICE), readings(LATTICE, "b")]))
    with pytest.raises(ValueError, match=r"decisions of one run, given 0"):
        figures.decisions(readings(LATTICE).assign(probe="train_loss"))


def test_x_is_to_the_right_and_points_lie_on_the_pixels_scale():
    axes = Figure().subplots()
    lattice = np.zeros((6, 6), dtype=int)
    lattice[5, 0] = 1  # large x, small y
    figures.draw_decisions(axes, readings(lattice), np.array([[0.0, 255.0], [100.0, 20.0]]), np.array([0, 1]))
    (image,), (dots,) = axes.images, axes.collections
    assert image.origin == "lower"
    colors = image.cmap(image.norm(image.get_array()))[..., :3]
    (row,), (column,) = np.nonzero((colors != colors[3, 3]).any(axis=-1))
    assert (row, column) == (0, 5)
    left, right, bottom, top = image.get_extent()
    assert (left, bottom) == pytest.approx((-25.5, -25.5))  # the middle of the first cell is pixel 0
    assert (right, top) == pytest.approx((280.5, 280.5))
    for cell, hue in ((colors[3, 3], HUES[0]), (colors[0, 5], HUES[1])):
        assert 1 - cell == pytest.approx(0.35 * (1 - np.array(to_rgb(hue))))
    assert dots.get_facecolors()[:, :3] == pytest.approx(np.array([to_rgb(HUES[0]), to_rgb(HUES[1])]))
    assert dots.get_offsets().tolist() == [[0, 255], [100, 20]]
