"""One training's quantity by depth and over steps: what is drawn is what was read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, to_rgba
from matplotlib.figure import Figure

from depthlab.figures import draw_map, flow, panels, style
from depthlab.figures.flow import MOST_COLUMNS
from depthlab.figures.heat import MISSING
from depthlab.figures.style import render


def table(
    value: Callable[[int, int], float], depths: Iterable[int], steps: Iterable[int], probe: str = "grad_norm"
) -> pd.DataFrame:
    depths = list(depths)
    rows: list[dict[str, Any]] = []
    for step in steps:
        rows.append({"step": step, "layer": "network", "depth": 0, "probe": "train_loss", "value": 1.0})
        for depth in depths:
            cell = {"step": step, "layer": f"layer{depth}", "depth": depth}
            rows.append({**cell, "probe": probe, "value": value(depth, step)})
            rows.append({**cell, "probe": "weight_norm" if probe != "weight_norm" else "grad_norm", "value": -3.0})
    return pd.DataFrame(rows)


def vanishing(depth: int, step: int) -> float:
    return 10.0 ** (depth - 6) * (1 + step)


def mesh(figure: Figure | Axes) -> QuadMesh:
    axes = figure if isinstance(figure, Axes) else figure.axes[1]
    (found,) = (each for each in axes.collections if isinstance(each, QuadMesh))
    return found


def lines(figure: Figure) -> dict[str, tuple[list[float], list[float]]]:
    drawn = [line for line in figure.axes[0].lines if str(line.get_label()).startswith("after")]
    return {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in drawn}


def test_lines_are_the_values_at_the_first_the_last_and_two_between() -> None:
    figure = flow(table(vanishing, range(1, 6), range(0, 3100, 100)))
    found = lines(figure)
    assert list(found) == [f"after {step} updates" for step in ("0", "1,000", "2,000", "3,000")]
    for name, (depths, values) in found.items():
        step = int(name.split()[1].replace(",", ""))
        assert depths == [1, 2, 3, 4, 5]
        assert values == pytest.approx([vanishing(depth, step) for depth in depths])
    assert figure.axes[0].get_yscale() == "log"
    assert figure.axes[0].get_xlabel() == "layer (from the input)"
    assert "gradient norm" in figure.axes[0].get_ylabel()


@pytest.mark.parametrize(
    ("steps", "shown"),
    [([7], [7]), ([0, 3], [0, 3]), ([0, 1, 2], [0, 1, 2]), ([0, 1, 2, 3, 40], [0, 1, 3, 40])],
)
def test_fewer_steps_have_fewer_lines(steps: list[int], shown: list[int]) -> None:
    figure = flow(table(vanishing, range(1, 6), steps))
    assert list(lines(figure)) == [f"after {step} updates" for step in shown]
    assert len(render(figure, "png")) > 10_000


def test_rows_may_come_in_any_order() -> None:
    readings = table(vanishing, range(1, 6), range(10))
    shuffled = readings.sample(frac=1, random_state=0)
    assert lines(flow(shuffled)) == lines(flow(readings))


def test_map_is_the_values_by_layer_and_step() -> None:
    figure = flow(table(vanishing, range(1, 6), [0, 10, 20]))
    found = mesh(figure)
    expected = np.array([[vanishing(depth, step) for step in (0, 10, 20)] for depth in range(1, 6)])
    np.testing.assert_array_equal(np.ma.getdata(found.get_array()).reshape(5, 3), expected)
    assert not np.ma.getmaskarray(found.get_array()).any()
    assert isinstance(found.norm, LogNorm)
    assert (found.norm.vmin, found.norm.vmax) == (expected.min(), expected.max())
    axes = figure.axes[1]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("updates", "layer (from the input)")
    assert "gradient norm" in figure.axes[2].get_ylabel()
    assert axes.get_ylim()[0] < axes.get_ylim()[1]  # the input is below


@pytest.mark.parametrize(("probe", "log"), [("grad_norm", True), ("weight_norm", False)])
def test_what_cannot_be_drawn_is_grey(probe: str, log: bool) -> None:
    odd = {(1, 0): 0.0, (2, 0): math.nan, (3, 0): math.inf, (4, 0): -1.0, (1, 1): -math.inf}
    figure = flow(table(lambda depth, step: odd.get((depth, step), 1.0 + depth), range(1, 6), range(3), probe), probe)
    masked = np.ma.getmaskarray(mesh(figure).get_array()).reshape(5, 3)
    grey = {(1, 0), (2, 0), (3, 0), (4, 0), (1, 1)} if log else {(2, 0), (3, 0), (1, 1)}
    assert {(row + 1, column) for row, column in np.argwhere(masked).tolist()} == grey
    assert figure.axes[1].get_facecolor() == to_rgba(MISSING)
    render(figure, "svg")
    colors = mesh(figure).get_facecolors().reshape(5, 3, 4)
    assert (colors[masked][:, 3] == 0).all()  # so that the grey behind is seen
    assert (colors[~masked][:, 3] == 1).all()


def test_layers_that_came_into_play_later_are_grey_before() -> None:
    readings = table(vanishing, range(1, 6), range(6))
    readings = readings[~((readings["depth"] == 5) & (readings["step"] < 3))]
    masked = np.ma.getmaskarray(mesh(flow(readings)).get_array()).reshape(5, 6)
    assert masked.tolist() == [[False] * 6] * 4 + [[True] * 3 + [False] * 3]


def test_edges_are_half_way_between_unequal_steps() -> None:
    figure = flow(table(vanishing, [1, 2, 3], [0, 1, 3, 10]))
    corners = mesh(figure).get_coordinates()
    assert corners[0, :, 0].tolist() == [-0.5, 0.5, 2, 6.5, 13.5]
    assert corners[:, 0, 1].tolist() == [0.5, 1.5, 2.5, 3.5]


@pytest.mark.parametrize(("count", "columns"), [(400, 400), (401, 201), (800, 400), (801, 267), (1999, 400)])
def test_many_steps_are_thinned(count: int, columns: int) -> None:
    with style():
        _, (axes,) = panels()
        readings = table(vanishing, [1, 2], range(count))
        draw_map(axes, readings[readings["probe"] == "grad_norm"])
    values = np.ma.getdata(mesh(axes).get_array()).reshape(2, -1)
    assert values.shape[1] == columns <= MOST_COLUMNS
    every = math.ceil(count / MOST_COLUMNS)
    assert values[0].tolist() == [vanishing(1, step) for step in range(0, count, every)]
    assert mesh(axes).get_coordinates()[0, 1, 0] == every / 2


@pytest.mark.parametrize(
    "readings",
    [
        table(vanishing, range(1, 5), [7]),
        table(vanishing, [1], range(6)),
        table(lambda depth, step: 0.5, [1], [0]),
        table(lambda depth, step: 1.0, range(1, 5), range(6)),
        table(lambda depth, step: 0.0, range(1, 5), range(6)),
        table(lambda depth, step: math.nan, range(1, 5), range(6)),
    ],
    ids=["one step", "one layer", "one value", "all equal", "all zero", "all nan"],
)
def test_little_to_draw(readings: pd.DataFrame) -> None:
    figure = flow(readings)
    assert len(render(figure, "png")) > 10_000
    assert len(render(figure, "svg")) > 10_000
    finite = (readings[readings["probe"] == "grad_norm"]["value"] > 0).any()
    assert len(figure.axes) == (3 if finite else 2)  # a scale of colours only where there are colours


def test_one_layer_and_one_step_are_one_wide() -> None:
    corners = mesh(flow(table(vanishing, [4], [7]))).get_coordinates()
    assert corners[0, :, 0].tolist() == [6.5, 7.5]
    assert corners[:, 0, 1].tolist() == [3.5, 4.5]


@pytest.mark.parametrize("probe", ["train_loss", "grad_nrom"])
def test_probes_that_were_not_read(probe: str) -> None:
    """The loss is of the whole network, and of no layer."""
    with pytest.raises(
        ValueError, match=f"no readings of probe {probe} in the layers; there are grad_norm, train_loss"
    ):
        flow(table(vanishing, range(1, 3), range(2)), probe)


def test_empty_table() -> None:
    empty = table(vanishing, [1], [0])[:0]
    with pytest.raises(ValueError, match="no readings of probe grad_norm in the layers; there are none"):
        flow(empty)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_same_readings_same_bytes(kind: Any) -> None:
    readings = table(vanishing, range(1, 9), range(0, 200, 10))
    first, second = render(flow(readings), kind), render(flow(readings.copy()), kind)
    assert first == second
    changed = readings.assign(value=readings["value"].where(readings["step"] != 100, readings["value"] * 2))
    assert render(flow(changed), kind) != first


def test_readings_are_not_changed() -> None:
    readings = table(vanishing, range(1, 4), range(5))
    before = readings.copy()
    flow(readings)
    pd.testing.assert_frame_equal(readings, before)
