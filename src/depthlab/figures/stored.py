"""The long table of readings as it is stored: its types, its order, and its exact text form."""

from __future__ import annotations

import csv
import dataclasses
import functools
import gzip
import json
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from pandas.api.types import pandas_dtype
from pyarrow import csv as arrow_csv

from depthlab.config import RunConfig
from depthlab.figures.intervals import require_columns
from depthlab.figures.readings import READING, listed

OF_ROW = ("step", "layer", "depth", "probe", "value")
"""Of these, what differs from row to row of a run."""


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
    names = ["key", "step", "depth", "layer", "probe"]
    places = np.stack([typed[name].factorize(sort=True)[0] for name in names])
    order = np.lexsort(places[::-1])
    if (np.diff(places[:, order]) == 0).all(axis=0).any():
        repeated = typed.duplicated(names)
        raise ValueError(f"the same thing is read twice: {typed.loc[repeated, names].iloc[0].to_dict()}")
    is_sorted = (order[1:] > order[:-1]).all()  # as readings are that were stored
    return (typed if is_sorted else typed.take(order)).reset_index(drop=True)


def to_bytes(readings: pd.DataFrame) -> bytes:
    """Gzipped CSV of the conformed readings; equal readings give equal bytes.

    Floats are written with as many digits as tell them from their neighbours, so that subnormals, infinities, nan and
    the sign of zero come back; no time stamp goes in.
    """
    table = conform(readings)
    for name in table.columns:
        if _is_tuple(_kinds()[name]):
            table[name] = table[name].map(json.dumps)
    # what a run's rows have in common, most of the columns, is made text once
    about = [name for name in table.columns if name not in OF_ROW]
    begins = _begins(table[about])
    runs = [line.removesuffix("\n") for line in _lines(table.loc[begins, about])]
    rows = zip((np.cumsum(begins) - 1).tolist(), _lines(table[list(OF_ROW)]), strict=True)
    text = "".join([",".join(table.columns), "\n", *(f"{runs[run]},{row}" for run, row in rows)])
    return gzip.compress(text.encode(), mtime=0)


def read(path: Path) -> pd.DataFrame:
    """What `to_bytes` wrote to `path`, with the same types: "none" stays a word, the seed an integer."""
    content = gzip.decompress(path.read_bytes())
    names = content[: content.index(b"\n")].decode().split(",")
    texts = dict.fromkeys(names, pa.dictionary(pa.int32(), pa.string()))
    table = arrow_csv.read_csv(
        pa.BufferReader(content),
        parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
        convert_options=arrow_csv.ConvertOptions(column_types=texts),
    )
    return conform(pd.DataFrame({name: _parsed(table[name], _kinds().get(name, str)) for name in table.column_names}))


def _begins(columns: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether a row differs from the one above it; 0.0 and -0.0 do."""
    bits = [_bits(columns[name]) for name in columns]
    begins = np.ones(len(columns), dtype=bool)
    begins[1:] = np.diff(np.stack(bits)).any(axis=0)
    return begins


def _bits(column: pd.Series[Any]) -> npt.NDArray[np.int64]:
    """Equal numbers for equal values, and only for them."""
    return column.to_numpy().view(np.int64) if column.dtype == np.float64 else column.factorize()[0].astype(np.int64)


class _Lines(list[str]):
    """What a csv.writer writes, line by line."""

    write = list.append


def _lines(table: pd.DataFrame) -> list[str]:
    """The rows as CSV, each with its end of line."""
    lines = _Lines()
    columns = [table[name].to_numpy(dtype=object, na_value="nan").tolist() for name in table]
    csv.writer(lines, lineterminator="\n").writerows(zip(*columns, strict=True))
    return lines


def _parsed(column: pa.ChunkedArray, kind: Any) -> pd.Series[Any]:
    """A column of text as its type has it: each text that occurs is parsed once, a float by Python, which is exact."""
    parse = json.loads if _is_tuple(kind) else PARSERS.get(_dtype(kind))
    if parse is None:
        words: pd.Series[Any] = column.cast(pa.string()).to_pandas()
        return words
    texts = column.combine_chunks()  # and one list of texts of those of all blocks
    dtype = "object" if _is_tuple(kind) else _dtype(kind)
    values = pd.Series([parse(text) for text in texts.dictionary.to_pylist()], dtype=dtype)
    found: pd.Series[Any] = values.take(texts.indices.to_numpy()).reset_index(drop=True)
    return found


def _truth(text: str) -> bool:
    if text not in ("True", "False"):
        raise ValueError(f"{text!r} must be True or False")
    return text == "True"


PARSERS: Mapping[str, Callable[[str], Any]] = {
    "float64": float,
    "int64": int,
    "Int64": lambda text: None if text == "nan" else int(text),
    "bool": _truth,
}
"""From text to a value, by type of column."""


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
        raise ValueError(f"column {column.name} must hold {dtype} values only; it has {listed(column)}") from error
