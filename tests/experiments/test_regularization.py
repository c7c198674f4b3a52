"""What the figures of regularization and cross-validation compute, on readings whose answers are known."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
import pytest

from depthlab.cli import experiments
from depthlab.cli.compose import Composer
from depthlab.config import flat

regularization = experiments.script("regularization")
validation = experiments.script("cross_validation")


def run(probes: dict[str, float], **settings: Any) -> list[dict[str, Any]]:
    named = {name.replace("__", "."): value for name, value in settings.items()}
    common = {"key": str(sorted(named.items())), "status": "done", "step": 9, "layer": "network", "depth": 0}
    return [{**common, **named, "probe": probe, "value": value} for probe, value in probes.items()]


def pools(validation_errors: dict[int, np.ndarray], test_errors: np.ndarray, decays: list[float]) -> pd.DataFrame:
    """Readings of pools by seed: validation errors (decays, folds); test errors (decays,), the same of all folds."""
    rows = []
    for seed, table in validation_errors.items():
        for (i, decay), fold in itertools.product(enumerate(decays), range(table.shape[1])):
            probes = {"validation_error": table[i, fold], "test_error": test_errors[i]}
            rows += run(probes, seed=seed, data__fold=fold, train__weight_decay=decay)
    return pd.DataFrame(rows)


DECAYS = [0.001, 0.01, 0.1, 1.0]
FOLDS = np.array([[0.3, 0.1, 0.2], [0.25, 0.25, 0.1], [0.2, 0.3, 0.13], [0.5, 0.1, 0.21]])  # means 0.2, 0.2, 0.21, 0.27


def test_rules_choose_as_by_hand():
    """The means of the first two are equal, and the larger decay wins; the third is within a standard error of it."""
    found = validation.choices(pools({0: FOLDS, 1: FOLDS}, np.array([0.3, 0.31, 0.34, 0.5]), DECAYS))
    of_seed = found[found["seed"] == 1].set_index("rule")
    assert of_seed["decay"].to_dict() == {"cross-validation": 0.01, "one standard error": 0.1, "one fold": 0.1}
    assert of_seed["value"].to_dict() == pytest.approx(
        {"cross-validation": 1.0, "one standard error": 4.0, "one fold": 4.0}
    )
    assert set(of_seed["best"]) == {0.001}
    assert of_seed["estimate"].to_dict() == pytest.approx(
        {"cross-validation": 20.0, "one standard error": 21.0, "one fold": 21.0}
    )


def test_estimates_are_those_of_numpy():
    found = validation.estimates(pools({0: FOLDS}, np.zeros(4), DECAYS)).set_index("train.weight_decay")
    assert list(found["mean"]) == pytest.approx(list(100 * FOLDS.mean(axis=1)))
    assert list(found["naive"]) == pytest.approx(list(100 * FOLDS.std(axis=1, ddof=1) / np.sqrt(3)))


@pytest.mark.parametrize("common", [0.0, 0.03])
def test_spread_is_the_ratio_of_bengio_and_grandvalet(common: float):
    """Errors = what a pool's folds have in common + each fold's own: (s1 / k + s3) / (s1 / k)."""
    random, own, folds = np.random.default_rng(0), 0.04, 5
    tables = {
        seed: 0.5 + own * random.standard_normal((4, folds)) + common * random.standard_normal((4, 1))
        for seed in range(400)
    }
    found = validation.spread(validation.estimates(pools(tables, np.zeros(4), DECAYS)))
    expected = (own**2 / folds + common**2) / (own**2 / folds)
    assert found.mean() == pytest.approx(expected, rel=0.25)
    means = np.array([table[0].mean() for table in tables.values()])
    naive = np.mean([table[0].var(ddof=1) / folds for table in tables.values()])
    assert found.mean() == pytest.approx(means.var(ddof=1) / naive)


def test_a_pool_with_one_decay_counts_for_the_spread_alone():
    whole, part = {0: FOLDS, 1: FOLDS + 0.01}, {2: FOLDS[1:2] + 0.02}
    both = pd.concat([pools(whole, np.zeros(4), DECAYS), pools(part, np.zeros(1), DECAYS[1:2])])
    assert set(validation.choices(both)["seed"]) == {0, 1}
    found = validation.spread(validation.estimates(both))
    naive = 1e4 * FOLDS[1].var(ddof=1) / 3
    assert found.to_dict() == pytest.approx({0: 1.5 / naive, 1: 0, 2: 1.5 / naive}, abs=1e-9)


def test_claims_about_choices_fail_where_folds_say_nothing():
    random = np.random.default_rng(1)
    test = np.array([0.2, 0.25, 0.3, 0.4])
    blind = pools({seed: 0.3 + 0.05 * random.standard_normal((4, 5)) for seed in range(30)}, test, DECAYS)
    seeing = pools({seed: test[:, None] + 0.01 * random.standard_normal((4, 5)) for seed in range(30)}, test, DECAYS)
    verdicts = [[claim.verdict for claim in validation.claims(each)] for each in (blind, seeing)]
    assert verdicts[0][0] == "not supported"
    assert verdicts[0][1] != "supported"
    assert verdicts[0][2] == "not supported"
    assert verdicts[1][0] == "supported"


@pytest.mark.parametrize("scale", ["smoke", "laptop"])
def test_every_run_has_the_name_of_its_grid(scale: str):
    """Named by hand from the declaration; and each method has every size once for each seed."""
    declared, composer = experiments.load("regularization"), Composer(experiments.folder("configs"))
    expected = {
        **{"none": "none", "dropout": "dropout", "dropconnect": "DropConnect", "l1": "L1", "l2": "L2", "all": "all"},
        **{"l1_subgradient": "L1, subgradient", "augmentation": "augmentation", "wrong_labels": "none"},
        **{"label_smoothing": "label smoothing", "early_stopping": "early stopping"},
    }
    for grid, settings in declared.grids.items():
        launches = type(declared)("one", "", declared.settings, {grid: settings}).launches(composer, scale)
        table = pd.DataFrame([flat(launch.run) for launch in launches])
        named = regularization.named(table)
        if grid in ("adam", "adamw"):
            assert named.empty
            continue
        assert set(named["method"]) == {expected[grid]}
        assert (table["data.split_seed"] == table["seed"]).all()
        assert not table.duplicated(["data.train_size", "seed"]).any()


def test_gap_and_what_a_method_adds():
    settings = dict.fromkeys(regularization.FACTORS, 0) | {"train.l1_step": "subgradient", "train.optimizer": "sgd"}
    settings |= {"data.label_noise": 0.0}
    rows = []
    for seed, size, dropout in itertools.product((0, 1), (10, 100), (0.0, 0.5)):
        probes = {"train_error": 0.01 * seed, "test_error": 0.1 + 0.02 * seed + 0.1 / size + dropout / 10}
        rows += run(probes, **{**settings, "seed": seed, "data.train_size": size, "model.dropout": dropout})
    readings = pd.DataFrame(rows)
    gap = regularization.gaps(readings).set_index(["method", "data.train_size", "seed"])["value"]
    assert gap["none", 10, 1] == pytest.approx(10 + 2 + 1 - 1)
    assert gap["dropout", 100, 0] == pytest.approx(10 + 0.1 + 5)
    extra = regularization.added(regularization.errors(readings, "test_error"))
    assert set(extra["method"]) == {"dropout"}
    assert list(extra["value"]) == pytest.approx([5] * 4)
