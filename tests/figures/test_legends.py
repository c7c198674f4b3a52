from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab.figures import draw, legend, legend_beside, panels, select, style, theory


def _drawn(readings: pd.DataFrame) -> tuple[Figure, Axes]:
    with style():
        figure, (axes,) = panels()
        draw(axes, select(readings, "grad_norm", step=0), "depth", "model.activation")
    return figure, axes


def test_legend_beside_a_panel_hides_no_data(readings: pd.DataFrame) -> None:
    figure, axes = _drawn(readings)
    with style():
        legend_beside(axes)
        figure.draw_without_rendering()
    shown = axes.get_legend()
    assert shown is not None
    assert not shown.get_window_extent().overlaps(axes.get_window_extent())
    assert shown.get_window_extent().x1 <= figure.bbox.x1


@pytest.mark.parametrize("side", ["right", "top"])
def test_legend_hides_no_data(readings: pd.DataFrame, side: Any) -> None:
    figure, axes = _drawn(readings)
    height = figure.get_figheight()
    with style():
        legend(figure, side)
        figure.draw_without_rendering()
    assert not figure.legends[0].get_window_extent().overlaps(axes.get_window_extent())
    assert (figure.get_figheight() > height) == (side == "top")


def test_legend_of_some_panels_names_their_lines_alone() -> None:
    figure, axes = panels(2)
    for panel, name in zip(axes, ("here", "elsewhere"), strict=True):
        panel.plot([0, 1], [0, 1], label=name)
    legend(figure, of=axes[:1])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["here"]


def test_lines_that_the_first_panel_lacks_stand_where_they_are_asked_for(readings: pd.DataFrame) -> None:
    gradients = select(readings, "grad_norm", step=0)
    names = ["relu", "sigmoid", "tanh"]
    with style():
        figure, (left, right) = panels(2)
        theory(left, [1, 10], [1.0, 1.0])
        draw(left, gradients[gradients["model.activation"] != "relu"], "depth", "model.activation", labels=names)
        draw(right, gradients, "depth", "model.activation", labels=names)
        legend(figure, first=names[:2])
        legend(figure)
    mended, usual = ([text.get_text() for text in each.get_texts()][:3] for each in figure.legends)
    assert mended == names
    assert usual == ["sigmoid", "tanh", "relu"]
