"""Every seed's own value beside the mean: what an interval alone does not show of few, or of skewed, values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from depthlab.figures.intervals import interval

SPREAD = 0.3
"""How wide the dots of a condition lie, where 1 is the distance of two conditions."""


def draw_seeds(axes: Axes, readings: pd.DataFrame, by: str, *, labels: Mapping[Any, str]) -> None:
    """Draws the values of each condition, one per seed, as dots in ascending order; and their mean with its interval.

    labels: the values of column `by`, from left to right, and what stands below them. Raises ValueError for a
    condition without values.
    """
    for place, condition in enumerate(labels):
        values = readings.loc[readings[by] == condition, "value"].to_numpy()
        mean = interval(values)
        aside = SPREAD * (np.arange(len(values)) / max(1, len(values) - 1) - 0.5)
        axes.plot(place + aside, np.sort(values), "o", color="0.7", markersize=2.5)
        reach = np.array([[mean.mean - mean.low], [mean.high - mean.mean]])
        bar = reach if np.isfinite(reach).all() else None  # one seed has no interval
        axes.errorbar([place], [mean.mean], yerr=bar, color="black", marker="D", capsize=3, zorder=5)
    axes.set_xticks(range(len(labels)), list(labels.values()))
