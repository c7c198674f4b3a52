"""Signals that leave float32: the layer in which they do, beside theory."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from depthlab.config import ModelConfig, RunConfig, flat
from depthlab.figures import (
    draw_overflow,
    finite_everywhere,
    overflow_depths,
    panels,
    predicted_activation_std,
    style,
)

DEPTH = 5


def run(seed: int, finite: int, *, steps: int = 1, status: str = "diverged", sigma_w: float = 4.0) -> pd.DataFrame:
    """activation_std of a relu net, finite in so many layers at the first update and in none later."""
    config = RunConfig(model=ModelConfig(depth=DEPTH, activation="relu", init="gaussian", sigma_w=sigma_w))
    settings = {name: value for name, value in flat(config).items() if name.startswith("model.")}
    depth = np.arange(1, DEPTH + 1)
    values = [np.where(depth <= finite, 1.0, math.inf), np.full(DEPTH, math.inf)]
    tables = [pd.DataFrame({"depth": depth, "step": step, "value": values[step]}) for step in range(steps)]
    run = {"key": f"{seed}/{sigma_w}", "status": status, "seed": seed, "layer": "layer", "probe": "activation_std"}
    return pd.concat(tables).assign(**run, **settings)


def test_first_layer_that_is_not_finite_and_the_update_that_ended_the_run() -> None:
    rows = pd.concat([run(0, 3), run(1, DEPTH, steps=2), run(2, DEPTH, steps=2, status="done"), run(3, 0)])
    found = overflow_depths(rows.sample(frac=1, random_state=0), ["model.sigma_w"])
    assert list(found["seed"]) == [0, 1, 2, 3]
    assert np.array_equal(found["value"], [4, np.nan, np.nan, 1], equal_nan=True)
    assert np.array_equal(found["ended"], [0, 1, np.nan, 0], equal_nan=True)


def test_prediction_doubles_the_variance_as_relu_does() -> None:
    """sigma_w = 4: q_1 = 16, and every layer multiplies q by sigma_w^2 / 2 = 8."""
    found = overflow_depths(run(0, 3), ["model.sigma_w"])
    wanted = 1 + (math.log(np.finfo(np.float32).max) - math.log(16) / 2) / (math.log(8) / 2)
    assert found["predicted"].item() == pytest.approx(wanted)


def test_nets_without_a_theory_are_refused() -> None:
    with pytest.raises(ValueError, match="norm='batch'"):
        overflow_depths(run(0, 3).assign(**{"model.norm": "batch"}), ["model.sigma_w"])


def test_a_layer_is_kept_where_every_seed_is_finite() -> None:
    rows = pd.concat([run(0, 3), run(1, 4), run(0, DEPTH, sigma_w=2.0)])
    found = finite_everywhere(rows, ["model.sigma_w"])
    assert found.groupby(["model.sigma_w", "seed"])["depth"].max().to_dict() == {
        (4.0, 0): 3,
        (4.0, 1): 3,
        (2.0, 0): DEPTH,
    }


def test_activations_are_predicted_from_the_moments_of_half_a_gaussian() -> None:
    """q_l = 16, 128, ...; the mean of relu(z) is sqrt(q / 2 pi), its second moment q / 2."""
    layers, values = predicted_activation_std(run(0, 3))
    q = 16 * 8.0 ** np.arange(DEPTH - 1)
    assert layers.tolist() == list(range(1, DEPTH))
    assert values == pytest.approx(np.sqrt(q / 2 - q / (2 * np.pi)))
    with pytest.raises(ValueError, match="for relu alone; given tanh"):
        predicted_activation_std(run(0, 3).assign(**{"model.activation": "tanh"}))


def test_lines_end_where_a_seed_does_and_theory_goes_on() -> None:
    rows = pd.concat([run(0, 3), run(1, 2), run(0, DEPTH, sigma_w=2.0), run(1, DEPTH, sigma_w=2.0)])
    with style():
        _, (axes,) = panels()
        draw_overflow(axes, rows[rows["depth"] < DEPTH], "model.sigma_w", labels={2.0: "two", 4.0: "four"})
    lines = {line.get_label(): line for line in axes.lines if line.get_label() in ("two", "four")}
    assert [len(lines[name].get_xdata()) for name in ("two", "four")] == [4, 2]
    predicted = [line for line in axes.lines if line.get_label() == "theory"]
    assert [len(line.get_xdata()) for line in predicted] == [4, 4]
    assert "end of float32" in [text.get_text() for text in axes.texts]
