"""Which settings mattered in a search: the importance of each, and the trials behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab.figures.style import HUES, PAGE, panels, style

MOST_PANELS = 3
"""The settings that mattered most are drawn against the error."""

LOG_FROM = 20.0
"""Values that are spread over such a factor, or more, are drawn on a logarithmic axis."""


MARKS = {"done": ("o", HUES[1]), "pruned": ("o", "none"), "diverged": ("x", "none")}
"""Marker and filling of a trial, by how it ended."""


def importance(shares: Mapping[str, float], trials: pd.DataFrame) -> Figure:
    """Bars of the shares (of variance, sum 1), and the error of every trial against the most important settings.

    trials: a row for each, with `state` (done, pruned, diverged), `error` in [0, 1], as it counts in the shares, and
    the settings, numbers or words, under their names. Raises ValueError without shares.
    """
    if not shares:
        raise ValueError("no importances; they need some trials that have ended and are not equally good")
    names = sorted(shares, key=lambda name: (-shares[name], name))
    with style():
        figure, (bars, *slices) = panels(1 + min(len(names), MOST_PANELS), width=PAGE, height=2.5)
        _draw_bars(bars, {name: shares[name] for name in names})
        for axes, name in zip(slices, names, strict=False):
            _draw_slice(axes, trials, name)
            axes.sharey(slices[0])
            axes.tick_params(labelleft=axes is slices[0])
        slices[0].set_ylabel("validation error")
        figure.legend(*slices[0].get_legend_handles_labels(), loc="outside upper right", ncols=len(MARKS))
    return figure


def _draw_bars(axes: Axes, shares: Mapping[str, float]) -> None:
    axes.barh(range(len(shares)), list(shares.values()), height=0.6, color=HUES[1])
    axes.set_yticks(range(len(shares)), [_short(name) for name in shares])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of variance")


def _draw_slice(axes: Axes, trials: pd.DataFrame, name: str) -> None:
    places = _places(axes, trials[name])
    errors = trials["error"].to_numpy(dtype=np.float64)
    for state, (marker, filling) in MARKS.items():
        chosen = (trials["state"] == state).to_numpy(dtype=bool)
        if chosen.any():
            axes.plot(
                places[chosen],
                errors[chosen],
                linestyle="none",
                marker=marker,
                markerfacecolor=filling,
                markeredgecolor=HUES[1],
                label=state,
            )
    if errors.min() > 0:
        axes.set_yscale("log")
    axes.set_xlabel(_short(name))


def _places(axes: Axes, values: pd.Series[Any]) -> npt.NDArray[np.float64]:
    """Where values stand on the axis: numbers where they are, words one after the other."""
    if pd.api.types.is_numeric_dtype(values):
        numbers = values.to_numpy(dtype=np.float64)
        if numbers.min() > 0 and numbers.max() / numbers.min() >= LOG_FROM:
            axes.set_xscale("log")
        return numbers
    words = sorted(set(values.map(str)))
    axes.set_xticks(range(len(words)), words)
    axes.set_xlim(-0.5, len(words) - 0.5)
    return np.array([words.index(str(value)) for value in values], dtype=np.float64)


def _short(name: str) -> str:
    """The setting without its section: the figure is about one search."""
    return name.rpartition(".")[2]
