"""Theory for the conditions in a table of readings, so that it can be drawn over them and compared with them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
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
    _, settings = _networks(readings)
    if len(settings) != 1:
        varying = ", ".join(name for name in map(str, settings) if settings[name].nunique(dropna=False) > 1)
        raise ValueError(f"readings of one network, given {len(settings)} that differ in {varying or 'nothing'}")
    return _models(settings)[0]


@functools.lru_cache(maxsize=1000)
def log_backward_norm(model: ModelConfig) -> npt.NDArray[np.float64]:
    """ln |dL/dz_l| - ln |dL/dz_{depth-1}| for l = 1..depth-1, by mean-field theory, layer by layer; to be read only.

    Inputs are normalized to mean square 1; with init=lsuv the first layer's outputs are. Raises ValueError where the
    theory does not apply (skips, norms).
    """
    theory.check_applies(norm=model.norm, skip=model.skip, dropout=model.dropout, family=model.family)
    sigma_w, sigma_b = nets.scales(model)
    q0 = sigma_w**-2 if model.init == "lsuv" else 1.0
    found = theory.profile(model.depth, activation=model.activation, sigma_w=sigma_w, sigma_b=sigma_b, q0=q0)
    found.log_backward_norm.setflags(write=False)
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
    rows = readings.reset_index(drop=True)
    conditions, condition, networks = _conditions(rows, [*by, "seed"])
    hidden = rows["depth"].between(2, rows["model.depth"] - 1) & rows.index.isin(above_floor(rows).index)
    log_norms = np.full((len(networks), rows["model.depth"].max()), np.nan)
    for place, model in enumerate(networks):
        log_norms[place, : model.depth - 1] = log_backward_norm(model)
    predicted = np.exp(log_norms[condition[hidden], rows["depth"][hidden] - 1])
    measured = rows[["seed", "depth", "value"]].assign(condition=condition)[hidden]
    for name, part in (("value", measured), ("predicted", measured.assign(value=predicted))):
        slope = slopes(part, ["condition"]).set_index("condition")["value"]
        conditions[name] = slope.reindex(conditions.index).astype(float)
    return conditions


def predicted_text(slopes: pd.DataFrame) -> str:
    """The predicted slope of one condition of `backward_slopes` as a cell of a table, with four decimals."""
    # + 0.0, since what comes of rounding errors may be -0
    return f"{round(slopes['predicted'].mean(), 4) + 0.0:.4f}"


def predicted_depth(readings: pd.DataFrame) -> float:
    """About how many layers still train, 6 xi, under one plain condition whose depth may vary (Schoenholz et al. 2017).

    inf on the critical line. Raises ValueError where the theory does not apply (skips, norms).
    """
    return _predicted_depth(model_of(readings.assign(**{"model.depth": readings["model.depth"].min()})))


@functools.lru_cache(maxsize=1000)
def _predicted_depth(model: ModelConfig) -> float:
    theory.check_applies(norm=model.norm, skip=model.skip, dropout=model.dropout, family=model.family)
    sigma_w, sigma_b = nets.scales(model)
    return theory.trainable_depth(activation=model.activation, sigma_w=sigma_w, sigma_b=sigma_b)


def trainable_depths(errors: pd.DataFrame, by: Sequence[str], *, below: float) -> pd.DataFrame:
    """Measured and predicted trainable depths, per condition and seed: columns `by`, seed, value, predicted.

    errors: one row per run (see `outcomes`), of plain nets of several depths. `value` is the largest depth whose error
    is below `below`; where no depth's is, half the smallest that was tried stands for it. nan, of a run that diverged,
    is not below anything. `predicted` is `predicted_depth`.
    """
    keys = [*by, "seed"]
    groups = errors.groupby(list(by), dropna=False, sort=True, observed=True)
    shallow = errors.assign(**{"model.depth": groups["model.depth"].transform("min")})
    _, condition, networks = _conditions(shallow, by)
    predicted = np.array([_predicted_depth(model) for model in networks])
    depth = errors["model.depth"]
    rows = errors[keys].assign(
        value=depth.where(errors["value"] < below), least=depth / 2, predicted=predicted[condition]
    )
    of_seed = rows.groupby(keys, dropna=False, sort=True, observed=True)
    found = of_seed.agg(value=("value", "max"), least=("least", "min"), predicted=("predicted", "first")).reset_index()
    return found.assign(value=found["value"].fillna(found["least"]).astype(float)).drop(columns="least")


def _conditions(readings: pd.DataFrame, by: Sequence[str]) -> tuple[pd.DataFrame, npt.NDArray[Any], list[ModelConfig]]:
    """The values of `by` in sorted order, the number of each row's among them, and the network of each.

    Raises ValueError when one of them is of several networks.
    """
    condition = readings.groupby(list(by), dropna=False, sort=True, observed=True).ngroup().to_numpy()
    network, settings = _networks(readings)
    models = _models(settings)
    _, first = np.unique(condition, return_index=True)
    several = condition[network != network[first][condition]]
    if len(several):
        model_of(readings[condition == several[0]])
    return readings[list(by)].iloc[first].reset_index(drop=True), condition, [models[each] for each in network[first]]


def _networks(readings: pd.DataFrame) -> tuple[npt.NDArray[Any], pd.DataFrame]:
    """The number of each row's network, and the settings of all networks, a row each."""
    names = [str(name) for name in readings.columns if str(name).startswith("model.")]
    combined = np.zeros(len(readings), dtype=np.int64)
    for name in names:
        codes, values = readings[name].factorize(use_na_sentinel=False)
        # numbered again after each column, so that no product overflows; most columns hold one value
        combined = combined if len(values) < 2 else pd.factorize(combined * len(values) + codes)[0]
    _, first, network = np.unique(combined, return_index=True, return_inverse=True)
    return network, readings[names].iloc[first]


def _models(settings: pd.DataFrame) -> list[ModelConfig]:
    """Of each row; cells as configuration wants them: plain Python values, None for what is missing."""
    rows = settings.rename(columns=lambda name: str(name).removeprefix("model.")).to_dict("records")
    plain: list[dict[str, Any]] = [
        {str(name): None if pd.isna(row[name]) else row[name] for name in row} for row in rows
    ]
    return [ModelConfig(**given) for given in plain]
