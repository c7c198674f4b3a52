"""What is read at which step when the budget changes the intervals, and who pays for getting ready."""

from __future__ import annotations

from typing import Any

import pytest
from loop import assert_equal, mlp, train, values

from depthlab.instrument import watcher as module
from depthlab.instrument.budget import SETTLE_AFTER, Budget


class Scripted(Budget):
    """A budget whose intervals of gradients come from a script: after so many steps, that one."""

    script: dict[int, int]

    def step(self, seconds: float | None, *, looked: bool = False) -> None:
        super().step(seconds, looked=looked)
        self.intervals["gradients"] = self.script.get(self._count, self.intervals["gradients"])


def scripted(monkeypatch: pytest.MonkeyPatch, script: dict[int, int]) -> None:
    monkeypatch.setattr(module, "Budget", type("Scripted", (Scripted,), {"script": script}))


def test_intervals_hold_from_the_step_after_which_they_were_set() -> None:
    """Nothing can be read for so little, so that after the first settling nothing is."""
    table = train(mlp(), budget=1e-9, every=5, steps=SETTLE_AFTER[0] + 3)
    assert sorted({step for step, _ in values(table, "grad_norm")}) == list(range(SETTLE_AFTER[0]))
    assert sorted({step for step, _ in values(table, "update_ratio")}) == list(range(SETTLE_AFTER[0]))
    assert sorted({step for step, _ in values(table, "backward_norm")}) == [0, 5]


def test_a_cosine_is_with_the_gradient_of_the_update_before_whatever_the_intervals_become(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A gradient was kept at step 2 for step 3, which then was left out."""
    probes = ("weight_norm", "grad_norm", "grad_cosine")
    everything = train(mlp(), probes=probes, steps=10)
    scripted(monkeypatch, {3: 100, 7: 1})
    thinned = train(mlp(), probes=probes, steps=10)
    assert sorted({step for step, _ in values(thinned, "grad_norm")}) == [0, 1, 2, 7, 8, 9]
    assert sorted({step for step, _ in values(thinned, "grad_cosine")}) == [1, 2, 8, 9]
    there = set(zip(thinned.step, thinned.probe, strict=True))
    kept = [reading in there for reading in zip(everything.step, everything.probe, strict=True)]
    assert_equal(thinned, everything[kept].reset_index(drop=True))


def test_cosines_are_there_at_every_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = values(train(mlp(), probes=("weight_norm", "grad_cosine"), steps=8), "grad_cosine")
    scripted(monkeypatch, {1: 3})
    thinned = values(train(mlp(), probes=("weight_norm", "grad_cosine"), steps=8), "grad_cosine")
    assert thinned == {key: value for key, value in everything.items() if key[0] in (3, 6)}
    assert len(thinned) == 6


def test_getting_ready_is_paid_by_the_step_that_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """And by its outputs, for which it is done; it is part of how long that step takes."""
    lengths: list[float | None] = []
    looks: list[bool] = []
    spent: list[tuple[str, float]] = []
    steps: list[list[tuple[str, float]]] = []

    class Noting(Budget):
        def spend(self, group: str, seconds: float) -> None:
            spent.append((group, seconds))
            super().spend(group, seconds)

        def step(self, seconds: float | None, *, looked: bool = False) -> None:
            lengths.append(seconds)
            looks.append(looked)
            steps.append(spent.copy())
            spent.clear()
            super().step(seconds, looked=looked)

    class Clock:
        now = 0.0

        def perf_counter(self) -> float:
            return self.now

    def slowly(signals: Any) -> None:
        clock.now += 1.0
        opened(signals)

    clock, opened = Clock(), module.Signals.open
    monkeypatch.setattr(module, "Budget", Noting)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module.Signals, "open", slowly)
    train(mlp(), every=3, steps=5)
    dear = [any(group == "outputs" and seconds >= 1 for group, seconds in step) for step in steps]
    assert dear == [False, False, False, True, False]  # the first is prepared before there are steps to pay for it
    assert lengths == [None, 0, 0, 1, 0]
    assert looks == [True, False, False, True, False]
