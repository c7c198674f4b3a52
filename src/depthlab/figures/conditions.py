"""Conditions of an experiment: naming them, choosing some, and the errors to which their runs were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from depthlab.figures.intervals import require_columns
from depthlab.figures.readings import outcomes


def named(readings: pd.DataFrame, columns: Sequence[str], names: Mapping[tuple[Any, ...], str]) -> pd.DataFrame:
    """The rows of the conditions that have a name, with it as column `net`.

    names: by the values of `columns`. Rows of other conditions are left out. Raises ValueError when no row has a name.
    """
    require_columns(readings, columns)
    # as objects: words of Arrow become Python's one at a time otherwise
    conditions = list(zip(*(readings[name].to_numpy(dtype=object).tolist() for name in columns), strict=True))
    found = [condition in names for condition in conditions]
    if not any(found):
        given = f"{conditions[0]}" if conditions else "no readings"
        raise ValueError(f"no condition of {', '.join(columns)} has a name: given {given}, names for {list(names)}")
    return readings[found].assign(net=[names[condition] for condition in conditions if condition in names])


def deepest(readings: pd.DataFrame) -> pd.DataFrame:
    """The rows of the deepest nets among them."""
    depth: int = readings["model.depth"].max()
    return readings[readings["model.depth"] == depth]


def hidden(readings: pd.DataFrame) -> pd.DataFrame:
    """The rows of the layers before the head, which is the last."""
    return readings[readings["depth"] < readings["model.depth"]]


def errors(readings: pd.DataFrame, probe: str = "test_error", *, diverged: float | None = None) -> pd.DataFrame:
    """One row per run: its error at the end of training, in percent; see `outcomes` and `percent`."""
    return percent(outcomes(readings, probe), diverged=diverged)


def percent(readings: pd.DataFrame, *, diverged: float | None = None) -> pd.DataFrame:
    """Shares in [0, 1] as percentages; `diverged` stands for those of runs that diverged, which are nan otherwise."""
    values = 100 * readings["value"]
    return readings.assign(value=values if diverged is None else values.fillna(diverged))
