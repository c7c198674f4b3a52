"""Colours over a plane: each cell is the mean over seeds, lies where its settings lie, and theory does not move it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, to_rgba

from depthlab.figures import draw_heat, panels, style, theory_over
from depthlab.figures.heat import MISSING, edges
from depthlab.figures.style import render

WIDTHS, DEPTHS = (1.0, 2.0, 4.0), (3, 10, 30)


def value(width: float, depth: int, seed: int) -> float:
    return width * depth * 10.0**seed


def table() -> pd.DataFrame:
    rows = [
        {"width": width, "model.depth": depth, "seed": seed, "value": value(width, depth, seed)}
        for width in WIDTHS
        for depth in DEPTHS
        for seed in range(3)
    ]
    return pd.DataFrame(rows)


def draw(readings: pd.DataFrame, **options: object) -> Axes:
    with style():
        _, (axes,) = panels()
        draw_heat(axes, readings, "width", "model.depth", label="error, %", **options)  # type: ignore[arg-type]
    return axes


def mesh(axes: Axes) -> QuadMesh:
    (found,) = (each for each in axes.collections if isinstance(each, QuadMesh))
    return found


def cells(axes: Axes) -> np.ma.MaskedArray:
    return np.ma.asarray(mesh(axes).get_array()).reshape(3, 3)


def test_cells_are_means_over_seeds_at_their_settings() -> None:
    axes = draw(table().sample(frac=1, random_state=0))
    np.testing.assert_allclose(cells(axes), [[37 * width * depth for width in WIDTHS] for depth in DEPTHS])
    corners = mesh(axes).get_coordinates()
    assert corners[0, :, 0].tolist() == [0.5, 1.5, 3.0, 5.0]
    assert corners[:, 0, 1].tolist() == [-0.5, 6.5, 20.0, 40.0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["3", "10", "30"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("width", "depth (weight layers)")
    assert axes.figure.axes[1].get_ylabel() == "error, %"


def test_on_logarithmic_colours_means_are_geometric() -> None:
    axes = draw(table(), log=True, ticks=[29, 30, 300, 1300])
    np.testing.assert_allclose(cells(axes), [[10 * width * depth for width in WIDTHS] for depth in DEPTHS])
    assert isinstance(mesh(axes).norm, LogNorm)
    bar = axes.figure.axes[1]
    assert [text.get_text() for text in bar.get_yticklabels()] == ["30", "300"]
    assert not bar.get_yticks(minor=True).size
    assert bar.get_ylim() == pytest.approx((30, 1200))


def test_on_a_logarithmic_axis_cells_reach_half_way_in_logarithms() -> None:
    axes = draw(table(), log_y=True)
    assert axes.get_yscale() == "log"
    inner = [math.sqrt(30), math.sqrt(300)]
    expected = [9 / inner[0], *inner, 900 / inner[1]]
    assert mesh(axes).get_coordinates()[:, 0, 1].tolist() == pytest.approx(expected)


def test_limits_are_the_ends_of_the_colours() -> None:
    assert (mesh(draw(table())).norm.vmin, mesh(draw(table())).norm.vmax) == pytest.approx((3 * 37, 120 * 37))
    norm = mesh(draw(table(), limits=(0, 90))).norm
    assert (norm.vmin, norm.vmax) == (0, 90)


def test_what_has_no_mean_is_grey() -> None:
    readings = table()
    readings.loc[readings.index[0], "value"] = math.nan  # one seed of the first cell
    readings = readings[~((readings["width"] == 4.0) & (readings["model.depth"] == 30))]
    axes = draw(readings)
    masked = np.ma.getmaskarray(cells(axes))
    assert masked.tolist() == [[True, False, False], [False, False, False], [False, False, True]]
    assert axes.get_facecolor() == to_rgba(MISSING)


def test_nothing_to_colour_has_no_scale_of_colours() -> None:
    axes = draw(table().assign(value=math.nan))
    assert len(axes.figure.axes) == 1
    assert len(render(axes.figure, "png")) > 5_000


def test_several_values_of_a_seed_are_refused() -> None:
    with pytest.raises(ValueError, match="several values for width"):
        draw(pd.concat([table(), table()[:1]]))


def test_theory_is_drawn_over_and_does_not_move_the_axes() -> None:
    axes = draw(table(), log_y=True)
    before = axes.get_xlim(), axes.get_ylim()
    theory_over(axes, [0, 1, 100], [1e-3, 5, 1e9], label="6 xi")
    assert (axes.get_xlim(), axes.get_ylim()) == before
    (line,) = axes.lines
    assert line.get_xydata().tolist() == [[0, 1e-3], [1, 5], [100, 1e9]]
    assert line.get_label() == "6 xi"
    assert line.get_zorder() > mesh(axes).get_zorder()
    assert len(line.get_path_effects()) == 2  # white with a black edge


def test_edges_of_one_cell() -> None:
    assert edges(np.array([4.0])).tolist() == [3.5, 4.5]
    assert edges(np.array([0.0, 1.0, 3.0])).tolist() == [-0.5, 0.5, 2.0, 4.0]
