"""Theory for the conditions in a table of readings, so that it can be drawn over them and compared with them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from depthlab import nets, theory
from depthlab.config import ModelConfig
from depthlab.figures.intervals import slopes, summarize
from depthlab.figures.readings import factors

FLOAT32_FLOOR = 2e-36
"""Below this a norm over a batch's pre-activation gradients (about 10,000 entries) is made of entries that float32
holds with fewer digits or not at all: the smallest number with all its digits is 1.2e-38."""


def above_floor(readings: pd.DataFrame) -> pd.DataFrame:
    """The rows of layers in which float32 had all its digits for every seed; a mean over some of them would mislead."""
    where = [name for name in [*factors(readings), "probe", "step", "depth"] if name != "seed"]
    lowest = readings.groupby(where, dropna=False, observed=True)["value"].transform("min")
    return readings[lowest > FLOAT32_FLOOR]


def model_of(readings: pd.DataFrame) -> ModelConfig:
    """The network of readings of one condition. Raises ValueError if they are of several."""
    names = [str(name) for name in readings.columns if str(name).startswith("model.")]
    settings = readings[names].drop_duplicates()
    if len(settings) != 1:
        varying = ", ".join(name for name in names if settings[name].nunique(dropna=False) > 1)
        raise ValueError(f"readings of one network, given {len(settings)} that differ in {varying or 'nothing'}")
    given: dict[str, Any] = {name.removeprefix("model."): _python(settings[name].iloc[0]) for name in names}
    return ModelConfig(**given)


def log_backward_norm(model: ModelConfig) -> np.ndarray:
    """ln |dL/dz_l| - ln |dL/dz_{depth-1}| for l = 1..depth-1, by mean-field theory, layer by layer.

    Inputs are normalized to mean square 1; with init=lsuv the first layer's outputs are. Raises ValueError where the
    theory does not apply (skips, norms).
    """
    theory.check_applies(norm=model.norm, skip=model.skip, dropout=model.dropout, family=model.family)
    sigma_w, sigma_b = nets.scales(model)
    q0 = sigma_w**-2 if model.init == "lsuv" else 1.0
    found = theory.profile(model.depth, activation=model.activation, sigma_w=sigma_w, sigma_b=sigma_b, q0=q0)
    return found.log_backward_norm[:-1]


def predicted_backward(readings: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Layers 1..depth-1 and the predicted backward norm in each, of one plain condition's readings of backward_norm.

    The theory tells ratios between layers; the scale is the measured (geometric) mean in the last hidden layer.
    """
    model = model_of(readings)
    measured = summarize(readings[readings["depth"] == model.depth - 1], ["depth"], log=True)
    return np.arange(1, model.depth), measured["mean"].item() * np.exp(log_backward_norm(model))


def backward_slopes(readings: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Measured and predicted slopes d ln|dL/dz_l| / d l, per condition and seed: columns `by`, seed, value, predicted.

    readings: backward_norm at one step, of plain nets; `by` tells their conditions apart. Both are least-squares
    slopes over the same hidden layers: from the second to the last, as far as they are above float32's floor; nan
    where fewer than two are.
    """
    readings = readings.reset_index(drop=True)
    readable = above_floor(readings).index
    rows = []
    for group, condition in readings.groupby([*by, "seed"], dropna=False, sort=True, observed=True):
        model = model_of(condition)
        hidden = condition[condition["depth"].between(2, model.depth - 1) & condition.index.isin(readable)]
        predicted = hidden.assign(value=np.exp(log_backward_norm(model)[hidden["depth"] - 1]))
        both = [slopes(part, by)["value"].item() if len(part) else np.nan for part in (hidden, predicted)]
        rows.append((*group, *both))
    return pd.DataFrame(rows, columns=[*by, "seed", "value", "predicted"])


def predicted_depth(readings: pd.DataFrame) -> float:
    """About how many layers still train, 6 xi, under one plain condition whose depth may vary (Schoenholz et al. 2017).

    inf on the critical line. Raises ValueError where the theory does not apply (skips, norms).
    """
    model = model_of(readings.assign(**{"model.depth": readings["model.depth"].min()}))
    theory.check_applies(norm=model.norm, skip=model.skip, dropout=model.dropout, family=model.family)
    sigma_w, sigma_b = nets.scales(model)
    return theory.trainable_depth(activation=model.activation, sigma_w=sigma_w, sigma_b=sigma_b)


def trainable_depths(errors: pd.DataFrame, by: Sequence[str], *, below: float) -> pd.DataFrame:
    """Measured and predicted trainable depths, per condition and seed: columns `by`, seed, value, predicted.

    errors: one row per run (see `outcomes`), of plain nets of several depths. `value` is the largest depth whose error
    is below `below`; where no depth's is, half the smallest that was tried stands for it. nan, of a run that diverged,
    is not below anything. `predicted` is `predicted_depth`.
    """
    rows = []
    for group, condition in errors.groupby(list(by), dropna=False, sort=True, observed=True):
        predicted = predicted_depth(condition)
        for seed, runs in condition.groupby("seed"):
            trained = runs["model.depth"][runs["value"] < below]
            rows.append((*group, seed, trained.max() if len(trained) else runs["model.depth"].min() / 2, predicted))
    return pd.DataFrame(rows, columns=[*by, "seed", "value", "predicted"]).astype({"value": float})


def _python(value: Any) -> Any:
    """A cell as configuration wants it: plain Python values, None for what is missing."""
    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value
