"""What watching costs, measured while it happens, and how often each group of probes is read to stay within a share."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict, deque
from collections.abc import Iterable

from depthlab.probes import PROBES

SETTLE_AFTER = (10, 30, 100)
"""Steps after which intervals are set anew; from the last on, each time as many steps have passed."""

LEAST_PART = 0.1
"""Of what may be spent, what readings have, though the steps without any cost more than the rest: nets of a moment."""

GROUPS = {
    "gradient": "gradients",
    "weight": "weights",
    "update": "weights",
    "output": "outputs",
    "activation": "outputs",
    "output_gradient": "outputs",
}
"""Which probes are read together, by site."""


def least_intervals(probes: Iterable[str], every: int) -> dict[str, int]:
    """For each group of probes that are read together, steps from one reading to the next: `every` for outputs."""
    groups = {GROUPS[PROBES[name].site] for name in probes}
    return {group: every if group == "outputs" else 1 for group in sorted(groups)}


class Budget:
    """Keeps the cost of groups of probes within a share of the time of training.

    share: of the time that the steps take by themselves; None: intervals stay as they are given.
    intervals: for each group, the number of steps from one reading to the next, at the least.

    Costs are those of the process that runs the steps: work that a GPU does meanwhile is not in them.
    """

    def __init__(self, share: float | None, intervals: dict[str, int]) -> None:
        if share is not None and not 0 < share < 1:
            raise ValueError(f"budget={share} must be a share of the step between 0 and 1, such as 0.03, or None")
        self._share = share
        self._least = dict(intervals)
        self.intervals = dict(intervals)
        self._costs: dict[str, deque[float]] = {group: deque(maxlen=SETTLE_AFTER[-1]) for group in intervals}
        self._steps: deque[float] = deque(maxlen=SETTLE_AFTER[-1])
        self._asides: deque[float] = deque(maxlen=SETTLE_AFTER[-1])
        self._pending: defaultdict[str, float] = defaultdict(float)
        self._looked: deque[float] = deque(maxlen=SETTLE_AFTER[-1])
        self._looks = 0
        self._count = 0
        self._spent = 0.0
        self._taken = 0.0

    def __str__(self) -> str:
        """How often each group is read."""
        names = {"weights": "weights and updates"}
        return ", ".join(
            f"{names.get(group, group)} every {f'{interval} steps' if interval > 1 else 'step'}"
            for group, interval in sorted(self.intervals.items())
        )

    def is_due(self, group: str, step: int) -> bool:
        """Whether a group is to be read at a step."""
        return group in self.intervals and step % self.intervals[group] == 0

    def spend(self, group: str, seconds: float) -> None:
        """Notes what a group has cost at the present step."""
        self._pending[group] += seconds

    def step(self, seconds: float | None, *, looked: bool = False) -> None:
        """Ends a step that took so long, costs included; None for one whose time is not known, such as the first.

        looked: whether forward passes were looked at, which makes them slower by more than could be timed.
        """
        spent = sum(self._pending.values())
        for group in self._pending.keys() & self._costs.keys():
            if self.is_due(group, self._count):
                self._costs[group].append(self._pending.pop(group))
        self._asides.append(sum(self._pending.values()))  # of asking the clock, and of noting the loss, at every step
        self._pending.clear()
        self._count += 1
        if seconds is None:
            return
        self._spent += spent
        self._taken += seconds
        if looked:
            self._looked.append(seconds - spent)
            self._looks += 1
        else:
            self._steps.append(seconds - spent)
        if self._share is not None and (self._count in SETTLE_AFTER or self._count % SETTLE_AFTER[-1] == 0):
            self._settle(self._share)

    @property
    def cost(self) -> float:
        """Time spent on watching over the time that the steps took without it; nan before two steps have passed."""
        spent = self._spent + self._looks * self._untimed
        without = self._taken - spent
        return spent / without if without > 0 else math.nan

    @property
    def _untimed(self) -> float:
        """Seconds by which a step that was looked at takes longer than others, its timed costs left out."""
        if not self._looked or not self._steps:
            return 0.0
        return max(0.0, statistics.median(self._looked) - statistics.median(self._steps))

    def _settle(self, share: float) -> None:
        """Gives each group the interval that keeps it within its part; what cheap groups leave goes to the others."""
        room = share * statistics.median(self._steps or self._looked)
        left = max(room - statistics.median(self._asides), LEAST_PART * room)
        needs = {group: statistics.median(costs) for group, costs in self._costs.items() if costs}
        if "outputs" in needs:
            needs["outputs"] += self._untimed
        by_need = sorted(needs, key=lambda group: needs[group] / self._least[group])
        for index, group in enumerate(by_need):
            part = left / (len(by_need) - index)
            interval = max(self._least[group], math.ceil(needs[group] / part)) if part > 0 else self._least[group]
            self.intervals[group] = interval
            left -= needs[group] / interval
