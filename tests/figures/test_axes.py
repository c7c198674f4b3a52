import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab.figures import draw, draw_errors, interval, legend, panels, select, style, theory, theory_growth
from depthlab.figures.axes import UNDEFINED


def _drawn(
    readings: pd.DataFrame, x: str = "depth", by: str = "model.activation", **options: Any
) -> tuple[Figure, Axes]:
    with style():
        figure, (axes,) = panels()
        draw(axes, readings, x, by, **options)
    return figure, axes


def _line(axes: Axes, label: str) -> Any:
    return next(line for line in axes.lines if line.get_label() == label)


def _gradients(readings: pd.DataFrame) -> pd.DataFrame:
    return select(readings, "grad_norm", step=0)


def test_line_is_the_geometric_mean_and_band_its_interval(readings: pd.DataFrame) -> None:
    gradients = _gradients(readings)
    _, axes = _drawn(gradients, labels={"sigmoid": "sigmoid", "tanh": "tanh", "relu": "ReLU"})
    part = gradients[(gradients["model.activation"] == "sigmoid") & (gradients["depth"] == 3)]
    found = interval(part["value"], log=True)
    line = _line(axes, "sigmoid")
    assert list(line.get_xdata()) == list(range(1, 11))
    assert line.get_ydata()[2] == pytest.approx(found.mean)
    heights = axes.collections[0].get_paths()[0].vertices
    assert np.isclose(heights, [3, found.low], rtol=1e-9).all(axis=1).any()
    assert np.isclose(heights, [3, found.high], rtol=1e-9).all(axis=1).any()
    assert axes.get_yscale() == "log"


def test_axes_are_named_and_layers_counted_from_one(readings: pd.DataFrame) -> None:
    _, axes = _drawn(_gradients(readings))
    assert axes.get_xlabel() == "layer (from the input)"
    assert "gradient norm" in axes.get_ylabel()
    assert list(axes.get_xticks()) == [1, 2, 4, 6, 8, 10]


def test_unknown_probe_is_linear_under_its_own_name(readings: pd.DataFrame) -> None:
    _, axes = _drawn(select(readings, "test_error"), x="model.depth")
    assert (axes.get_ylabel(), axes.get_yscale()) == ("test error", "linear")


def test_log_can_be_overridden(readings: pd.DataFrame) -> None:
    gradients = _gradients(readings)
    _, axes = _drawn(gradients, log=False)
    part = gradients[(gradients["model.activation"] == "tanh") & (gradients["depth"] == 1)]
    assert _line(axes, "tanh").get_ydata()[0] == pytest.approx(part["value"].mean())
    assert axes.get_yscale() == "linear"


def test_settings_get_bars_at_the_interval(readings: pd.DataFrame) -> None:
    errors = select(readings, "test_error")
    _, axes = _drawn(errors, x="model.depth")
    found = interval(errors[errors["model.activation"] == "relu"]["value"])
    bars = axes.collections[0].get_paths()[0].vertices
    assert bars == pytest.approx(np.array([[10, found.low], [10, found.high]]))
    assert axes.dataLim.intervaly[0] <= found.low


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_unusable_seed_makes_a_gap_and_a_cross(readings: pd.DataFrame, bad: float) -> None:
    gradients = _gradients(readings)
    row = (gradients["model.activation"] == "tanh") & (gradients["depth"] == 4) & (gradients["seed"] == 2)
    figure, axes = _drawn(gradients.assign(value=gradients["value"].mask(row, bad)))
    line = _line(axes, "tanh")
    assert np.isnan(line.get_ydata()).tolist() == [depth == 4 for depth in range(1, 11)]
    crosses = [
        (np.asarray(each.get_xdata()).tolist(), each.get_color()) for each in axes.lines if each.get_marker() == "x"
    ]
    assert [cross for cross in crosses if cross[0]] == [([4], line.get_color())]
    legend(figure)
    assert UNDEFINED in [text.get_text() for text in figure.legends[0].get_texts()]


def test_no_cross_without_a_gap(readings: pd.DataFrame) -> None:
    _, axes = _drawn(_gradients(readings))
    assert UNDEFINED not in axes.get_legend_handles_labels()[1]


def test_one_seed_has_a_line_and_no_band(readings: pd.DataFrame) -> None:
    gradients = _gradients(readings)
    figure, axes = _drawn(gradients[gradients["seed"] == 0])
    assert all(not len(band.get_paths()) for band in axes.collections)
    assert axes.get_legend_handles_labels()[1] == ["relu", "sigmoid", "tanh"]
    with style():
        figure.draw_without_rendering()


def test_labels_order_and_colour_are_the_same_in_every_panel(readings: pd.DataFrame) -> None:
    gradients = _gradients(readings)
    labels = {"relu": "ReLU", "tanh": "tanh", "sigmoid": "sigmoid"}
    with style():
        figure, (left, right) = panels(2)
        draw(left, gradients, "depth", "model.activation", labels=labels)
        draw(right, gradients[gradients["model.activation"] != "relu"], "depth", "model.activation", labels=labels)
        theory(left, [1, 10], [1.0, 1.0])
        theory(right, [1, 10], [1.0, 1.0])
        legend(figure)
    assert _line(left, "sigmoid").get_color() == _line(right, "sigmoid").get_color()
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["ReLU", "tanh", "sigmoid", "95 % interval,\n4 seeds", "theory"]


def test_lines_that_are_named_already_are_only_listed(readings: pd.DataFrame) -> None:
    _, axes = _drawn(_gradients(readings), labels=["tanh", "sigmoid", "relu"])
    assert axes.get_legend_handles_labels()[1][:3] == ["tanh", "sigmoid", "relu"]


def test_theory_lies_over_the_points(readings: pd.DataFrame) -> None:
    _, axes = _drawn(_gradients(readings))
    theory(axes, [1, 10], [1e-6, 1.0])
    assert _line(axes, "theory").get_zorder() > max(line.get_zorder() for line in axes.lines[:-1])


def test_growth_goes_through_the_layer_in_which_it_is_anchored(readings: pd.DataFrame) -> None:
    gradients = _gradients(readings)
    sigmoid = gradients[gradients["model.activation"] == "sigmoid"]
    for anchor, met in ((None, 10), (3, 3)):
        _, axes = _drawn(sigmoid)
        theory_growth(axes, sigmoid, 0.7, anchor=anchor)
        line = _line(axes, "theory")
        assert list(line.get_xdata()) == list(range(1, 11))
        values = np.asarray(line.get_ydata())
        assert np.diff(np.log(values)) == pytest.approx(0.7)
        assert values[met - 1] == pytest.approx(interval(sigmoid[sigmoid["depth"] == met]["value"], log=True).mean)


def test_properties_win_over_what_is_drawn(readings: pd.DataFrame) -> None:
    _, axes = _drawn(_gradients(readings), title="nets", ylabel="norm")
    assert (axes.get_title(), axes.get_ylabel(), axes.get_xlabel()) == ("nets", "norm", "layer (from the input)")


def test_errors_are_shown_whole_and_in_percent(readings: pd.DataFrame) -> None:
    errors = select(readings, "test_error")
    with style():
        _, (axes, named) = panels(2)
        draw_errors(axes, errors.assign(value=100 * errors["value"]), "model.depth", "model.activation")
        draw_errors(named, errors, "model.depth", "model.activation", ylabel="wrong, %", ylim=(0, 1))
    assert (axes.get_ylabel(), axes.get_ylim()) == ("test error, %", (-5, 105))
    assert (named.get_ylabel(), named.get_ylim()) == ("wrong, %", (0, 1))


def test_shared_axis_is_named_once(readings: pd.DataFrame) -> None:
    gradients = _gradients(readings)
    with style():
        _, shared = panels(2, sharey=True)
        _, apart = panels(2)
        for axes in (*shared, *apart):
            draw(axes, gradients, "depth", "model.activation")
    assert [bool(axes.get_ylabel()) for axes in (*shared, *apart)] == [True, False, True, True]


def test_subnormal_values_are_drawn(readings: pd.DataFrame) -> None:
    gradients = _gradients(readings)
    with style():
        figure, axes = _drawn(gradients.assign(value=gradients["value"] * 1e-312))
        figure.draw_without_rendering()
    assert 0 < axes.get_ylim()[0] < 1e-312


def test_refusals(readings: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="one probe to an axis, given grad_norm, saturation, test_error"):
        _drawn(readings)
    with pytest.raises(ValueError, match=r"no label for model\.activation=sigmoid, tanh"):
        _drawn(_gradients(readings), labels={"relu": "ReLU"})
    with pytest.raises(ValueError, match="several values for"):
        _drawn(select(readings, "grad_norm"))
