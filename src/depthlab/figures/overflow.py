"""Where the forward signal of a deep net leaves float32: measured, and as theory has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from depthlab import nets, theory
from depthlab.figures.axes import draw
from depthlab.figures.axes import theory as theory_line
from depthlab.figures.predictions import model_of

RELU_STD = np.sqrt(0.5 * (1 - 1 / np.pi))
"""Standard deviation of relu(z) over that of a centred Gaussian z."""

SHOWN = (1e-2, 1e44)
"""Limits of the axis, some decades beyond float32's largest number, 3.4e38."""


def overflow_depths(readings: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The first layer that is not finite, measured and predicted: columns `by`, seed, value, predicted and ended.

    readings: activation_std of plain nets; `by` tells their conditions apart. `value` is of the first update (step 0),
    nan where all layers are finite; `predicted` is that of `theory.overflow_depth`; `ended` the update, from 0, at
    which the run diverged, nan if it did not.
    """
    rows = []
    for group, run in readings.groupby([*by, "seed"], dropna=False, sort=True, observed=True):
        first = run[run["step"] == 0]
        model = model_of(run)
        theory.check_applies(norm=model.norm, skip=model.skip, dropout=model.dropout, family=model.family)
        sigma_w, sigma_b = nets.scales(model)
        predicted = theory.overflow_depth(activation=model.activation, sigma_w=sigma_w, sigma_b=sigma_b)
        ended = run["step"].max() if (run["status"] == "diverged").all() else np.nan
        rows.append((*group, first["depth"][~np.isfinite(first["value"])].min(), predicted, ended))
    return pd.DataFrame(rows, columns=[*by, "seed", "value", "predicted", "ended"])


def finite_everywhere(readings: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """The rows of layers in which every seed of a condition has a finite value; a mean over some would mislead."""
    finite = readings.assign(finite=np.isfinite(readings["value"]))
    return readings[finite.groupby([*by, "depth"], dropna=False, observed=True)["finite"].transform("all")]


def predicted_activation_std(readings: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Layers 1..depth-1 and the predicted standard deviation of their activations, of one plain relu condition.

    sqrt(q_l (1 - 1/pi) / 2), with q_l the variance of the pre-activations: half of a centred Gaussian's second moment,
    less the square of its mean, sqrt(q_l / (2 pi)). Raises ValueError for other activations.
    """
    model = model_of(readings)
    theory.check_applies(norm=model.norm, skip=model.skip, dropout=model.dropout, family=model.family)
    if model.activation != "relu":
        raise ValueError(f"the standard deviation of activations is predicted for relu alone; given {model.activation}")
    sigma_w, sigma_b = nets.scales(model)
    found = theory.profile(model.depth, activation="relu", sigma_w=sigma_w, sigma_b=sigma_b)
    return np.arange(1, model.depth), RELU_STD * np.sqrt(found.variance[:-1])


def draw_overflow(axes: Axes, readings: pd.DataFrame, by: str, *, labels: Mapping[Any, str]) -> None:
    """Draws activation_std of plain relu nets of one depth over layers, with theory, up to the end of float32.

    readings: of hidden layers at one step; `by` tells conditions apart (see `draw`). Layers that are not finite for
    every seed are left out.
    """
    finite = finite_everywhere(readings, [by])
    draw(axes, finite, "depth", by, labels=labels, ylim=SHOWN, ylabel="s.d. of activation")
    for _, condition in finite.groupby(by, sort=False):
        theory_line(axes, *predicted_activation_std(condition))
    axes.axhline(float(np.finfo(np.float32).max), color="black", linewidth=0.6)
    at = axes.get_yaxis_transform()
    axes.text(0.65, 1e39, "end of float32", transform=at, ha="center", va="bottom", fontsize="small")
