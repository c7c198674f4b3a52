"""Intervals from costs that are made up here, in seconds of no clock."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from depthlab.instrument.budget import SETTLE_AFTER, Budget


def train(
    budget: Budget, costs: dict[str, float], *, steps: int, step: float = 1.0, start: int = 0, outlier: int = -1
) -> Counter[str]:
    """So many steps of `step` seconds, each group costing its own when it is due; how often each was read."""
    readings: Counter[str] = Counter()
    for number in range(start, start + steps):
        spent = 0.0
        for group, cost in costs.items():
            if budget.is_due(group, number):
                readings[group] += 1
                paid = cost * (1000 if number == outlier else 1)
                budget.spend(group, paid)
                spent += paid
        own = step * (1000 if number == outlier else 1)
        budget.step(None if number == 0 else own + spent)
    return readings


def share_of(budget: Budget, costs: dict[str, float], step: float = 1.0) -> float:
    """The share that the present intervals cost in the long run."""
    return sum(cost / budget.intervals[group] for group, cost in costs.items()) / step


@given(
    share=st.floats(0.005, 0.5),
    costs=st.lists(st.floats(1e-4, 5.0), min_size=1, max_size=4),
    least=st.integers(1, 12),
    step=st.sampled_from([1e-3, 1.0, 60.0]),
)
def test_what_it_costs_in_the_long_run_is_within_the_share(
    share: float, costs: list[float], least: int, step: float
) -> None:
    paid = {str(index): cost * step for index, cost in enumerate(costs)}
    budget = Budget(share, dict.fromkeys(paid, least))
    train(budget, paid, steps=30, step=step)
    assert share_of(budget, paid, step) <= share * (1 + 1e-9)
    assert all(interval >= least for interval in budget.intervals.values())


@given(share=st.floats(0.005, 0.5), costs=st.lists(st.floats(1e-3, 5.0), min_size=1, max_size=3))
def test_no_reading_is_given_up_that_could_be_paid(share: float, costs: list[float]) -> None:
    """One reading more of the most expensive group, at the next smaller interval, would be over the budget."""
    paid = {str(index): cost for index, cost in enumerate(costs)}
    budget = Budget(share, dict.fromkeys(paid, 1))
    train(budget, paid, steps=30)
    dearest = max(paid, key=lambda group: paid[group])
    if budget.intervals[dearest] > 1:
        budget.intervals[dearest] -= 1
        assert share_of(budget, paid) > share * (1 - 1e-9)


def test_cost_that_was_measured_converges_to_the_share() -> None:
    costs = {"gradients": 0.02, "weights": 0.05, "outputs": 0.9}
    budget = Budget(0.03, {"gradients": 1, "weights": 1, "outputs": 10})
    train(budget, costs, steps=20_000)
    assert 0.02 < budget.cost <= 0.031  # a little over: the steps before the intervals are settled
    assert 0.02 < share_of(budget, costs) <= 0.03


def test_cheap_groups_keep_their_least_interval_and_leave_the_rest_to_others() -> None:
    budget = Budget(0.03, {"cheap": 1, "dear": 1})
    train(budget, {"cheap": 0.001, "dear": 0.29}, steps=10)
    assert budget.intervals == {"cheap": 1, "dear": 10}  # 0.29 / (0.03 - 0.001), not 0.29 / 0.015


def test_groups_that_are_alike_share_alike() -> None:
    budget = Budget(0.1, {"a": 1, "b": 1, "c": 1})
    train(budget, {"a": 0.3, "b": 0.3, "c": 0.3}, steps=10)
    assert budget.intervals == {"a": 9, "b": 9, "c": 9}


@pytest.mark.parametrize("order", [("cheap", "dear"), ("dear", "cheap")])
def test_order_of_groups_does_not_matter(order: tuple[str, str]) -> None:
    costs = {"cheap": 0.01, "dear": 0.49}
    budget = Budget(0.03, dict.fromkeys(order, 1))
    train(budget, {group: costs[group] for group in order}, steps=10)
    assert budget.intervals == {"cheap": 1, "dear": 25}


def test_a_group_with_a_large_least_interval_is_cheap() -> None:
    """What counts is what a group needs at its least interval, not what one reading costs."""
    budget = Budget(0.05, {"every": 1, "twentieth": 20})
    train(budget, {"every": 0.11, "twentieth": 0.2}, steps=10)
    assert budget.intervals == {"every": 3, "twentieth": 20}  # 0.11 / (0.05 - 0.2 / 20)


def test_all_within_the_share_stay_as_they_are() -> None:
    budget = Budget(0.03, {"a": 1, "b": 3})
    readings = train(budget, {"a": 0.01, "b": 0.05}, steps=300)
    assert budget.intervals == {"a": 1, "b": 3}
    assert readings == {"a": 300, "b": 100}


def test_without_a_budget_nothing_changes() -> None:
    budget = Budget(None, {"a": 1, "b": 10})
    readings = train(budget, {"a": 100.0, "b": 100.0}, steps=250)
    assert budget.intervals == {"a": 1, "b": 10}
    assert readings == {"a": 250, "b": 25}
    assert budget.cost > 100


def test_intervals_follow_when_costs_change() -> None:
    budget = Budget(0.03, {"a": 1})
    train(budget, {"a": 0.3}, steps=100)
    assert budget.intervals == {"a": 10}
    # only readings count, of which a hundred are remembered
    train(budget, {"a": 0.003}, steps=1000, start=100)
    assert budget.intervals == {"a": 1}


def test_intervals_change_at_the_named_steps_only() -> None:
    budget = Budget(0.03, {"a": 1})
    seen = {}
    for number in range(401):
        train(budget, {"a": 0.02 * (number + 1)}, steps=1, start=number)
        seen[number + 1] = budget.intervals["a"]
    changed = [number for number in range(2, 402) if seen[number] != seen[number - 1]]
    assert changed == [10, 30, 100, 200, 300, 400]
    assert SETTLE_AFTER == (10, 30, 100)


@pytest.mark.parametrize("outlier", [0, 1, 5])
def test_one_step_that_takes_a_thousand_times_as_long_changes_nothing(outlier: int) -> None:
    """The first ones do: allocations, compilation, a data loader that starts."""
    costs = {"a": 0.1, "b": 0.6}
    found = []
    for at in (-1, outlier):
        budget = Budget(0.05, {"a": 1, "b": 1})
        train(budget, costs, steps=10, outlier=at)
        found.append(budget.intervals)
    assert found[0] == found[1]


def test_cost_is_a_share_of_the_time_without_it() -> None:
    budget = Budget(None, {"a": 1})
    assert math.isnan(budget.cost)
    train(budget, {"a": 0.25}, steps=1)
    assert math.isnan(budget.cost)  # how long the first step took is not known
    train(budget, {"a": 0.25}, steps=7, start=1)
    assert budget.cost == pytest.approx(0.25)


def test_a_cost_is_the_sum_of_its_parts() -> None:
    budget = Budget(0.05, {"a": 1})
    for number in range(10):
        for _ in range(4):
            budget.spend("a", 0.1)
        budget.step(None if number == 0 else 1.41)
    assert budget.intervals == {"a": 8}
    assert budget.cost == pytest.approx(0.4 / 1.01)


def test_what_a_group_costs_while_it_is_not_due_is_no_reading_but_is_paid() -> None:
    """Asking the clock is not free either; it says nothing of what a reading costs."""
    budget = Budget(0.1, {"a": 4})
    for number in range(100):
        due = budget.is_due("a", number)
        spent = 0.79 if due else 0.001
        budget.spend("a", spent)
        budget.step(None if number == 0 else 1.0 + spent)
    assert budget.intervals == {"a": 8}
    assert budget.cost > 0.1


@pytest.mark.parametrize(("aside", "interval"), [(0.04, 20), (0.2, 120)])
def test_steps_that_read_nothing_are_paid_first(aside: float, interval: int) -> None:
    """1.2 / (0.1 - 0.04); where nothing would be left, a tenth of the budget is kept for reading."""
    budget = Budget(0.1, {"a": 4})
    for number in range(100):
        spent = aside + 1.2 * budget.is_due("a", number)
        budget.spend("a", 1.2 * budget.is_due("a", number))
        budget.spend("loss", aside)
        budget.step(None if number == 0 else 1.0 + spent)
    assert budget.intervals == {"a": interval}


def look(budget: Budget, *, steps: int) -> None:
    """Steps of a second, those at which outputs are due of 1.4: 0.1 could be timed, 0.3 could not."""
    for number in range(steps):
        looked = budget.is_due("outputs", number)
        if looked:
            budget.spend("outputs", 0.1)
        budget.step(None if number == 0 else 1.4 if looked else 1.0, looked=looked)


def test_passes_that_are_looked_at_cost_more_than_could_be_timed() -> None:
    budget = Budget(None, {"outputs": 4})
    look(budget, steps=101)
    assert budget.cost == pytest.approx(0.4 * 25 / 100)


def test_intervals_are_set_by_what_looking_costs_in_all() -> None:
    budget = Budget(0.11, {"outputs": 2})
    look(budget, steps=10)
    assert budget.intervals == {"outputs": 4}  # 0.4 / 0.11, not 0.1 / 0.11


@given(st.integers(1, 1000), st.integers(0, 5000))
def test_due_every_so_many_steps_from_the_first(interval: int, step: int) -> None:
    budget = Budget(0.03, {"a": interval})
    assert budget.is_due("a", 0)
    assert budget.is_due("a", step) == (step % interval == 0)
    assert not budget.is_due("other", 0)


def test_due_at_step_0_whatever_it_costs() -> None:
    budget = Budget(0.001, {"a": 7})
    train(budget, {"a": 5.0}, steps=100)
    assert budget.intervals["a"] == 5000
    assert budget.is_due("a", 0)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.0, 3, math.nan])
def test_shares_that_are_none(share: float) -> None:
    with pytest.raises(ValueError, match=r"must be a share of the step between 0 and 1, such as 0.03, or None"):
        Budget(share, {"a": 1})


def test_intervals_given_are_not_changed_themselves() -> None:
    given_intervals = {"a": 1}
    budget = Budget(0.01, given_intervals)
    train(budget, {"a": 1.0}, steps=10)
    assert budget.intervals == {"a": 100}
    assert given_intervals == {"a": 1}
