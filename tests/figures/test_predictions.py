"""Theory beside measurement: slopes over the same layers, and nothing made of numbers that float32 had lost."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from depthlab.config import ModelConfig, RunConfig, flat
from depthlab.figures.predictions import (
    FLOAT32_FLOOR,
    above_floor,
    backward_slopes,
    log_backward_norm,
    predicted_backward,
)

DEPTH = 12


def readings_of(values: dict[int, np.ndarray], **model: object) -> pd.DataFrame:
    """backward_norm of the weight layers 1, 2, ... of a net, for each seed."""
    config = RunConfig(model=ModelConfig(depth=DEPTH, **model))  # type: ignore[arg-type]
    settings = {name: value for name, value in flat(config).items() if name.startswith("model.")}
    tables = [
        pd.DataFrame({"depth": np.arange(1, len(norms) + 1), "value": norms}).assign(
            key=f"run {seed}", status="done", seed=seed, step=0, layer="layer", probe="backward_norm", **settings
        )
        for seed, norms in values.items()
    ]
    return pd.concat(tables, ignore_index=True)


def test_slope_of_a_planted_decay_beside_the_closed_form_of_relu():
    """relu with sigma_w^2 = 1/3, no biases: chi = 1/6, slope 1/2 ln 6 = 0.896."""
    norms = np.append(np.exp(0.7 * np.arange(1, DEPTH)), 5.0)
    found = backward_slopes(readings_of({0: norms, 1: 3 * norms}, init="torch_default", bias=False), ["model.init"])
    assert found["seed"].tolist() == [0, 1]
    assert found["value"].to_numpy() == pytest.approx(0.7)
    assert found["predicted"].to_numpy() == pytest.approx(np.log(6) / 2)


def test_a_net_below_the_floor_has_no_slope_and_is_not_lost():
    found = backward_slopes(readings_of({0: np.full(DEPTH, 1e-40), 1: np.full(DEPTH, 1e-39)}), ["model.init"])
    assert found["seed"].tolist() == [0, 1]
    assert found["value"].dtype == float
    assert found[["value", "predicted"]].isna().all(axis=None)


def test_a_layer_is_left_out_for_all_seeds_if_float32_lost_it_in_one():
    values = np.full(DEPTH, 1.0)
    lost = values.copy()
    lost[2] = FLOAT32_FLOOR / 2
    kept = above_floor(readings_of({0: values, 1: lost}))
    assert set(kept["depth"]) == set(range(1, DEPTH + 1)) - {3}
    assert kept.groupby("depth")["seed"].nunique().eq(2).all()


def test_prediction_passes_through_the_measurement_in_the_last_hidden_layer_alone():
    readings = readings_of({0: np.full(DEPTH, 2.0), 1: np.full(DEPTH, 8.0)}, init="xavier", activation="relu")
    layers, values = predicted_backward(readings)
    assert layers.tolist() == list(range(1, DEPTH))
    assert values[-1] == pytest.approx(4.0)  # the geometric mean
    assert values[:-1] / values[1:] == pytest.approx(np.sqrt(1 / 2))  # chi = sigma_w^2 / 2


def test_theory_is_not_drawn_where_it_does_not_hold():
    with pytest.raises(ValueError, match="skip"):
        log_backward_norm(ModelConfig(depth=DEPTH, skip="residual"))
    mixed = pd.concat([readings_of({0: np.ones(DEPTH)}, init=init) for init in ("he", "xavier")], ignore_index=True)
    with pytest.raises(ValueError, match=r"model\.init"):
        predicted_backward(mixed)
