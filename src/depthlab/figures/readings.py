"""The long table of readings: its columns and types, choosing rows of it, and its exact text form.

One row per run, step, layer and probe: `key` and `status` of the run, the settings that its experiment varies under
their dotted names (`model.depth`, ..., always `seed`), `step` (updates done), `layer` and `depth` (weight layer counted
from 1 at the input; "network" and 0 for the whole net), `probe`, `value`.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import json
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pandas.api.types import pandas_dtype

from depthlab.config import RunConfig
from depthlab.figures.intervals import require_columns

READING = {"key": str, "status": str, "step": int, "layer": str, "depth": int, "probe": str, "value": float}
"""The columns that are not settings of the run."""


def factors(readings: pd.DataFrame) -> list[str]:
    """The columns that are settings of the run, the seed among them."""
    return [name for name in readings.columns if name not in READING]


def select(readings: pd.DataFrame, probe: str, *, step: int | Literal["first", "last"] | None = None) -> pd.DataFrame:
    """The rows of one probe: of all steps, of one step, or of the first or last step at which each run read it.

    Raises ValueError when no row is left, saying what there is.
    """
    rows = readings[readings["probe"] == probe]
    if rows.empty:
        raise ValueError(f"no readings of probe {probe}; there are {_listed(readings['probe'])}")
    if step is None:
        return rows
    if isinstance(step, str):
        return rows[rows["step"] == rows.groupby("key")["step"].transform("min" if step == "first" else "max")]
    chosen = rows[rows["step"] == step]
    if chosen.empty:
        raise ValueError(f"no readings of probe {probe} at step {step}; there are steps {_listed(rows['step'])}")
    return chosen


def conform(readings: pd.DataFrame) -> pd.DataFrame:
    """The same readings with the columns in order, each of its type, and the rows sorted.

    Types are those of the settings in `RunConfig`: an optional float that is null becomes nan, an optional int <NA>, a
    list a tuple. Raises ValueError on columns that are missing or unknown, on values of another type, and on rows
    that read the same thing twice.
    """
    require_columns(readings, [*READING, "seed"])
    kinds = _kinds()
    if unknown := [name for name in readings.columns if name not in kinds]:
        raise ValueError(f"the columns {', '.join(unknown)} are neither parts of a reading nor settings of a run")
    typed = pd.DataFrame({name: _typed(readings[name], kind) for name, kind in kinds.items() if name in readings})
    order = ["key", "step", "depth", "layer", "probe"]
    if (repeated := typed.duplicated(order)).any():
        raise ValueError(f"the same thing is read twice: {typed.loc[repeated, order].iloc[0].to_dict()}")
    return typed.sort_values(order, ignore_index=True)


def keep(readings: pd.DataFrame, probes: Iterable[str]) -> pd.DataFrame:
    """The rows of these probes. Raises ValueError when one of them was never read."""
    wanted = list(probes)
    if absent := [probe for probe in wanted if probe not in set(readings["probe"])]:
        raise ValueError(f"no readings of {', '.join(absent)}; there are {_listed(readings['probe'])}")
    return readings[readings["probe"].isin(wanted)]


def to_bytes(readings: pd.DataFrame) -> bytes:
    """Gzipped CSV of the conformed readings; equal readings give equal bytes.

    Floats are written with as many digits as tell them from their neighbours, so that subnormals, infinities, nan and
    the sign of zero come back; no time stamp goes in.
    """
    table = conform(readings)
    for name in table.columns:
        if _is_tuple(_kinds()[name]):
            table[name] = table[name].map(json.dumps)
    return gzip.compress(table.to_csv(index=False, na_rep="nan", lineterminator="\n").encode(), mtime=0)


def read(path: Path) -> pd.DataFrame:
    """What `to_bytes` wrote to `path`, with the same types: "none" stays a word, the seed an integer."""
    content = gzip.decompress(path.read_bytes())
    kinds = _kinds()
    names = pd.read_csv(io.BytesIO(content), nrows=0).columns
    table = pd.read_csv(
        io.BytesIO(content),
        dtype={name: _dtype(kinds[name]) for name in names if name in kinds},
        keep_default_na=False,
        na_values={name: ["nan"] for name in names if _dtype(kinds.get(name, str)) in ("float64", "Int64")},
        float_precision="round_trip",
    )
    for name in names:
        if _is_tuple(kinds.get(name, str)):
            table[name] = table[name].map(json.loads)
    return conform(table)


@functools.cache
def _kinds() -> Mapping[str, Any]:
    """Type of every possible column, in the order of the file."""
    run = {name: READING[name] for name in ("key", "status")}
    return {**run, **dict(_settings(RunConfig, "")), **READING}


def _settings(config: type[Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for name, kind in typing.get_type_hints(config).items():
        if dataclasses.is_dataclass(kind):
            yield from _settings(typing.cast("type[Any]", kind), f"{prefix}{name}.")
        else:
            yield prefix + name, kind


def _dtype(kind: Any) -> str:
    if isinstance(kind, types.UnionType):
        return {int: "Int64", float: "float64"}[typing.get_args(kind)[0]]
    return "str" if _is_tuple(kind) else {int: "int64", float: "float64", bool: "bool", str: "str"}[kind]


def _is_tuple(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple


def _typed(column: pd.Series[Any], kind: Any) -> pd.Series[Any]:
    if _is_tuple(kind):
        return column.map(tuple)
    dtype = _dtype(kind)
    try:
        # astype would make words of anything, and True of any word.
        exact: Any = {str: str, bool: (bool, np.bool_)}.get(kind, object)
        if not all(isinstance(value, exact) for value in column):
            raise TypeError(kind)
        # By way of Int64, which refuses to cut 7.5 down to 7.
        return (column.astype("Int64") if dtype == "int64" else column).astype(pandas_dtype(dtype))
    except (TypeError, ValueError) as error:
        raise ValueError(f"column {column.name} must hold {dtype} values only; it has {_listed(column)}") from error


def _listed(column: pd.Series[Any]) -> str:
    values = [str(value) for value in column.drop_duplicates()]
    return ", ".join(values[:12]) + (", ..." if len(values) > 12 else "")
