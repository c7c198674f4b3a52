"""Gradients of states beside theory: ratios between time steps, and nothing predicted of gated cells."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from depthlab import theory
from depthlab.config import ModelConfig, RunConfig, flat
from depthlab.figures import predicted_through_time, states, time_slopes

STEPS = 6


def readings_of(values: dict[int, np.ndarray], **model: object) -> pd.DataFrame:
    """backward_norm at the states 1, 2, ... of a recurrent net, and at its cell, for each seed."""
    config = RunConfig(model=ModelConfig(family="rnn", depth=2, activation="tanh", init="gaussian", **model))  # type: ignore[arg-type]
    settings = {name: value for name, value in flat(config).items() if name.startswith("model.")}
    layers = [*(f"step_{step}" for step in range(1, STEPS + 1)), "blocks.0.cell"]
    depth = [*range(1, STEPS + 1), 1]
    tables = [
        pd.DataFrame({"layer": layers, "depth": depth, "value": [*norms, 77.0]}).assign(
            key=f"run {seed}", status="done", seed=seed, step=0, probe="backward_norm", **settings
        )
        for seed, norms in values.items()
    ]
    return pd.concat(tables, ignore_index=True)


def growing(rate: float, level: float = 1.0) -> np.ndarray:
    return level * np.exp(rate * np.arange(STEPS))


def log_ratio(sigma_w: float, drive: float) -> np.ndarray:
    """ln|dL/dh_t| - ln|dL/dh_{t+1}| from the formula: h_0 = 0, q_t = sigma_w^2 E[phi^2] + drive."""
    q, found = 0.0, []
    for step in range(STEPS):
        q = drive + (theory.variance_map(q, activation="tanh", sigma_w=sigma_w) if step else 0.0)
        found.append(0.5 * np.log(theory.chi(activation="tanh", sigma_w=sigma_w, q=q)))
    return np.array(found[1:])


def test_only_states_have_time() -> None:
    found = states(readings_of({0: growing(0)}))
    assert set(found["layer"]) == {f"step_{step}" for step in range(1, STEPS + 1)}


@pytest.mark.parametrize("sigma_b", [0.0, 0.5])
def test_prediction_meets_the_geometric_mean_at_the_last_step(sigma_b: float) -> None:
    rows = states(readings_of({0: growing(0, 2.0), 1: growing(0, 8.0)}, sigma_w=1.5, sigma_b=sigma_b))
    steps, values = predicted_through_time(rows)
    assert steps.tolist() == list(range(1, STEPS + 1))
    assert values[-1] == pytest.approx(4.0)
    assert np.log(values[:-1] / values[1:]) == pytest.approx(log_ratio(1.5, 1 + sigma_b**2))


def test_slopes_beside_those_of_the_predicted_curve() -> None:
    vanilla = [readings_of({0: growing(0.3), 1: growing(-0.2)}, sigma_w=sigma_w) for sigma_w in (0.5, 2.0)]
    gated = readings_of({0: growing(0.1)}, sigma_w=2.0, cell="lstm")
    by = ["model.cell", "model.sigma_w"]
    found = time_slopes(states(pd.concat([*vanilla, gated])), by).set_index([*by, "seed"])
    assert found["value"].to_dict() == pytest.approx(
        {
            **{("lstm", 2.0, 0): 0.1, ("rnn", 0.5, 0): 0.3, ("rnn", 0.5, 1): -0.2},
            **{("rnn", 2.0, 0): 0.3, ("rnn", 2.0, 1): -0.2},
        }
    )
    assert np.isnan(found["predicted"]["lstm", 2.0, 0])
    for sigma_w in (0.5, 2.0):
        curve = np.append(np.cumsum(log_ratio(sigma_w, 1.0)[::-1])[::-1], 0.0)
        wanted = np.polyfit(np.arange(STEPS), curve, 1)[0]
        assert found["predicted"]["rnn", sigma_w].to_numpy() == pytest.approx(wanted)


def test_gated_cells_have_no_curve() -> None:
    with pytest.raises(ValueError, match=r"model\.cell=rnn; given gru"):
        predicted_through_time(states(readings_of({0: growing(0)}, cell="gru")))
