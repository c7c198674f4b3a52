"""Readings against layer, step or a setting: mean over seeds with its 95 % interval, and theory over it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.transforms import ScaledTranslation

from depthlab.figures.intervals import interval, summarize
from depthlab.figures.style import Stroke, strokes


@dataclass(frozen=True)
class Scale:
    """The label of an axis, and whether it is logarithmic."""

    label: str
    log: bool = False


QUANTITIES = {
    "grad_norm": Scale(r"gradient norm  $\|\partial L/\partial W_\ell\|$", log=True),
    "backward_norm": Scale(r"backward norm  $\|\partial L/\partial z_\ell\|$", log=True),
    "grad_rms": Scale(r"root mean square of $\partial L/\partial W_\ell$", log=True),
    "backward_rms": Scale(r"root mean square of $\partial L/\partial z_\ell$", log=True),
    "output_norm": Scale(r"norm of output  $\|z_\ell\|$", log=True),
    "output_rms": Scale(r"root mean square of output  $z_\ell$", log=True),
    "weight_norm": Scale(r"weight norm  $\|W_\ell\|$"),
    "update_ratio": Scale(r"update ratio  $\|\Delta W_\ell\|/\|W_\ell\|$", log=True),
    "activation_mean": Scale("mean activation"),
    "activation_std": Scale("standard deviation of activation", log=True),
    "saturation": Scale("saturated share of activations"),
    "dead_fraction": Scale("dead share of units"),
    "activation_sparsity": Scale("share of activations that are 0"),
    "validation_inactive_fraction": Scale("inactive share of units"),
    "reconstruction_error": Scale("share of variance lost", log=True),
    "train_loss": Scale("training loss"),
    "linear_regions": Scale("linear regions", log=True),
}
"""Axes of the probes; others are linear under their name, with spaces for underscores."""

POSITIONS = {
    "depth": Scale("layer (from the input)"),
    "step": Scale("updates"),
    "model.depth": Scale("depth (weight layers)"),
    "model.width": Scale("width"),
    "model.sigma_w": Scale(r"$\sigma_w$", log=True),
    "model.head_bias": Scale("initial logit of the first class"),
    "train.lr": Scale("learning rate", log=True),
    "train.batch_size": Scale("batch size", log=True),
    "train.weight_decay": Scale("weight decay", log=True),
    "data.train_size": Scale("training images", log=True),
    "transfer.copied": Scale("blocks copied, from the input"),
}

CONTINUOUS = ("depth", "step")
"""Along these the interval is a band; along settings, which were tried at a few values, it is a bar."""

MOST_MARKERS = 9
MOST_TICKS = 6
ROUND_STEPS = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
ALL_ERRORS = (-5, 105)  # percent, so that markers at 0 and at 100 are whole
BAR_SHIFT = 2  # points
BAR_MARGIN = 0.1  # of the axis, so that bars moved aside stay inside
UNDEFINED = "undefined: a seed\nis not finite or 0"


def draw(
    axes: Axes,
    readings: pd.DataFrame,
    x: str,
    by: str,
    *,
    labels: Mapping[Any, str] | Sequence[str] | None = None,
    log: bool | None = None,
    **properties: Any,
) -> None:
    """Draws one probe against column `x`, a line for each value of column `by`, over seeds.

    `readings` hold one probe and one value per x, line and seed (see `select`). `labels` names the lines (or lists
    them, where they are named already) and gives their order; the same labels in several panels give the same
    strokes. `log` overrides the probe's own scale; on a logarithmic axis the means are geometric. Where a seed is not
    finite (or, on a logarithmic axis, not positive) there is no mean: the line has a gap, and a cross in its colour
    stands at the top of the axes. `properties` are set on the axes at the end, such as title=, ylabel= and ylim=.
    Raises ValueError for several probes, for lines without a label and for several values of a seed.
    """
    scale = quantity(readings)
    geometric = scale.log if log is None else log
    summary = summarize(readings, [by, x], log=geometric)
    names = _names(summary[by].unique() if labels is None else labels)
    if unnamed := [str(value) for value in summary[by].unique() if value not in names]:
        raise ValueError(f"no label for {by}={', '.join(unnamed)}; label it or leave its readings out")
    _set_scales(axes, x, scale.label, geometric)
    undefined = []
    for value, stroke in zip(names, strokes(list(names)), strict=True):
        line = summary[summary[by] == value]
        if len(line):
            _draw_line(axes, line, x, names[value], stroke)
        if line["mean"].isna().any():
            undefined.append((line[line["mean"].isna()][x], stroke.color))
    _mark_undefined(axes, undefined)
    if x == "depth":
        _number_layers(axes)
    _explain(axes, summary, x)
    axes.set(**properties)


def draw_errors(
    axes: Axes,
    errors: pd.DataFrame,
    x: str,
    by: str,
    *,
    labels: Mapping[Any, str] | Sequence[str] | None = None,
    **properties: Any,
) -> None:
    """`draw` for errors in percent, on an axis that shows all of them: from 0, everything right, to 100."""
    quantity(errors)
    name = str(errors["probe"].iloc[0]).replace("_", " ")
    draw(axes, errors, x, by, labels=labels, **{"ylabel": f"{name}, %", "ylim": ALL_ERRORS} | properties)


def quantity(readings: pd.DataFrame) -> Scale:
    """How the axis of the one probe in the readings is named and scaled. Raises ValueError when there are several."""
    probes = readings["probe"].unique()
    if len(probes) != 1:
        raise ValueError(f"one probe to an axis, given {', '.join(probes) or 'none'}; select one")
    return QUANTITIES.get(probes[0], Scale(str(probes[0]).replace("_", " ")))


def theory(axes: Axes, x: Sequence[float] | npt.NDArray[Any], y: Sequence[float] | npt.NDArray[Any]) -> None:
    """Draws a prediction over the points: black dashes, far enough apart to see what was measured between them."""
    axes.plot(x, y, color="black", linewidth=0.9, linestyle=(0, (3, 3)), zorder=5, label="theory")


def theory_growth(axes: Axes, readings: pd.DataFrame, rate: float, *, anchor: int | None = None) -> None:
    """Draws a predicted growth by exp(rate) a layer, through the (geometric) mean that was measured in one layer.

    readings: one probe of one condition in the layers over which the line goes; rate: d ln(value) / d layer, from the
    input, per layer. `anchor`: the layer in which the line meets the measurement, by default the last.
    """
    layers = np.sort(readings["depth"].unique())
    met = layers[-1] if anchor is None else anchor
    level = interval(readings[readings["depth"] == met]["value"], log=True).mean
    theory(axes, layers, level * np.exp(rate * (layers - met)))


def log_ticks(axes: Axes, values: pd.Series[Any]) -> None:
    """A logarithmic x axis with ticks at the values that were tried."""
    axes.set_xscale("log")
    tried = sorted(values.unique())
    axes.set_xticks(tried, [f"{value:g}" for value in tried])
    axes.minorticks_off()


def _names(labels: Mapping[Any, str] | Iterable[Any]) -> Mapping[Any, str]:
    if isinstance(labels, Mapping):
        return labels
    return {value: f"{value:g}" if isinstance(value, (float, np.floating)) else str(value) for value in labels}


def _set_scales(axes: Axes, x: str, label: str, log: bool) -> None:
    position = POSITIONS.get(x, Scale(x))
    axes.set_xlabel(position.label)
    place = axes.get_subplotspec()
    shared = len(axes.get_shared_y_axes().get_siblings(axes)) > 1
    if not shared or place is None or place.is_first_col():
        axes.set_ylabel(label)
    if position.log:
        axes.set_xscale("log")
    if log:
        axes.set_yscale("log")


def _draw_line(axes: Axes, line: pd.DataFrame, x: str, name: str, stroke: Stroke) -> None:
    at, mean, low, high = (line[column].to_numpy(dtype=np.float64) for column in (x, "mean", "low", "high"))
    bounded = np.isfinite(low) & np.isfinite(high)
    every = max(1, round(len(line) / MOST_MARKERS))
    edge: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.3}
    lines = axes.plot(
        at, mean, color=stroke.color, marker=stroke.marker, linestyle=stroke.dashes, markevery=every, label=name, **edge
    )
    if x in CONTINUOUS:
        if bounded.any():
            axes.fill_between(at, low, high, where=bounded.tolist(), color=stroke.color, alpha=0.2, linewidth=0)
        return
    reach = np.abs(np.stack([mean - low, high - mean]))[:, bounded]
    bars = axes.errorbar(at[bounded], mean[bounded], yerr=reach, fmt="none", ecolor=stroke.color, elinewidth=0.8)
    # Bars at the same place would cover one another.
    aside = ScaledTranslation(stroke.aside * BAR_SHIFT / 72, 0, axes.figure.dpi_scale_trans)
    for artist in (*lines, *bars.get_children()):
        artist.set_transform(axes.transData + aside)
    axes.margins(x=BAR_MARGIN)


def _mark_undefined(axes: Axes, lines: Sequence[tuple[pd.Series[Any], str]]) -> None:
    """A row of crosses for each line that has gaps, in a margin that is made for them."""
    for row, (at, color) in enumerate(lines):
        heights = np.full(len(at), 0.98 - 0.04 * row)
        axes.plot(at, heights, "x", transform=axes.get_xaxis_transform(), color=color, markersize=3.5)
    if lines:
        axes.margins(y=0.08 + 0.05 * len(lines))


def _number_layers(axes: Axes) -> None:
    """Ticks from the first layer, which is 1, to the last in round steps; there is no layer 0."""
    layers = int(axes.dataLim.xmax)
    step = next(step for step in ROUND_STEPS if layers <= step * MOST_TICKS)
    axes.set_xticks(sorted({1, *range(step, layers + 1, step)}))


def _explain(axes: Axes, summary: pd.DataFrame, x: str) -> None:
    """Legend entries that say what bands and crosses are."""
    seeds = sorted({int(summary["n"].min()), int(summary["n"].max())})
    if seeds[-1] > 1:
        label = f"95 % interval,\n{' to '.join(map(str, seeds))} seeds"
        look = {"linewidth": 6, "alpha": 0.25} if x in CONTINUOUS else {"marker": "|", "linestyle": "none"}
        axes.plot([], [], color="0.4", label=label, **look)
    if (summary["usable"] < summary["n"]).any():
        axes.plot([], [], color="0.4", marker="x", linestyle="none", label=UNDEFINED)
