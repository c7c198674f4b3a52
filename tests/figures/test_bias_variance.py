"""Bias and variance against a closed form, a naive twin and a second formula."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from depthlab import figures


@given(st.integers(2, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_is_that_of_pairs_in_exact_arithmetic(count, images, outputs, seed):
    """A second formula, over pairs of runs: bias = mean r_i r_j, variance = mean |r_i - r_j|^2 / 2, i and j unlike."""
    drawn = np.random.default_rng(seed).integers(-50, 50, size=(count, images, outputs))
    r = [[[Fraction(int(value)) for value in image] for image in run] for run in drawn]
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]
    places = [(x, k) for x in range(images) for k in range(outputs)]
    bias = sum(r[i][x][k] * r[j][x][k] for i, j in pairs for x, k in places) / len(pairs) / images
    spread = sum((r[i][x][k] - r[j][x][k]) ** 2 for i, j in pairs for x, k in places) / (2 * len(pairs) * images)
    error = sum(r[i][x][k] ** 2 for i in range(count) for x, k in places) / Fraction(count * images)
    assert error == bias + spread
    found = figures.bias_variance(drawn.astype(float))
    assert (found.error, found.bias, found.variance) == pytest.approx(
        (float(error), float(bias), float(spread)), rel=1e-12, abs=1e-9
    )


@pytest.mark.parametrize(("penalty", "runs"), [(0.0, 2), (3.0, 2), (10.0, 3)])
def test_is_that_of_ridge_regression_in_closed_form(penalty, runs):
    """On fixed inputs and y = X b + e, bias and variance of f = T (X'X + penalty)^-1 X' y can be written down."""
    random = np.random.default_rng(0)
    inputs, tests, slope, noise = random.normal(size=(12, 4)), random.normal(size=(7, 4)), np.arange(1.0, 5), 2.0
    smoother = tests @ np.linalg.solve(inputs.T @ inputs + penalty * np.eye(4), inputs.T)
    bias = np.square(smoother @ inputs @ slope - tests @ slope).mean()
    variance = noise**2 * np.square(smoother).sum() / 7
    found = []
    for _ in range(4000):
        labels = inputs @ slope + noise * random.normal(size=(runs, 12))
        residuals = labels @ smoother.T - tests @ slope
        found.append(figures.bias_variance(residuals[:, :, None]))
    for name, expected in (("bias", bias), ("variance", variance), ("error", bias + variance)):
        values = np.array([getattr(each, name) for each in found])
        standard_error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - expected) < 4 * standard_error, name
        assert standard_error < 0.05 * variance


def test_refuses_what_has_no_variance_and_keeps_what_is_not_finite():
    with pytest.raises(ValueError, match=r"two runs or more; given \(1, 3, 2\)"):
        figures.bias_variance(np.zeros((1, 3, 2)))
    with pytest.raises(ValueError, match=r"given \(3, 2\)"):
        figures.bias_variance(np.zeros((3, 2)))
    assert np.isnan(figures.bias_variance(np.array([[[np.inf]], [[1.0]]])).bias)


def readings(values):
    """Runs (seeds, parts, images, outputs) as a long table, in no order."""
    rows = [
        {"key": f"{s}{p}", "status": "done", "seed": s, "data.part": p, "step": 9, "depth": 0, "probe": "test_residual"}
        | {"layer": f"test.{x}.{k}", "value": values[s, p, x, k]}
        for s, p, x, k in np.ndindex(values.shape)
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_residuals_come_back_in_their_places():
    values = np.random.default_rng(0).normal(size=(2, 3, 12, 11))  # two digits: "test.10" sorts before "test.2"
    runs, found = figures.residuals(readings(values))
    for run, residuals in zip(runs.itertuples(), found, strict=True):
        np.testing.assert_array_equal(residuals, values[run.seed, run[4]])


def test_a_run_that_diverged_has_no_residuals_and_is_counted():
    table = readings(np.ones((2, 2, 3, 2)))
    table.loc[table["key"] == "01", ["status", "probe", "layer"]] = ["diverged", "train_loss", "network"]
    other = table[table["key"] == "11"].head(1).assign(key="other", probe="train_loss", layer="network")
    runs, found = figures.residuals(pd.concat([table, other]))
    assert sorted(runs["key"]) == ["00", "01", "10", "11"]  # the other one did not read residuals
    assert np.isnan(found[list(runs["key"]).index("01")]).all()
    table = figures.decompose(runs, found, ["seed"])
    assert table["value"].isna().groupby(table["seed"]).all().to_dict() == {0: True, 1: False}


def test_residuals_of_other_images_are_refused():
    table = readings(np.ones((2, 2, 3, 2)))
    with pytest.raises(ValueError, match="different images or classes"):
        figures.residuals(table[(table["key"] != "00") | (table["layer"] != "test.2.1")])
    with pytest.raises(ValueError, match=r"no readings of probe test_residual; name it in probes\.names"):
        figures.residuals(table.assign(probe="test_error"))


@pytest.mark.parametrize(("seeds", "parts"), [(5, 5), (3, 4), (4, 2)])
def test_groups_share_neither_seed_nor_part(seeds, parts):
    runs = pd.DataFrame([(2 * s, p + 1) for s in range(seeds) for p in range(parts)], columns=["seed", "data.part"])
    group = figures.independent(runs)
    assert group.nunique() == max(seeds, parts)
    for name in ("seed", "data.part"):
        assert not runs.assign(group=group).duplicated(["group", name]).any()


def test_seed_and_training_set_are_told_apart():
    """f = a(part) + b(seed) + c(seed, part): all three vary within independent groups, b not among runs of one seed."""
    random = np.random.default_rng(1)
    of_part, of_seed = 2 * random.normal(size=(1, 5, 400, 10)), 3 * random.normal(size=(5, 1, 400, 10))
    values = of_part + of_seed + random.normal(size=(5, 5, 400, 10))
    runs, residuals = figures.residuals(readings(values))
    terms = {}
    for name, table in (
        ("all", runs.assign(group=figures.independent(runs))),
        ("sets", runs.assign(group=runs["seed"])),
    ):
        found = figures.decompose(table, residuals, ["group"])
        terms[name] = found.groupby("term")["value"].mean() / 10
    assert terms["all"]["variance"] == pytest.approx(4 + 9 + 1, rel=0.05)
    assert terms["sets"]["variance"] == pytest.approx(4 + 1, rel=0.05)
    assert terms["all"]["bias"] == pytest.approx(0, abs=0.4)
    assert terms["sets"]["bias"] == pytest.approx(9, rel=0.05)
    assert terms["all"]["error"] == pytest.approx(terms["sets"]["error"])
