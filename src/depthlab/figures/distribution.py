"""How the sizes of weights are distributed, from the shares that the probe weight_distribution reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from depthlab.figures.axes import draw
from depthlab.probes import DISTRIBUTION

LABELLED = 4
"""Every so many edges of bins have a tick: two decades."""


def weight_shares(readings: pd.DataFrame) -> pd.DataFrame:
    """The rows of weight_distribution: `value` is the share of a layer's weights of sizes up to column `edge`.

    Raises ValueError when there are none.
    """
    rows = readings[readings["probe"].isin(DISTRIBUTION)]
    if rows.empty:
        raise ValueError("no readings of probe weight_distribution; name it in probes.names")
    return rows.assign(edge=rows["probe"].map(DISTRIBUTION), probe="share of weights")


def draw_distribution(axes: Axes, shares: pd.DataFrame, by: str, *, labels: Sequence[str]) -> None:
    """Draws histograms of |w| in half decades, over seeds; exact zeros stand apart on the left.

    shares: those of `weight_shares` in one layer at one step; a line for each value of column `by` (see `draw`).
    """
    rows = shares.sort_values("edge")
    bins = rows.assign(value=rows.groupby("key")["value"].diff().fillna(rows["value"]))
    edges = sorted(DISTRIBUTION.values())
    middle, zero = 10**-0.25, edges[1] / 100
    bins = bins.assign(size=(bins["edge"] * middle).where(bins["edge"] > 0, zero))
    for part in (bins[bins["edge"] == 0], bins[bins["edge"] > 0]):
        draw(axes, part, "size", by, labels=labels)
    ticks = [zero, *edges[1::LABELLED]]
    axes.set_xscale("log")
    axes.set_xticks(ticks, ["0", *(f"$10^{{{round(np.log10(edge))}}}$" for edge in ticks[1:])])
    axes.minorticks_off()
    axes.set(xlabel="size of a weight", ylabel="share of weights, in half decades")
