"""A quantity of whole runs over a plane of two settings, as colours, with theory drawn over it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize

from depthlab.figures.axes import POSITIONS, Scale
from depthlab.figures.intervals import summarize

COLORS = "cividis"
MISSING = "0.75"
"""The grey of what has no mean: a seed is not finite, or 0 on a logarithmic scale, or nothing was run there."""

ROUNDING = 1e-9
"""Of the range of colours: a mean of equal values is not quite that value."""


def draw_heat(
    axes: Axes,
    readings: pd.DataFrame,
    x: str,
    y: str,
    *,
    label: str,
    limits: tuple[float, float] | None = None,
    log: bool = False,
    log_y: bool = False,
    ticks: Sequence[float] | None = None,
) -> None:
    """Draws the mean over seeds of column `value` as the colour of a cell for each pair of columns x and y.

    Cells reach half way to their neighbours (with `log_y`: half way on a logarithmic axis), and the ticks of y are the
    values that were tried. `label` names the colours, `limits` are their ends (by default those of the means), `ticks`
    the values that their scale names. With `log` colours are logarithmic and means geometric. The axes' limits stay
    what they are when lines are drawn later.
    Raises ValueError when a cell has several values of one seed.
    """
    summary = summarize(readings, [x, y], log=log)
    grid = summary.pivot(index=y, columns=x, values="mean")
    rows, columns = (np.asarray(each, dtype=np.float64) for each in (grid.index, grid.columns))
    scale = LogNorm if log else Normalize
    norm: Normalize = scale(*limits) if limits else scale()
    axes.set_facecolor(MISSING)
    axes.grid(visible=False)
    heights = np.exp(edges(np.log(rows))) if log_y else edges(rows)
    mesh: ScalarMappable = axes.pcolormesh(
        edges(columns), heights, np.ma.masked_invalid(grid.to_numpy()), norm=norm, cmap=COLORS, rasterized=True
    )
    if log_y:
        axes.set_yscale("log")
    axes.set_yticks(rows, [f"{value:.3g}" for value in rows])
    axes.minorticks_off()
    axes.set(**{f"{axis}label": POSITIONS.get(name, Scale(name)).label for axis, name in (("x", x), ("y", y))})
    axes.autoscale(enable=False)
    if grid.notna().any(axis=None):
        assert axes.figure is not None
        bar = axes.figure.colorbar(mesh, ax=axes, label=label)
        if ticks is not None:
            low, high = bar.ax.get_ylim()
            slack = ROUNDING * (high - low)
            within = [value for value in ticks if low - slack <= value <= high + slack]  # others would lengthen the bar
            bar.set_ticks(within, labels=[f"{value:g}" for value in within])
            bar.minorticks_off()


def theory_over(axes: Axes, x: npt.ArrayLike, y: npt.ArrayLike, label: str = "theory") -> None:
    """Draws a prediction over colours, in white with a black edge, so that it is seen on dark and bright ones."""
    edge = [patheffects.Stroke(linewidth=2.6, foreground="black"), patheffects.Normal()]
    axes.plot(x, y, color="white", linewidth=1.3, zorder=5, label=label, path_effects=edge)


def edges(centres: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Borders half way between n ascending centres, n + 1 of them; the outer ones as far away as the inner."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    between = (centres[1:] + centres[:-1]) / 2
    return np.array([2 * centres[0] - between[0], *between, 2 * centres[-1] - between[-1]])
