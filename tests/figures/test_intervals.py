import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from depthlab.figures import by_seed, interval, intervals, largest_gap, less_baseline, paired, select, slopes, summarize

VALUES = [0.3, 1.7, 2.2, 0.9, 1.1]


def test_interval_is_students() -> None:
    found = interval(VALUES)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(VALUES), scale=stats.sem(VALUES))
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(VALUES), low, high), rel=1e-13)
    assert (found.n, found.usable, found.log) == (5, 5, False)


def test_interval_of_two_in_closed_form() -> None:
    # With one degree of freedom the quantile is that of Cauchy's distribution, tan(0.475 pi).
    found = interval([1.0, 3.0])
    assert found.high - found.mean == pytest.approx(math.tan(0.475 * math.pi), rel=1e-9)


def test_geometric_interval_is_that_of_the_logarithms() -> None:
    found = interval(VALUES, log=True)
    logs = interval(np.log(VALUES))
    assert (found.mean, found.low, found.high) == pytest.approx(np.exp([logs.mean, logs.low, logs.high]), rel=1e-13)
    assert found.mean == pytest.approx(stats.gmean(VALUES))


@pytest.mark.parametrize("log", [False, True])
def test_covers_the_truth_as_often_as_it_says(log: bool) -> None:
    random = np.random.default_rng(1)
    trials, covered = 4000, 0
    for sample in random.normal(2.0, 3.0, size=(trials, 4)):
        found = interval(np.exp(sample) if log else sample, log=log)
        truth = math.exp(2.0) if log else 2.0
        covered += found.low <= truth <= found.high
    assert abs(covered / trials - 0.95) < 4 * math.sqrt(0.95 * 0.05 / trials)


def test_one_seed_is_unbounded() -> None:
    found = interval([0.5])
    assert (found.mean, found.low, found.high, found.n) == (0.5, -math.inf, math.inf, 1)
    positive = interval([0.5], log=True)
    assert (positive.mean, positive.low, positive.high) == pytest.approx((0.5, 0.0, math.inf))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_unusable_seed_leaves_the_mean_undefined_and_is_counted(bad: float) -> None:
    found = interval([*VALUES, bad])
    assert all(math.isnan(number) for number in (found.mean, found.low, found.high))
    assert (found.n, found.usable) == (6, 5)


@pytest.mark.parametrize("bad", [0.0, -0.0, -1.0])
def test_what_has_no_logarithm_is_unusable_only_there(bad: float) -> None:
    assert interval([*VALUES, bad]).usable == 6
    assert interval([*VALUES, bad], log=True).usable == 5


@settings(deadline=None)
@given(st.integers(-1060, 1000))
def test_width_neither_underflows_nor_overflows(exponent: int) -> None:
    scaled = interval(np.ldexp([1.0, 2.0, 4.0], exponent))
    plain = interval([1.0, 2.0, 4.0])
    assert scaled.high - scaled.mean == pytest.approx(math.ldexp(plain.high - plain.mean, exponent), rel=1e-3)
    assert scaled.mean == math.ldexp(plain.mean, exponent) or exponent < -1000


def test_no_values() -> None:
    with pytest.raises(ValueError, match="at least one value"):
        interval([])


def test_summarize_groups_over_seeds(readings: pd.DataFrame) -> None:
    errors = select(readings, "test_error")
    found = summarize(errors, ["model.activation"]).set_index("model.activation")
    assert list(found.index) == ["relu", "sigmoid", "tanh"]
    relu = interval(errors[errors["model.activation"] == "relu"]["value"])
    assert tuple(found.loc["relu"]) == (relu.mean, relu.low, relu.high, 4, 4)


def test_summarize_keeps_settings_that_are_null() -> None:
    frame = pd.DataFrame({"model.sigma_w": [math.nan, math.nan, 1.5], "seed": [0, 1, 0], "value": [1.0, 2.0, 3.0]})
    found = summarize(frame, ["model.sigma_w"])
    assert list(found["n"]) == [1, 2]
    assert found["model.sigma_w"].dtype == np.float64


def test_layers_do_not_pass_for_seeds(readings: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"several values for model\.activation=sigmoid, seed=0"):
        summarize(select(readings, "grad_norm", step=0), ["model.activation"])


def test_intervals_of_nothing() -> None:
    with pytest.raises(ValueError, match="no rows"):
        intervals(pd.DataFrame({"a": [], "seed": [], "value": []}), ["a"])


def test_missing_columns_are_named() -> None:
    with pytest.raises(ValueError, match=r"lacks the columns seed; it has a, value"):
        intervals(pd.DataFrame({"a": [1], "value": [1.0]}), ["a"])


def _two_conditions() -> pd.DataFrame:
    rows = [("a", 0, 1.0), ("b", 2, 8.0), ("a", 2, 2.0), ("b", 0, 3.0)]
    return pd.DataFrame(rows, columns=["condition", "seed", "value"])


def test_paired_by_seed() -> None:
    assert paired(_two_conditions(), "condition", "b", "a").to_dict() == {0: 2.0, 2: 6.0}
    assert paired(_two_conditions(), "condition", "b", "a", ratio=True).to_dict() == {0: 3.0, 2: 4.0}


def test_seed_without_partner_is_kept_as_nan() -> None:
    effect = paired(_two_conditions().iloc[:3], "condition", "b", "a")
    assert effect[2] == 6.0
    assert math.isnan(effect[0])


def test_paired_with_an_absent_condition() -> None:
    with pytest.raises(ValueError, match="no rows with condition=c; there are a, b"):
        paired(_two_conditions(), "condition", "c", "a")


def test_paired_with_several_values_of_a_seed() -> None:
    with pytest.raises(ValueError, match="several values for condition=a, seed=0"):
        paired(pd.concat([_two_conditions()] * 2), "condition", "b", "a")


def test_values_by_seed() -> None:
    part = _two_conditions()[lambda frame: frame["condition"] == "a"]
    assert by_seed(part).to_dict() == dict(zip(part["seed"], part["value"], strict=True))
    with pytest.raises(ValueError, match="several values for seed=2"):
        by_seed(_two_conditions())
    with pytest.raises(ValueError, match="no rows to take values of seeds from"):
        by_seed(part[:0])


def test_less_baseline_pairs_seeds_within_groups() -> None:
    rows = [
        ("a", 5, 0, 1.0),
        ("b", 5, 0, 4.0),
        ("a", 9, 0, 10.0),
        ("c", 9, 0, 30.0),
        ("b", 9, 1, 7.0),
        ("b", 9, 0, 8.0),
    ]
    frame = pd.DataFrame(rows, columns=["net", "size", "seed", "value"]).sample(frac=1, random_state=3)
    found = less_baseline(frame, "net", "a", by=["size"]).set_index(["net", "size", "seed"])["value"]
    assert found.drop(("b", 9, 1)).to_dict() == {("b", 5, 0): 3.0, ("c", 9, 0): 20.0, ("b", 9, 0): -2.0}
    assert math.isnan(found["b", 9, 1])
    pd.testing.assert_series_equal(
        less_baseline(_two_conditions(), "condition", "a").set_index("seed")["value"].sort_index(),
        paired(_two_conditions(), "condition", "b", "a"),
        check_names=False,
    )
    with pytest.raises(ValueError, match="no rows with net=d; there are"):
        less_baseline(frame, "net", "d")
    with pytest.raises(ValueError, match="several values for seed=0"):
        less_baseline(frame, "net", "a")


def test_largest_gap_is_that_of_any_condition_on_either_side() -> None:
    found = pd.DataFrame(
        [("a", 0, 1.0, 1.5), ("b", 0, 2.0, 1.0), ("a", 1, 1.0, 4.0), ("b", 1, 5.0, 4.0)],
        columns=["net", "seed", "value", "predicted"],
    )
    assert largest_gap(found).to_dict() == {0: 1.0, 1: 3.0}
    assert math.isnan(largest_gap(found.assign(value=found["value"].where(found["value"] != 5)))[1])


def _exponential(rate: float) -> pd.DataFrame:
    return pd.DataFrame(
        {"net": "x", "seed": 0, "depth": range(1, 9), "value": [math.exp(rate * d) for d in range(1, 9)]}
    )


def test_slope_of_an_exponential_is_its_rate() -> None:
    assert slopes(_exponential(-1.5), ["net"])["value"].item() == pytest.approx(-1.5, rel=1e-12)


def test_slope_is_the_least_squares_one() -> None:
    frame = _exponential(0.3)
    frame["value"] *= np.random.default_rng(0).uniform(0.5, 2, size=8)
    wanted = stats.linregress(frame["depth"][2:6], np.log(frame["value"][2:6])).slope
    assert slopes(frame, ["net"], first=3, last=6)["value"].item() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_unusable_layer_leaves_the_slope_undefined(bad: float) -> None:
    frame = _exponential(0.3)
    frame.loc[4, "value"] = bad
    assert math.isnan(slopes(frame, ["net"])["value"].item())


def test_slope_over_several_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="select one step"):
        slopes(pd.concat([_exponential(1), _exponential(2)]), ["net"])
