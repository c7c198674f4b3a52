"""Theory beside measurement: slopes over the same layers, and nothing made of numbers that float32 had lost."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from depthlab import nets, theory
from depthlab.config import ModelConfig, RunConfig, flat
from depthlab.figures.overflow import overflow_depths, predicted_activation_std
from depthlab.figures.predictions import (
    FLOAT32_FLOOR,
    above_floor,
    backward_slopes,
    log_backward_norm,
    predicted_backward,
    predicted_depth,
    predicted_text,
    trainable_depths,
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


def test_conditions_of_several_depths_and_inits_keep_their_own_predictions():
    """In the order of their values, whatever that of the rows; each seed has its own slope."""
    parts = []
    for init, depth, slope in (("xavier", 8, 0.2), ("torch_default", 8, 0.7), ("xavier", 5, -0.1)):
        norms = {seed: np.exp((slope + seed / 100) * np.arange(1, depth + 1)) for seed in (0, 1)}
        parts.append(readings_of(norms, init=init, bias=False).assign(**{"model.depth": depth}))
    rows = pd.concat(parts, ignore_index=True).sample(frac=1, random_state=1)
    found = backward_slopes(rows, ["model.init", "model.depth"])
    assert found[["model.init", "model.depth", "seed"]].to_numpy().tolist() == [
        [init, depth, seed] for init, depth in (("torch_default", 8), ("xavier", 5), ("xavier", 8)) for seed in (0, 1)
    ]
    assert found["value"].to_numpy() == pytest.approx([0.7, 0.71, -0.1, -0.09, 0.2, 0.21])
    decays = [theory.backward_slope(activation="relu", sigma_w=sigma_w) for sigma_w in (np.sqrt(1 / 3), 1.0, 1.0)]
    assert found["predicted"].to_numpy() == pytest.approx(np.repeat(decays, 2))
    with pytest.raises(ValueError, match=r"2 that differ in model\.init"):
        backward_slopes(rows, ["model.depth"])


def test_networks_that_differ_in_several_settings_are_told_apart():
    """One of them null; each condition's prediction is the one it has when it is alone."""
    by, norms = ["model.activation", "model.sigma_w", "model.sigma_b"], {0: np.exp(0.1 * np.arange(1, DEPTH + 1))}
    parts = [
        readings_of(norms, activation=activation, init="gaussian", sigma_w=sigma_w, sigma_b=sigma_b)
        for activation in ("sigmoid", "tanh")
        for sigma_w in (1.5, 0.5, None)
        for sigma_b in (0.3, 0.1)
    ]
    alone = pd.concat([backward_slopes(part, by) for part in parts]).sort_values(by)
    together = backward_slopes(pd.concat(parts, ignore_index=True), by)
    assert together["predicted"].nunique() == len(parts)
    assert together["predicted"].tolist() == alone["predicted"].tolist()


def test_a_prediction_is_of_the_layers_that_are_measured():
    """Where the variance has not settled, tanh's first layers predict another slope than its last."""
    norms = np.append(np.exp(0.1 * np.arange(1, DEPTH)), 5.0)
    found = backward_slopes(readings_of({0: norms}, activation="tanh", init="gaussian", sigma_w=1.5), ["model.init"])
    profile = theory.profile(DEPTH, activation="tanh", sigma_w=1.5)
    within = (profile.layer >= 2) & (profile.layer <= DEPTH - 1)
    slope, _ = np.polyfit(profile.layer[within], profile.log_backward_norm[within], 1)
    assert found["predicted"].item() == pytest.approx(slope)
    earlier, _ = np.polyfit(profile.layer[within], profile.log_backward_norm[:-2], 1)
    assert abs(slope - earlier) > 0.001


def test_slopes_that_are_predicted_to_be_0_are_not_minus_0():
    found = pd.DataFrame({"predicted": [-1e-9, 0.0]})
    assert predicted_text(found) == "0.0000"
    assert predicted_text(found + 0.34567) == "0.3457"


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


def test_unit_variance_is_not_the_edge_of_chaos():
    """LSUV: variance 1 from the first layer on, whatever the gradient makes of it."""
    for activation in ("tanh", "sigmoid"):
        chi = theory.chi(
            activation=activation, sigma_w=nets.scales(ModelConfig(activation=activation, init="lsuv"))[0], q=1.0
        )
        found = log_backward_norm(ModelConfig(depth=DEPTH, activation=activation, init="lsuv"))
        assert np.diff(found) == pytest.approx(-np.log(chi) / 2, rel=1e-9)
        assert abs(np.log(chi)) > 0.1


def errors_of(values: dict[tuple[float, int, int], float]) -> pd.DataFrame:
    """One training error per (sigma_w, depth, seed) of tanh nets with sigma_b = 0.3."""
    rows = []
    for (sigma_w, depth, seed), value in values.items():
        model = ModelConfig(depth=depth, activation="tanh", init="gaussian", sigma_w=sigma_w, sigma_b=0.3)
        settings = {name: each for name, each in flat(RunConfig(model=model)).items() if name.startswith("model.")}
        rows.append({**settings, "key": f"{sigma_w}/{depth}/{seed}", "seed": seed, "probe": "error", "value": value})
    return pd.DataFrame(rows)


def test_trainable_depth_is_the_largest_that_trains_beside_six_depth_scales():
    errors = errors_of(
        {(1.0, 5, 0): 0.1, (1.0, 20, 0): 0.2, (1.0, 80, 0): 0.9}
        | {(1.0, 5, 1): 0.1, (1.0, 20, 1): 0.45, (1.0, 80, 1): np.nan}  # the bound is not below itself
        | {(2.0, 5, 0): 0.9, (2.0, 20, 0): np.nan, (2.0, 80, 0): 0.8}
        | {(2.0, 5, 1): 0.5, (2.0, 20, 1): 0.6, (2.0, 80, 1): 0.44}
    )
    found = trainable_depths(errors.sample(frac=1, random_state=0), ["model.sigma_w"], below=0.45)
    assert found[["model.sigma_w", "seed", "value"]].to_numpy().tolist() == [
        [1.0, 0, 20.0],
        [1.0, 1, 5.0],
        [2.0, 0, 2.5],
        [2.0, 1, 80.0],
    ]
    for sigma_w, part in found.groupby("model.sigma_w"):
        c = theory.correlation_chi(activation="tanh", sigma_w=float(sigma_w), sigma_b=0.3)
        assert part["predicted"].to_numpy() == pytest.approx(-6 / np.log(c))


def test_depths_of_two_conditions_or_of_nets_without_a_theory_are_refused():
    errors = errors_of({(1.0, 5, 0): 0.1, (2.0, 5, 0): 0.1})
    with pytest.raises(ValueError, match=r"2 that differ in model\.sigma_w"):
        predicted_depth(errors)
    with pytest.raises(ValueError, match="norm='batch'"):
        predicted_depth(errors[:1].assign(**{"model.norm": "batch"}))
    with pytest.raises(ValueError, match=r"family='rnn' is deep in time"):
        predicted_depth(errors_of({(1.0, 2, 0): 0.1}).assign(**{"model.family": "rnn"}))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"norm": "layer"}, "norm='layer'"),
        ({"skip": "residual"}, "skip='residual'"),
        ({"dropout": 0.1}, r"dropout=0\.1"),
        ({"family": "rnn", "depth": 2, "activation": "tanh"}, "family='rnn'"),
        ({"family": "torchvision"}, "family='torchvision'"),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, dict) else "",
)
def test_every_prediction_of_plain_nets_is_refused_where_a_net_is_not_plain(model: dict[str, object], message: str):
    net = ModelConfig(**model)  # type: ignore[arg-type]
    settings = {name: value for name, value in flat(RunConfig(model=net)).items() if name.startswith("model.")}
    row = {"key": "run", "status": "done", "seed": 0, "step": 0, "layer": "layer", "depth": 1, "value": 1.0}
    rows = pd.DataFrame([{**row, **settings}])
    for predict in (
        lambda: log_backward_norm(net),
        lambda: predicted_depth(rows),
        lambda: overflow_depths(rows, ["model.init"]),
        lambda: predicted_activation_std(rows),
    ):
        with pytest.raises(ValueError, match=message):
            predict()
