"""Where the forward signal of a deep net leaves float32: measured, and as theory has it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from depthlab import nets, theory
from depthlab.figures.predictions import model_of


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
