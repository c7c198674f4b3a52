"""Tables for readers (Markdown) and for programs (CSV), from cells that are numbers, words or intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from depthlab.figures.intervals import Interval, intervals

Cells = Mapping[tuple[Any, ...], object]
"""Cells of a column, by condition."""

Column = pd.DataFrame | Cells | Callable[[pd.DataFrame], object] | str
"""What makes the cells of a column, see `table`."""

MISSING = "–"
MOST_DECIMALS = 8


def table(rows: pd.DataFrame, by: Mapping[str, str], columns: Mapping[str, Column]) -> pd.DataFrame:
    """A table with one row per condition of `rows`, in sorted order: what tells it apart, then a cell per column.

    by: columns that tell the conditions apart, and how the table heads them. columns, by their heads: readings with
    one value per condition and seed, of which the table has the `Interval`; or cells by condition, as `intervals` gives
    them; or a function of the rows of a condition; or the name of a column of theirs that is the same in all of them.
    Conditions that readings or cells lack have None. Raises ValueError as `intervals` does, and for a named column that
    varies within a condition.
    """
    fillers = {head: _filler(given, by) for head, given in columns.items()}
    lines = []
    for condition, part in rows.groupby(list(by), dropna=False, sort=True, observed=True):
        cells = {head: fill(condition, part) for head, fill in fillers.items()}
        lines.append(dict(zip(by.values(), condition, strict=True)) | cells)
    found = pd.DataFrame(lines)
    for head in found.columns[found.dtypes == "str"]:  # a type that has nan for None
        found[head] = _objects([line[head] for line in lines])
    return found


def pivot(frame: pd.DataFrame, rows: Sequence[str], column: str, *, log: bool = False) -> pd.DataFrame:
    """A table with one row per combination of `rows`, one column per value of `column`, `Interval`s as cells.

    Intervals are over seeds, geometric with `log`; conditions without readings have None.
    Raises ValueError as `intervals` does.
    """
    found = intervals(frame, [*rows, column], log=log)
    table: dict[tuple[Any, ...], dict[str, Any]] = {}
    for (*row, head), cell in found.items():
        table.setdefault(tuple(row), dict(zip(rows, row, strict=True)))[str(head)] = cell
    heads = [str(head) for head in sorted({group[-1] for group in found})]
    return pd.DataFrame(
        {name: _objects([row.get(name) for row in table.values()]) for name in [*rows, *heads]},
    ).infer_objects()


def markdown(table: pd.DataFrame) -> str:
    """The table in Markdown: intervals as mean ± half-width, numbers with four digits and to the right."""
    return pipe_table(
        [str(name) for name in table.columns],
        [[cell_text(value) for value in row] for row in table.astype(object).itertuples(index=False, name=None)],
        ["left" if _holds_words(table[name]) else "right" for name in table.columns],
    )


def pipe_table(heads: Sequence[str], rows: Sequence[Sequence[str]], alignment: Sequence[str]) -> str:
    """Markdown of ready-made cells; bars and line breaks in them do not break the table."""
    return (
        tabulate(
            [[_escape(cell) for cell in row] for row in rows],
            headers=[_escape(head) for head in heads],
            tablefmt="pipe",
            colalign=tuple(alignment) if rows else None,
            disable_numparse=True,
            preserve_whitespace=True,
        )
        + "\n"
    )


def csv(table: pd.DataFrame) -> str:
    """The table in CSV, with floats that read back exactly.

    An interval fills the columns NAME, NAME.low, NAME.high, NAME.seeds and NAME.usable.
    """
    columns: dict[str, Any] = {}
    for name in table.columns:
        cells = list(table[name])
        columns[name] = [cell.mean if isinstance(cell, Interval) else cell for cell in cells]
        if any(isinstance(cell, Interval) for cell in cells):
            for head, part in (("low", "low"), ("high", "high"), ("seeds", "n"), ("usable", "usable")):
                values = [getattr(cell, part, None) for cell in cells]
                columns[f"{name}.{head}"] = _objects(values)
    return pd.DataFrame(columns).to_csv(index=False, na_rep="nan", lineterminator="\n")


def cell_text(value: object) -> str:
    """A cell as a reader sees it: 8.27 ± 0.31, (1.23 ± 0.04)e-12, 3.1e-12 [1.0e-12, 9.9e-12], 0.0123, none."""
    if isinstance(value, Interval):
        return _interval_text(value)
    if value is None or value is pd.NA:
        return MISSING
    if isinstance(value, (float, np.floating)):
        return number(float(value), 4)
    return str(value)


def number(value: float, digits: int = 3) -> str:
    """`value` rounded to so many significant digits; with an exponent below 0.001 and from 100,000."""
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    if not 1e-3 <= abs(value) < 1e5:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - math.floor(math.log10(abs(value))))}f}"


def _filler(given: Column, by: Mapping[str, str]) -> Callable[[tuple[Any, ...], pd.DataFrame], object]:
    """What makes a cell of a column from a condition and its rows."""
    if isinstance(given, str):
        return lambda _, part: _only(part, given)
    if callable(given):
        return lambda _, part: given(part)
    found = intervals(given, list(by)) if isinstance(given, pd.DataFrame) else given
    cells = {_key(condition): cell for condition, cell in found.items()}
    return lambda condition, _: cells.get(_key(condition))


def _key(condition: tuple[Any, ...]) -> tuple[Any, ...]:
    """Settings that are null equal one another, which nan does not."""
    return tuple(None if pd.isna(value) else value for value in condition)


def _only(rows: pd.DataFrame, column: str) -> Any:
    if rows[column].nunique(dropna=False) != 1:
        raise ValueError(f"{column} varies within a condition: {', '.join(map(str, rows[column].unique()))}")
    return rows[column].iloc[0]


def _interval_text(cell: Interval) -> str:
    if cell.usable < cell.n:
        return f"undefined ({cell.usable} of {cell.n} seeds usable)"
    if cell.n == 1:
        return f"{number(cell.mean)} (1 seed)"
    half_width = cell.high / 2 - cell.low / 2
    if cell.log or not math.isfinite(half_width):
        return f"{number(cell.mean)} [{number(cell.low)}, {number(cell.high)}]"
    if half_width == 0:
        return f"{number(cell.mean, 4)} ± 0"
    return _plus_minus(cell.mean, half_width)


def _plus_minus(mean: float, half_width: float) -> str:
    """Two digits of the half-width and as many decimals of the mean."""
    size = max(abs(mean), half_width)
    power = 0 if 1e-3 <= size < 1e5 else math.floor(math.log10(size))
    decimals = max(0, 1 - math.floor(math.log10(half_width)) + power)
    if decimals > MOST_DECIMALS:
        return f"{number(mean, MOST_DECIMALS)} ± {number(half_width, 2)}"
    # Decimal, since 10.0**-310 has lost most of its digits.
    text = " ± ".join(f"{Decimal(value).scaleb(-power):.{decimals}f}" for value in (mean, half_width))
    return f"({text})e{power:+03d}" if power else text


def _holds_words(column: pd.Series[Any]) -> bool:
    return any(isinstance(value, str) for value in column)


def _escape(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _objects(values: list[Any]) -> pd.Series[Any]:
    """A column that keeps None apart from nan, and whole numbers whole beside it."""
    return pd.Series(values, dtype=object)
