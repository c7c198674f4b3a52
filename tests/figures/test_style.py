import io
import itertools
from typing import Literal

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backend_bases import RendererBase
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D

from depthlab.figures import COLUMN, PAGE, panels, style
from depthlab.figures.style import PNG_DPI, render, strokes


def _drawing(kind: Literal["png", "svg"]) -> bytes:
    with style():
        figure, (axes,) = panels()
        axes.plot([1, 2, 3], [1e-30, 1e-10, 1.0], marker="o")
        axes.set_yscale("log")
        axes.set_xlabel("layer")
    return render(figure, kind)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_same_figure_same_bytes_whatever_the_users_settings(kind: Literal["png", "svg"]) -> None:
    first = _drawing(kind)
    with mpl.rc_context({"lines.linewidth": 9, "font.size": 20, "svg.hashsalt": None, "savefig.bbox": "tight"}):
        assert _drawing(kind) == first


def test_style_leaves_the_users_settings_alone() -> None:
    before = dict(mpl.rcParams)
    _drawing("png")
    assert dict(mpl.rcParams) == before


def test_png_is_an_image_of_the_stated_size() -> None:
    pixels = imread(io.BytesIO(_drawing("png")), format="png")
    assert pixels.shape[:2] == (round(2.3 * PNG_DPI), round(COLUMN * PNG_DPI))
    assert np.unique(pixels[..., :3].reshape(-1, 3), axis=0).shape[0] > 10


def test_files_hold_no_date_and_no_version() -> None:
    assert b"Matplotlib" not in _drawing("png")
    svg = _drawing("svg")
    assert b"dc:date" not in svg
    assert b"Matplotlib v" not in svg


def test_panels_are_lettered_row_by_row() -> None:
    with style():
        figure, axes = panels(2, 2)
    assert [panel.get_title(loc="left") for panel in axes] == ["a", "b", "c", "d"]
    assert tuple(figure.get_size_inches()) == (PAGE, 4.6)
    assert panels()[1][0].get_title(loc="left") == ""


def test_strokes_differ_in_more_than_colour() -> None:
    found = strokes([f"net {i}" for i in range(9)])
    assert len({stroke.color for stroke in found}) == 9
    assert len({stroke.marker for stroke in found}) == 9
    assert all(one.dashes != other.dashes for one, other in itertools.pairwise(found))


def test_numbers_go_from_dark_to_light() -> None:
    light = [sum(np.array([0.2126, 0.7152, 0.0722]) * to_rgb(stroke.color)) for stroke in strokes([8, 20, 32, 56])]
    assert light == sorted(light)
    assert light[-1] - light[0] > 0.4


def test_too_many_lines() -> None:
    with pytest.raises(ValueError, match="10 lines cannot be told apart"):
        strokes(list(range(10)))


class Counted(Line2D):
    """A line that counts how often it is drawn."""

    draws = 0

    def draw(self, renderer: RendererBase) -> None:
        self.draws += 1
        super().draw(renderer)


def test_both_files_have_one_layout_and_each_is_drawn_once() -> None:
    figure, (axes,) = panels()
    line = axes.add_line(Counted([1, 2], [1, 2]))
    axes.set_ylabel("makes room for itself")
    before = axes.get_position().bounds
    first = render(figure, "svg")
    laid_out = axes.get_position().bounds
    assert laid_out != before
    png = render(figure, "png")
    assert axes.get_position().bounds == laid_out
    assert line.draws == 2
    assert (render(figure, "svg"), render(figure, "png")) == (first, png)


def test_a_figure_that_was_rendered_has_the_size_on_the_screen_that_it_had() -> None:
    figure, _ = panels()
    before = figure.dpi
    assert before != PNG_DPI
    render(figure, "png")
    assert figure.dpi == before


def test_the_layout_of_a_png_is_what_matplotlib_makes_it() -> None:
    """Of as many dots an inch as the file has: of others, text has another width."""

    def drawing() -> Figure:
        with style():
            figure, axes = panels(2)
            for panel in axes:
                panel.plot([0.001, 0.002], [1e-30, 1.0], label="a line")
                panel.set(yscale="log", ylabel="norm", xlabel="layer")
            figure.legend(loc="outside lower center")
        return figure

    content = io.BytesIO()
    with style():
        drawing().savefig(content, format="png", dpi=PNG_DPI, metadata={"Software": None})
    assert render(drawing(), "png") == content.getvalue()
