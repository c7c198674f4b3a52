"""How figures look, and how they become bytes: the same figure gives the same files on the same matplotlib.

Matplotlib is used without pyplot and without its global state: figures are `Figure` objects drawn by Agg.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

COLUMN, PAGE = 3.4, 7.0
"""Inches: the width of one column and of the text of a two-column paper."""

PNG_DPI = 200

# Paul Tol's "muted" scheme, distinct under the common colour blindnesses; the order keeps neighbours apart in grey.
HUES = ("#CC6677", "#332288", "#44AA99", "#882255", "#88CCEE", "#117733", "#999933", "#AA4499", "#777777")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.2)), (0, (5, 1.5, 1.2, 1.5)))
MOST_LINES = len(HUES)

SETTINGS: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that text is as wide on every machine
    "mathtext.fontset": "dejavusans",
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 2.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.4,
    "errorbar.capsize": 2,
    "figure.dpi": 100,
    "svg.fonttype": "path",
    "svg.hashsalt": "depthlab",
    "path.simplify": True,
}


KEPT = ("backend", "backend_fallback")
"""The user's own: figures are drawn without a backend, and setting one would switch it."""


@dataclass(frozen=True)
class Stroke:
    """What tells one line from the others: colour, marker and dashes together, so that it reads in grey as well.

    `aside` is the line's place among the others, counted from their middle.
    """

    color: str
    marker: str
    dashes: Any
    aside: float


@contextmanager
def style() -> Iterator[None]:
    """The house style for the figures made within: matplotlib's own defaults, not the user's, with `SETTINGS`."""
    settings: dict[Any, Any] = {name: mpl.rcParamsDefault[name] for name in mpl.rcParamsDefault if name not in KEPT}
    with mpl.rc_context(settings | SETTINGS):
        yield


def panels(
    columns: int = 1,
    rows: int = 1,
    *,
    width: float | None = None,
    height: float | None = None,
    sharey: bool = False,
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row, lettered when there are several.

    `width` and `height` in inches; by default one column for a single panel and the page for several, 2.3 a row.
    """
    size = (width or (COLUMN if columns == 1 else PAGE), height or 2.3 * rows)
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=sharey)
    axes: list[Axes] = list(grid.flat)
    if len(axes) > 1:
        for letter, panel in zip("abcdefghijklmnopqrstuvwxyz", axes, strict=False):
            panel.set_title(letter, loc="left", fontweight="bold")
    return figure, axes


def strokes(values: Sequence[object]) -> list[Stroke]:
    """One stroke per value: from dark to light for numbers, in their order; unlike hues for words.

    Raises ValueError for more lines than can be told apart.
    """
    if len(values) > MOST_LINES:
        raise ValueError(
            f"{len(values)} lines cannot be told apart; draw at most {MOST_LINES}, or spread them over panels"
        )
    numeric = all(isinstance(value, (int, float, np.number)) and not isinstance(value, bool) for value in values)
    shades = [to_hex(shade) for shade in mpl.colormaps["cividis"](np.linspace(0, 0.85, len(values)))]
    colors = shades if numeric else HUES[: len(values)]
    middle = (len(values) - 1) / 2
    return [Stroke(color, MARKERS[i], DASHES[i % len(DASHES)], i - middle) for i, color in enumerate(colors)]


def render(figure: Figure, kind: Literal["png", "svg"]) -> bytes:
    """The figure as a PNG of `PNG_DPI` dots an inch or as an SVG, without date, version or random identifiers.

    Both have the layout of the PNG, which is computed the first time and kept: what is added later finds no room made.
    """
    unsigned = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}
    content = io.BytesIO()
    with style():
        _lay_out(figure)
        figure.savefig(content, format=kind, dpi=PNG_DPI, metadata=unsigned[kind])
    return content.getvalue()


def _lay_out(figure: Figure) -> None:
    """Gives everything its place, once: savefig would for each file, and then draw it a second time."""
    engine = figure.get_layout_engine()
    if engine is not None:
        on_screen = figure.dpi
        figure.set_dpi(PNG_DPI)
        engine.execute(figure)
        figure.set_dpi(on_screen)
        figure.set_layout_engine(None)  # "none" is an engine too, for which savefig draws twice as well
