"""Squared bias and variance of networks that were trained on different data, from the residuals of their outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from depthlab.figures.intervals import require_columns
from depthlab.figures.readings import factors


@dataclass(frozen=True)
class BiasVariance:
    """Means over images of squares summed over outputs: `error` = `bias` + `variance`; `bias` is the squared one."""

    error: float
    bias: float
    variance: float


def bias_variance(residuals: NDArray[np.float64]) -> BiasVariance:
    """The decomposition of the expected squared error over runs, estimated without bias from n of them.

    residuals: (n, images, outputs), r_i(x) = f_i(x) - y(x), of runs whose random draws (training set, initialization)
    are independent. With r the mean over runs and means over images taken of everything,

        error     1/n sum_i |r_i|^2                   estimates  E|f - y|^2
        variance  1/(n - 1) sum_i |r_i - r|^2                    E|f - E f|^2
        bias      |r|^2 - variance / n                           |E f - y|^2

    (Geman et al. 1992; with initialization among the random draws Neal et al. 2018; without bias, from disjoint parts
    of the data, Yang et al. 2020). |r|^2 alone is too large by variance / n, since a mean of few runs still varies;
    less that, the estimate of a bias near 0 can be negative. Where labels are not a function of x their variance is
    part of `bias`; from `variance` they cancel. A residual that is not finite makes everything nan.
    Raises ValueError for another shape or one run.

    >>> bias_variance(np.array([[[3.0]], [[1.0]]]))  # one image, one output, two runs: 2 +- sqrt 2
    BiasVariance(error=5.0, bias=3.0, variance=2.0)
    """
    if residuals.ndim != 3 or len(residuals) < 2:
        raise ValueError(
            f"residuals must be (runs, images, outputs) with two runs or more; given {tuple(residuals.shape)}"
        )
    if not np.isfinite(residuals).all():
        return BiasVariance(np.nan, np.nan, np.nan)
    count, images = residuals.shape[:2]
    mean = residuals.mean(axis=0)
    variance = float(np.square(residuals - mean).sum() / (count - 1) / images)
    bias = float(np.square(mean).sum() / images) - variance / count
    return BiasVariance(bias + variance, bias, variance)


def residuals(readings: pd.DataFrame) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Runs, one row each with its settings, and their residuals (runs, images, outputs), from the probe test_residual.

    Only runs that read the probe; those that diverged have nan. Raises ValueError when there are none, or when runs
    hold residuals of different images.
    """
    rows = readings[readings["probe"] == "test_residual"]
    if rows.empty:
        raise ValueError("no readings of probe test_residual; name it in probes.names")
    table = rows.pivot(index="key", columns="layer", values="value")
    places = [tuple(map(int, layer.split(".")[1:])) for layer in table.columns]
    images, outputs = (1 + max(place[axis] for place in places) for axis in (0, 1))
    if len(places) != images * outputs or table.isna().to_numpy().any():
        raise ValueError("the runs hold residuals of different images or classes; compare runs on one data set")
    order = sorted(range(len(places)), key=places.__getitem__)
    of_run = readings.drop_duplicates("key")[["key", "status", *factors(readings)]]
    runs = of_run[of_run["key"].isin(table.index) | (of_run["status"] == "diverged")].reset_index(drop=True)
    values = table.iloc[:, order].reindex(runs["key"]).to_numpy(dtype=np.float64)
    return runs, values.reshape(len(runs), images, outputs)


def decompose(runs: pd.DataFrame, residuals: NDArray[np.float64], by: Sequence[str]) -> pd.DataFrame:
    """The decomposition of each group of runs: columns `by`, term (error, bias, variance), value; a row for each term.

    runs and residuals: those of the function `residuals`. Everything in which the runs of a group differ counts as a
    random draw: with the seed in `by` the variance is that of training sets alone, at one initialization.
    """
    require_columns(runs, by)
    rows = []
    for group, part in runs.reset_index(drop=True).groupby(list(by), dropna=False, sort=True):
        found = dataclasses.asdict(bias_variance(residuals[part.index]))
        rows += [(*group, term, value) for term, value in found.items()]
    return pd.DataFrame(rows, columns=[*by, "term", "value"])


def independent(runs: pd.DataFrame) -> pd.Series[int]:
    """A group for each run of a grid of seeds and parts of the data: within one no two share a seed or a part.

    The diagonals of the grid: (part - seed) mod m, m the larger of their two counts. As many groups as that, each run
    in one of them; two groups share seeds and parts, but no run.
    """
    require_columns(runs, ["seed", "data.part"])
    seed, part = (runs[name].rank(method="dense").astype(int) - 1 for name in ("seed", "data.part"))
    return (part - seed) % max(part.max() + 1, seed.max() + 1)
