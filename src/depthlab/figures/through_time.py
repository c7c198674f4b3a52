"""Recurrent nets: how the gradient of their states goes back through time, measured and predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from depthlab import nets, theory
from depthlab.figures.intervals import interval, slopes
from depthlab.figures.predictions import model_of

VANILLA = "rnn"
"""The cell of which there is a theory; gates have none here."""


def states(readings: pd.DataFrame) -> pd.DataFrame:
    """The rows of the states of recurrent nets, whose `depth` is the time step, from 1."""
    return readings[readings["layer"].str.startswith("step_")]


def predicted_through_time(readings: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Time steps 1..T and the predicted norm of dL/dh_t at each, of one vanilla condition's readings of `states`.

    The theory (see `theory.time_profile`) tells ratios between steps; the scale is the measured (geometric) mean at the
    last. The inputs, normalized, drive each step with 1 + sigma_b^2. Raises ValueError for gated cells.
    """
    last = readings["depth"].max()
    level = interval(readings[readings["depth"] == last]["value"], log=True).mean
    return np.arange(1, last + 1), level * np.exp(_log_backward_norm(readings))


def time_slopes(readings: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Measured and predicted slopes d ln|dL/dh_t| / dt, per condition and seed: columns `by`, seed, value, predicted.

    readings: backward_norm of `states` at one step; `by` tells conditions apart. Both are least-squares slopes over all
    time steps; `predicted` is nan for gated cells, of which there is no theory.
    """
    predicted = []
    for condition, part in readings.groupby(list(by), dropna=False, sort=True, observed=True):
        curve = _log_backward_norm(part) if model_of(part).cell == VANILLA else np.array([])
        predicted.append((*condition, np.polyfit(np.arange(len(curve)), curve, 1)[0] if len(curve) else np.nan))
    of_condition = pd.DataFrame(predicted, columns=[*by, "predicted"])
    return slopes(readings, by).merge(of_condition, how="left", on=list(by), validate="many_to_one")


def _log_backward_norm(readings: pd.DataFrame) -> np.ndarray:
    """ln|dL/dh_t| - ln|dL/dh_T| at all time steps of one vanilla condition."""
    model = model_of(readings)
    if model.cell != VANILLA:
        raise ValueError(f"the theory through time is of model.cell={VANILLA}; given {model.cell}")
    sigma_w, sigma_b = nets.scales(model)
    drive = [1.0 + sigma_b**2] * int(readings["depth"].max())
    return theory.time_profile(drive, activation=model.activation, sigma_w=sigma_w).log_backward_norm
