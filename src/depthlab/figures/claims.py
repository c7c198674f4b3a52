"""Claims: sentences with a measured effect per seed, a bound that could be missed, and the verdict that follows."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from depthlab.figures.intervals import Interval, interval, require_columns
from depthlab.figures.readings import factors
from depthlab.figures.tables import number, pipe_table

Verdict = Literal["supported", "not supported", "undecided"]

EXPLANATION = (
    "Each effect is computed from the readings, once per seed. A claim is *supported* when the whole 95 % interval of "
    "the mean over seeds lies within the bound, *not supported* when all of it lies outside, else *undecided*."
)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence that the readings can contradict.

    `effect` says what is measured, with its unit; `values` holds it once per seed. The claim bounds the effect's mean
    over seeds: `at_least`, `at_most`, or both, all in the effect's unit, the bounds themselves included. `log` is for
    ratios and other positive quantities: the mean and its interval are then geometric, and only bounds above 0 bind.
    Raises ValueError for a claim without a bound, which nothing could contradict, or with bounds that exclude all.

    >>> Claim(statement="Skips help.", effect="error, plain - residual, %", values=[1.1, 1.3, 1.2], at_least=0).verdict
    'supported'
    """

    statement: str
    effect: str
    values: Collection[float]
    at_least: float = -math.inf
    at_most: float = math.inf
    log: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(float(value) for value in self.values))
        if not self.values:
            raise ValueError(f"the claim {self.statement!r} has no values; check what the readings were filtered by")
        lowest = 0.0 if self.log else -math.inf
        if self.at_least <= lowest and self.at_most == math.inf:
            raise ValueError(
                f"nothing could contradict the claim {self.statement!r}; give it at_least, at_most or both"
            )
        if not (self.at_least <= self.at_most and self.at_most > lowest and self.at_least < math.inf):
            raise ValueError(
                f"no effect is within the bounds of the claim {self.statement!r}: at_least={self.at_least} must not "
                f"exceed at_most={self.at_most}, and log=True needs at_most above 0"
            )

    @functools.cached_property
    def interval(self) -> Interval:
        """Mean effect over seeds with its 95 % interval."""
        return interval(self.values, log=self.log)

    @property
    def estimate(self) -> float:
        """Mean effect over seeds (geometric with `log`); nan when a seed's effect is unusable."""
        return self.interval.mean

    @property
    def reason(self) -> str:
        """Why there is no verdict whatever the effect may be; empty when there is one."""
        found = self.interval
        if found.usable < found.n:
            unusable = "zero, negative or not finite" if self.log else "not finite"
            return f"{found.n - found.usable} of {found.n} seeds {unusable}"
        return "one seed has no interval" if found.n == 1 else ""

    @property
    def verdict(self) -> Verdict:
        """Supported, not supported or undecided: where the whole interval lies."""
        # An unbounded interval (one seed) and one of nan (an unusable seed) are neither inside nor outside.
        low, high = self.interval.low, self.interval.high
        if self.at_least <= low and high <= self.at_most:
            return "supported"
        return "not supported" if high < self.at_least or low > self.at_most else "undecided"

    @property
    def bound(self) -> str:
        """The bound in words."""
        if math.isinf(self.at_most):
            return f"at least {self.at_least:g}"
        return f"at most {self.at_most:g}" if math.isinf(self.at_least) else f"{self.at_least:g} to {self.at_most:g}"

    def row(self) -> dict[str, Any]:
        """The claim as a row for tables over experiments: numbers as numbers, the reason beside the verdict."""
        found = self.interval
        return {
            "statement": self.statement,
            "effect": self.effect,
            "estimate": found.mean,
            "low": found.low,
            "high": found.high,
            "seeds": found.n,
            "at_least": self.at_least,
            "at_most": self.at_most,
            "verdict": self.verdict,
            "reason": self.reason,
        }


def markdown(title: str, claims: Sequence[Claim]) -> str:
    """The page claims.md of an experiment: title, how to read it, one row per claim."""
    heads = ["claim", "effect", "mean", "95 % interval", "seeds", "bound", "verdict"]
    table = pipe_table(heads, [_cells(claim) for claim in claims], ["left", "left", *["right"] * 3, "left", "left"])
    return f"# {title}\n\n{EXPLANATION}\n\n{table}"


def permuted(readings: pd.DataFrame, columns: str | Sequence[str], seed: int = 0) -> pd.DataFrame:
    """The readings of the same runs under wrong labels: what a claim about `columns` must not survive.

    Among runs that agree in all other settings, the seed among them, the labels are passed round at random so that
    every run, with all its rows, gets the label of another; the grid stays as complete as it was. With two conditions
    this swaps them. Conditions that differ in several settings at once (activation and its init) are given together.
    Raises ValueError when no label could be moved.
    """
    names = [columns] if isinstance(columns, str) else list(columns)
    require_columns(readings, ["key", "seed", *names])
    others = [name for name in factors(readings) if name not in names]
    if "seed" not in others:
        raise ValueError("labels move between runs of one seed; leave the seed out of the permuted columns")
    runs = readings.drop_duplicates("key").sort_values("key", ignore_index=True)
    source, random = np.arange(len(runs)), np.random.default_rng(seed)
    for _, block in runs.groupby(others, dropna=False, sort=True, observed=True):
        cycle = random.permutation(block.index.to_numpy())
        source[cycle] = np.roll(cycle, 1)
    if (source == np.arange(len(runs))).all():
        raise ValueError(
            f"no two runs differ in {', '.join(names)} alone; name all the columns in which the compared conditions "
            f"differ, out of {', '.join(factors(readings))}"
        )
    run_of_row = pd.Index(runs["key"]).get_indexer(readings["key"])
    labels = runs[names].iloc[source[run_of_row]].set_axis(readings.index)
    return readings.assign(**{name: labels[name] for name in names})


def _cells(claim: Claim) -> list[str]:
    found = claim.interval
    verdict = f"{claim.verdict}: {claim.reason}" if claim.reason else claim.verdict
    span = f"[{number(found.low)}, {number(found.high)}]"
    return [claim.statement, claim.effect, number(found.mean), span, str(found.n), claim.bound, verdict]
