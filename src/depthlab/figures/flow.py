"""How a quantity of each layer goes through one training: by depth at a few steps, and as a map of layers and steps."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from depthlab.figures.axes import draw, quantity
from depthlab.figures.heat import COLORS, MISSING, edges
from depthlab.figures.legends import legend_above
from depthlab.figures.style import PAGE, panels, style

MOST_COLUMNS = 400
"""A map of more steps shows every so many of them."""

LINES = 4


def flow(readings: pd.DataFrame, probe: str = "grad_norm") -> Figure:
    """Two panels: a probe by depth at the first, the last and two steps between; and its map over all steps.

    readings: the long table of one training (step, layer, depth, probe, value). Raises ValueError when it has no rows
    of the probe.
    """
    rows = readings[(readings["probe"] == probe) & (readings["depth"] > 0)]
    if rows.empty:
        there = ", ".join(sorted(readings["probe"].unique())) or "none"
        raise ValueError(f"no readings of probe {probe} in the layers; there are {there}")
    steps = np.sort(rows["step"].unique())
    shown = steps[np.unique(np.linspace(0, len(steps) - 1, LINES).round().astype(int))]
    with style():
        figure, (lines, table) = panels(2, width=PAGE, height=2.9)
        chosen = rows[rows["step"].isin(shown)].assign(seed=0)
        draw(lines, chosen, "depth", "step", labels={step: f"after {step:,} updates" for step in shown})
        legend_above(lines)
        draw_map(table, rows)
    return figure


def draw_map(axes: Axes, readings: pd.DataFrame) -> None:
    """Draws one probe of one training as colours over steps (across) and layers (upwards from the input).

    Steps that were not read have no column of their own: a column reaches half way to its neighbours. What is not
    finite, or not positive on a logarithmic scale, is grey.
    """
    scale = quantity(readings)
    grid = readings.pivot(index="depth", columns="step", values="value")
    grid = grid.iloc[:, :: max(1, -(-grid.shape[1] // MOST_COLUMNS))]
    values = np.ma.masked_invalid(grid.to_numpy(dtype=np.float64))
    if scale.log:
        values = np.ma.masked_less_equal(values, 0.0)
    colors: Normalize = LogNorm() if scale.log else Normalize()
    axes.set_facecolor(MISSING)
    axes.grid(visible=False)
    mesh: ScalarMappable = axes.pcolormesh(
        edges(grid.columns.to_numpy(dtype=np.float64)),
        edges(grid.index.to_numpy(dtype=np.float64)),
        values,
        norm=colors,
        cmap=COLORS,
        rasterized=True,
    )
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.set_xlabel("updates")
    axes.set_ylabel("layer (from the input)")
    if values.count():
        assert axes.figure is not None
        axes.figure.colorbar(mesh, ax=axes, label=scale.label)
