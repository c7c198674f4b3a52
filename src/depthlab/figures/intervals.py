"""Means over seeds with their 95 % intervals, and effects paired by seed.

A value that is not finite is never dropped: it leaves the mean of its group undefined and is counted.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and where, at 95 % confidence, the mean of all seeds lies.

    `mean`, `low` and `high` are in the units of the values, and nan when a value is unusable (`usable` < `n`).
    With one seed the interval is unbounded: a single seed says nothing about the spread. `log` tells the geometric
    mean of a positive quantity, whose interval is symmetric on a logarithmic axis, from the arithmetic mean.
    """

    mean: float
    low: float
    high: float
    n: int
    usable: int
    log: bool = False


def interval(values: Iterable[float], *, log: bool = False) -> Interval:
    """Mean and 95 % t-interval of one value per seed; geometric with `log`.

    mean +- t_{0.975, n-1} s / sqrt(n), s the sample standard deviation (Student 1908). With `log` the same is done to
    the logarithms; values that are zero or negative are then as unusable as nan and infinities.
    The t-interval assumes that the (log) values of different seeds are about normal; equal values have width zero.
    Raises ValueError when there are no values.
    """
    given = np.asarray(list(values), dtype=np.float64)
    if not given.size:
        raise ValueError("an interval needs at least one value, given none; check what the readings were filtered by")
    usable = np.isfinite(given) & (given > 0) if log else np.isfinite(given)
    if not usable.all():
        mean = low = high = np.nan
    elif log:
        with np.errstate(over="ignore", under="ignore"):
            mean, low, high = np.exp(_t_interval(np.log(given)))
    else:
        mean, low, high = _scaled_t_interval(given)
    return Interval(float(mean), float(low), float(high), given.size, int(usable.sum()), log)


def intervals(
    frame: pd.DataFrame, by: Sequence[str], *, value: str = "value", over: str = "seed", log: bool = False
) -> dict[tuple[Any, ...], Interval]:
    """The interval over seeds of each group, by the group's values of `by`, in sorted order.

    Raises ValueError when a group holds several values of one seed: layers, steps or conditions that are not in `by`
    would pass for independent seeds and make the interval too narrow.
    """
    require_columns(frame, [*by, over, value])
    if frame.empty:
        raise ValueError("no rows to average; check what the readings were filtered by")
    _require_one_per_seed(frame, by, over)
    groups = frame.groupby(list(by), dropna=False, sort=True, observed=True)[value]
    return {group if isinstance(group, tuple) else (group,): interval(part, log=log) for group, part in groups}


def summarize(
    frame: pd.DataFrame, by: Sequence[str], *, value: str = "value", over: str = "seed", log: bool = False
) -> pd.DataFrame:
    """`intervals` as a table: the columns of `by`, then mean, low, high, n and usable (see `Interval`)."""
    found = intervals(frame, by, value=value, over=over, log=log)
    groups = pd.DataFrame(list(found), columns=list(by)).astype({name: frame[name].dtype for name in by})
    numbers = [(each.mean, each.low, each.high, each.n, each.usable) for each in found.values()]
    return groups.join(pd.DataFrame(numbers, columns=["mean", "low", "high", "n", "usable"]))


def paired(
    frame: pd.DataFrame, column: str, treatment: object, baseline: object, *, value: str = "value", ratio: bool = False
) -> pd.Series[float]:
    """Per seed, the value under `treatment` minus (with `ratio`: over) the value under `baseline`, by seed.

    Seeds share initial weights and the order of the data, so differences within a seed vary less than the values.
    A seed that lacks one of the two comes out as nan. Raises ValueError when a condition is absent altogether or a
    seed has several values in one.
    """
    require_columns(frame, [column, "seed", value])
    rows = frame[frame[column].isin([treatment, baseline])]
    _require_one_per_seed(rows, [column], "seed")
    table = rows.pivot(index="seed", columns=column, values=value)
    for condition in (treatment, baseline):
        if condition not in table.columns:
            present = ", ".join(map(str, frame[column].unique()))
            raise ValueError(f"no rows with {column}={condition}; there are {present}")
    with np.errstate(all="ignore"):
        effect = table[treatment] / table[baseline] if ratio else table[treatment] - table[baseline]
    return effect.rename("effect")


def less_baseline(frame: pd.DataFrame, column: str, baseline: object, *, by: Sequence[str] = ()) -> pd.DataFrame:
    """The rows of all other conditions, each value less that of the same seed, and the same `by`, under `baseline`.

    What `paired` is to two conditions this is to many: rows to draw or to average. A row whose seed lacks the baseline
    has nan. Raises ValueError when the baseline is absent or a seed has several values under it.
    """
    require_columns(frame, [column, *by, "seed", "value"])
    is_baseline = frame[column] == baseline
    if not is_baseline.any():
        raise ValueError(f"no rows with {column}={baseline}; there are {', '.join(map(str, frame[column].unique()))}")
    _require_one_per_seed(frame[is_baseline], by, "seed")
    others = frame[~is_baseline]
    keys = [*by, "seed"]
    reference = frame[is_baseline].set_index(pd.MultiIndex.from_frame(frame.loc[is_baseline, keys]))["value"]
    return others.assign(value=others["value"] - reference.reindex(pd.MultiIndex.from_frame(others[keys])).to_numpy())


def by_seed(frame: pd.DataFrame) -> pd.Series[float]:
    """The value of each seed in the rows of one condition, by seed.

    Raises ValueError when there are none or a seed has several.
    """
    require_columns(frame, ["seed", "value"])
    if frame.empty:
        raise ValueError("no rows to take values of seeds from; check what the readings were filtered by")
    _require_one_per_seed(frame, [], "seed")
    return frame.set_index("seed")["value"]


def largest_gap(frame: pd.DataFrame) -> pd.Series[float]:
    """Per seed, the largest |value - predicted| of all conditions, by seed; nan where one of them is."""
    require_columns(frame, ["seed", "value", "predicted"])
    gaps = (frame["value"] - frame["predicted"]).abs().groupby(frame["seed"])
    return gaps.agg(lambda each: each.max(skipna=False))


def slopes(
    frame: pd.DataFrame, by: Sequence[str], *, first: int | None = None, last: int | None = None
) -> pd.DataFrame:
    """Least-squares d ln(value) / d depth per group and seed, per layer: columns `by`, seed, value.

    Negative: the quantity shrinks from input to output; gradients that vanish towards the input have a positive slope.
    Layers from `first` to `last`, both included, counted from the input; the ends of a net are often left out.
    A value that is zero, negative or not finite makes its slope nan; so do fewer than two layers.
    """
    require_columns(frame, [*by, "seed", "depth", "value"])
    keys = [*by, "seed"]
    within = frame[frame["depth"].between(1 if first is None else first, np.inf if last is None else last)]
    group = within.groupby(keys, dropna=False, sort=True, observed=True).ngroup().to_numpy()
    order = np.argsort(group, kind="stable")
    begins = np.flatnonzero(np.diff(group[order], prepend=-1))
    rows = within[[*keys, "depth", "value"]].iloc[order]
    depth, value = (np.split(rows[name].to_numpy(dtype=np.float64), begins[1:]) for name in ("depth", "value"))
    found = [_log_slope(*each) for each in zip(depth, value, strict=True)] if len(begins) else []
    return rows[keys].iloc[begins].reset_index(drop=True).assign(value=np.array(found, dtype=np.float64))


def require_columns(frame: pd.DataFrame, names: Iterable[str]) -> None:
    """Raises ValueError naming the columns of `names` that `frame` lacks."""
    if missing := [name for name in names if name not in frame.columns]:
        raise ValueError(f"the table lacks the columns {', '.join(missing)}; it has {', '.join(frame.columns)}")


def _require_one_per_seed(frame: pd.DataFrame, by: Sequence[str], over: str) -> None:
    repeated = frame.duplicated([*by, over])
    if repeated.any():
        row = frame.loc[repeated, [*by, over]].iloc[0].to_dict()
        where = ", ".join(f"{name}={value}" for name, value in row.items())
        raise ValueError(
            f"several values for {where}, which would be counted as independent; group by what tells them apart, or "
            f"select one (a layer, a step, a probe, a condition)"
        )


def _scaled_t_interval(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scaled by a power of two, which is exact: squares of 1e-200 would underflow to a width of zero."""
    _, exponent = np.frexp(np.abs(values).max())
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.ldexp(_t_interval(np.ldexp(values, -exponent)), exponent))


def _t_interval(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    mean = values.mean()
    if values.size == 1:
        return np.array([mean, -np.inf, np.inf])
    half_width = _t_quantile(values.size - 1) * values.std(ddof=1) / np.sqrt(values.size)
    return np.array([mean, mean - half_width, mean + half_width])


@functools.cache
def _t_quantile(freedom: int) -> float:
    return float(special.stdtrit(freedom, (1 + LEVEL) / 2))  # as scipy.stats.t.ppf, whose import takes half a second


def _log_slope(depth: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> float:
    if len(values) < 2 or not (np.isfinite(values) & (values > 0)).all():
        return float("nan")
    if len(set(depth.tolist())) < len(depth):  # np.unique takes as long as all the rest, for each of a thousand runs
        raise ValueError("several values for one layer of one run; select one step and one probe before taking slopes")
    centred = depth - depth.mean()
    return float(centred @ np.log(values) / (centred @ centred))
