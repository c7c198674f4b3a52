import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from depthlab.figures import Claim, interval, permuted
from depthlab.figures.claims import markdown
from depthlab.figures.readings import factors

# Mean 2, interval [0.845.., 3.154..].
VALUES = (1.0, 2.0, 2.0, 3.0)
INTERVAL = interval(VALUES)


def _claim(values: Any = VALUES, **bounds: Any) -> Claim:
    return Claim(statement="It grows.", effect="growth", values=values, **bounds)


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [
        ({"at_least": 0.5}, "supported"),
        ({"at_least": INTERVAL.low}, "supported"),
        ({"at_least": math.nextafter(INTERVAL.low, math.inf)}, "undecided"),
        ({"at_least": INTERVAL.high}, "undecided"),
        ({"at_least": math.nextafter(INTERVAL.high, math.inf)}, "not supported"),
        ({"at_most": 4.0}, "supported"),
        ({"at_most": INTERVAL.high}, "supported"),
        ({"at_most": math.nextafter(INTERVAL.high, 0)}, "undecided"),
        ({"at_most": INTERVAL.low}, "undecided"),
        ({"at_most": math.nextafter(INTERVAL.low, 0)}, "not supported"),
        ({"at_least": 0.5, "at_most": 4.0}, "supported"),
        ({"at_least": 0.5, "at_most": 3.0}, "undecided"),
        ({"at_least": 1.0, "at_most": 3.0}, "undecided"),
        ({"at_least": -2.0, "at_most": 0.0}, "not supported"),
        ({"at_least": 4.0, "at_most": 5.0}, "not supported"),
    ],
)
def test_verdict_says_where_the_whole_interval_lies(bounds: dict[str, float], verdict: str) -> None:
    claim = _claim(**bounds)
    assert claim.verdict == verdict
    assert (claim.estimate, claim.reason) == (2.0, "")


@pytest.mark.parametrize(
    ("values", "log", "reason"),
    [
        ([5.0], False, "one seed has no interval"),
        ([5.0], True, "one seed has no interval"),
        ([5.0, 6.0, math.nan], False, "1 of 3 seeds not finite"),
        ([5.0, math.inf, -math.inf], False, "2 of 3 seeds not finite"),
        ([5.0, 6.0, 0.0], True, "1 of 3 seeds zero, negative or not finite"),
    ],
)
def test_undecided_with_a_reason(values: list[float], log: bool, reason: str) -> None:
    for bounds in ({"at_least": 0.1}, {"at_most": 9.0}, {"at_least": 100.0}, {"at_least": 0.1, "at_most": 0.2}):
        claim = _claim(values, log=log, **bounds)
        assert (claim.verdict, claim.reason) == ("undecided", reason)


def test_geometric_claim() -> None:
    ratios = [1e-12, 1e-10, 1e-11]
    assert _claim(ratios, at_most=1e-6, log=True).verdict == "supported"
    assert _claim(ratios, at_least=1e-10, log=True).verdict == "undecided"
    assert _claim(ratios, at_most=1e-6, log=True).estimate == pytest.approx(1e-11)


@pytest.mark.parametrize(
    ("values", "bounds", "message"),
    [
        (VALUES, {}, "nothing could contradict"),
        (VALUES, {"at_least": -math.inf, "at_most": math.inf}, "nothing could contradict"),
        (VALUES, {"at_least": 0.0, "log": True}, "nothing could contradict"),
        (VALUES, {"at_most": 0.0, "log": True}, "must not exceed"),
        (VALUES, {"at_least": math.inf}, "must not exceed"),
        (VALUES, {"at_least": 2.0, "at_most": 1.0}, "must not exceed"),
        (VALUES, {"at_least": math.nan, "at_most": 1.0}, "must not exceed"),
        ([], {"at_least": 1.0}, "has no values"),
    ],
)
def test_claims_that_mean_nothing_are_refused(values: Any, bounds: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _claim(values, **bounds)


def test_row_and_page() -> None:
    claims = [
        _claim(at_least=0.5),
        _claim([1.0], at_least=0.0, at_most=0.25),
        Claim(statement="|g| falls.", effect="|g|", values=np.array([1.0, 2.0]), at_most=0),
    ]
    row = claims[0].row()
    assert row["verdict"] == "supported"
    assert (row["estimate"], row["low"], row["high"]) == (2.0, INTERVAL.low, INTERVAL.high)
    assert (row["seeds"], row["at_least"], row["at_most"]) == (4, 0.5, math.inf)
    lines = markdown("A title", claims).splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[-3:]]
    assert lines[0] == "# A title"
    assert cells == [
        ["It grows.", "growth", "2.00", "[0.701, 3.30]", "4", "at least 0.5", "supported"],
        ["It grows.", "growth", "1.00", "[-inf, inf]", "1", "0 to 0.25", "undecided: one seed has no interval"],
        [r"\|g\| falls.", r"\|g\|", "1.50", "[-4.85, 7.85]", "2", "at most 0", "undecided"],
    ]


def test_permuted_moves_every_label_within_its_seed(readings: pd.DataFrame) -> None:
    moved = permuted(readings, "model.activation", seed=3)
    pd.testing.assert_frame_equal(moved.drop(columns="model.activation"), readings.drop(columns="model.activation"))
    assert (moved["model.activation"] != readings["model.activation"]).all()
    assert (moved.groupby("key")["model.activation"].nunique() == 1).all()
    grid = moved.drop_duplicates("key").groupby(["seed", "model.activation"]).size()
    assert len(grid) == 12
    assert set(grid) == {1}


def test_permuted_is_reproducible_and_varies(readings: pd.DataFrame) -> None:
    shuffled = readings.sample(frac=1, random_state=1)
    pd.testing.assert_frame_equal(
        permuted(shuffled, "model.activation", seed=5).sort_index(), permuted(readings, "model.activation", seed=5)
    )
    draws = {tuple(permuted(readings, "model.activation", seed=seed)["model.activation"]) for seed in range(8)}
    assert len(draws) > 4


def test_permuted_refuses_when_nothing_can_move(readings: pd.DataFrame) -> None:
    confounded = readings.assign(**{"model.init": readings["model.activation"].map({"relu": "he"}).fillna("xavier")})
    confounded["model.width"] = confounded["model.activation"].map({"relu": 1, "tanh": 2, "sigmoid": 3})
    with pytest.raises(ValueError, match=r"no two runs differ in model\.activation alone"):
        permuted(confounded, "model.activation")
    names = ["model.activation", "model.init", "model.width"]
    moved = permuted(confounded, names)
    assert (moved["model.width"] != confounded["model.width"]).all()
    assert set(map(tuple, moved[names].drop_duplicates().to_numpy())) == set(
        map(tuple, confounded[names].drop_duplicates().to_numpy())
    )


def test_seeds_are_not_permuted(readings: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="leave the seed out"):
        permuted(readings, ["seed", "model.activation"])
    assert "seed" in factors(readings)


def test_claims_fall_on_permuted_readings(readings: pd.DataFrame, experiment: Any) -> None:
    assert [claim.verdict for claim in experiment.claims(readings)] == ["supported", "supported"]
    for seed in range(5):
        moved = permuted(readings, "model.activation", seed=seed)
        assert all(claim.verdict != "supported" for claim in experiment.claims(moved))
