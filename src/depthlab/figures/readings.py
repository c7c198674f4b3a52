"""The long table of readings: its columns and types, choosing rows of it, and its exact text form.

One row per run, step, layer and probe: `key` and `status` of the run, the settings that its experiment varies under
their dotted names (`model.depth`, ..., always `seed`), `step` (updates done), `layer` and `depth` (weight layer counted
from 1 at the input; "network" and 0 for the whole net; "test.17.3" and 0 for its output for class 3 on test image 17,
"plane.7.31" and 0 for its decision in column 7 and row 31 of a lattice of inputs), `probe`, `value`.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import io
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import pandas_dtype

from depthlab.config import RunConfig
from depthlab.figures.intervals import require_columns

READING = {"key": str, "status": str, "step": int, "layer": str, "depth": int, "probe": str, "value": float}
"""The columns that are not settings of the run."""

NETWORK = "network"
"""The `layer` of readings of the whole net."""


def factors(readings: pd.DataFrame) -> list[str]:
    """The columns that are settings of the run, the seed among them."""
    return [name for name in readings.columns if name not in READING]


def select(readings: pd.DataFrame, probe: str, *, step: int | str | None = None) -> pd.DataFrame:
    """The rows of one probe: of all steps, of one step, or of the "first" or "last" at which each run read it.

    A run that diverged is there with nan at every later step that other runs read, its end among them: averages and
    claims then are of all seeds, not of those that survived. Raises ValueError when no row is left, saying what there
    is.
    """
    rows = readings[readings["probe"] == probe]
    if rows.empty:
        raise ValueError(f"no readings of probe {probe}; there are {_listed(readings['probe'])}")
    rows = pd.concat([rows, *_after_divergence(readings, rows)])
    if step is None:
        return rows
    if isinstance(step, str):
        of_run = rows.groupby("key")["step"]
        return rows[rows["step"] == of_run.transform("min" if step == "first" else "max")]
    chosen = rows[rows["step"] == step]
    if chosen.empty:
        raise ValueError(f"no readings of probe {probe} at step {step}; there are steps {_listed(rows['step'])}")
    return chosen


def outcomes(readings: pd.DataFrame, probe: str) -> pd.DataFrame:
    """One row per run: a reading of the whole network at the end of training, nan for runs that diverged.

    Raises ValueError for a probe that is read per layer.
    """
    rows = select(readings, probe, step="last")
    if (rows["layer"] != NETWORK).any():
        raise ValueError(f"{probe} is read per layer and is no outcome of a run; select a layer, or take slopes")
    return rows


def where(readings: pd.DataFrame, **settings: object) -> pd.DataFrame:
    """The rows with these values of these columns, for whose dots stand two underscores: `train__lr=0.1`."""
    rows = readings
    for name, value in settings.items():
        rows = rows[rows[name.replace("__", ".")] == value]
    return rows


def over_layers(readings: pd.DataFrame) -> pd.DataFrame:
    """One row per run, step and probe: the mean of a reading over the layers that have it; nan if one of them is."""
    keys = [name for name in readings.columns if name not in ("layer", "depth", "value")]
    means = readings.groupby(keys, dropna=False, sort=False, observed=True)["value"]
    return means.agg(lambda each: each.mean(skipna=False)).reset_index()


def updates_until(readings: pd.DataFrame, probe: str, below: float) -> pd.DataFrame:
    """One row per run: the first step at which a reading of the whole network is below a level, as `value`.

    A run in which it never is has the last step that any run read: a lower bound. One that diverged before it was below
    has nan.
    """
    rows = select(readings, probe).sort_values("step")
    end = rows["step"].max()
    met = rows[rows["value"] < below].drop_duplicates("key")
    missed = rows[~rows["key"].isin(met["key"])].drop_duplicates("key", keep="last")
    never = missed["value"].where(missed["value"].isna(), end)
    return pd.concat([met.assign(value=met["step"].astype(float)), missed.assign(value=never)]).sort_index()


def tuned(readings: pd.DataFrame, setting: str, by: Sequence[str]) -> pd.DataFrame:
    """The rows of the runs whose `setting`, such as "train.lr", validates best in their condition, told apart by `by`.

    Best is the lowest mean over seeds of the validation error at the end; a value at which a seed diverged is best
    only where all values did. The test set has no part in the choice.
    """
    errors = outcomes(readings, "validation_error")
    means = errors.groupby([*by, setting], dropna=False)["value"].agg(lambda each: each.mean(skipna=False))
    best = means.reset_index().sort_values("value", kind="stable").drop_duplicates(list(by))
    return readings.merge(best[[*by, setting]], on=[*by, setting])


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
    """The rows of these probes. Raises ValueError when one of them was never read, or by no means in some run.

    A run that diverged before it read any of them would be lost from the averages with its last row.
    """
    wanted = list(probes)
    if absent := [probe for probe in wanted if probe not in set(readings["probe"])]:
        raise ValueError(f"no readings of {', '.join(absent)}; there are {_listed(readings['probe'])}")
    kept = readings[readings["probe"].isin(wanted)]
    if lost := sorted(set(readings["key"]) - set(kept["key"])):
        raise ValueError(
            f"the runs {', '.join(lost[:3])} hold no readings of {', '.join(wanted)} and would go uncounted; add a "
            f"probe that is read from the start, such as train_loss, to the experiment's PROBES"
        )
    return kept


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
    names = pd.read_csv(io.BytesIO(content), nrows=0).columns
    kinds = {name: _kinds().get(name, str) for name in names}
    # Python's float is exact; how exact pandas' own parsing is depends on its version.
    parsers = {name: json.loads if _is_tuple(kind) else float for name, kind in kinds.items() if _is_parsed(kind)}
    table = pd.read_csv(
        io.BytesIO(content),
        dtype={name: _dtype(kind) for name, kind in kinds.items() if name not in parsers},
        converters=parsers,
        keep_default_na=False,
        na_values={name: ["nan"] for name, kind in kinds.items() if _dtype(kind) == "Int64"},
    )
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


def _after_divergence(readings: pd.DataFrame, rows: pd.DataFrame) -> Iterable[pd.DataFrame]:
    """Rows of nan for what runs that diverged would have read of the probe of `rows` had they gone on."""
    steps = rows["step"].drop_duplicates()
    diverged = readings[readings["status"] == "diverged"].drop_duplicates("key")
    for key, run in diverged.groupby("key"):
        read_before = rows[rows["key"] == key]
        template = read_before.drop_duplicates("layer")
        if template.empty and (rows["layer"] == NETWORK).all():
            template = run.assign(layer=NETWORK, depth=0, probe=rows["probe"].iloc[0])
        missed = steps[steps > read_before["step"].max()] if len(read_before) else steps
        yield from (template.assign(step=step, value=np.nan) for step in missed)


def _is_tuple(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple


def _is_parsed(kind: Any) -> bool:
    return _is_tuple(kind) or _dtype(kind) == "float64"


def _typed(column: pd.Series[Any], kind: Any) -> pd.Series[Any]:
    if _is_tuple(kind):
        return column.map(tuple)
    dtype = _dtype(kind)
    if column.dtype == pandas_dtype(dtype):
        return column
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
