"""What finished runs hold: their readings in one table, and what they cost. Nothing here needs torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from depthlab.config import RunConfig, to_mapping
from depthlab.runs.sources import sources
from depthlab.runs.store import Run, StoreError, runs_root

AT_A_TIME = 100
"""Runs whose readings, of all probes, are in memory together."""


def load_readings(configs: Iterable[RunConfig], probes: Sequence[str] | None = None) -> pd.DataFrame:
    """One long table of all runs: key, status, settings under their dotted names, step, layer, depth, probe, value.

    Settings are those of the model, data.name, train.steps, seed, and all others that differ between the runs.
    probes: which readings to keep (None: all). Raises StoreError if a run is not finished.
    """
    unique = {config.key(): config for config in configs}
    runs = {key: Run.of(config) for key, config in unique.items()}
    states = {key: run.status() for key, run in runs.items()}
    unfinished = [key for key, state in states.items() if not state.finished]
    if unfinished:
        raise StoreError(f"{len(unfinished)} of {len(unique)} runs are not finished in {runs_root()}")
    settings = pd.DataFrame([_settings(config) for config in unique.values()], dtype=object)
    told = [name for name in map(str, settings) if _is_kept(name) or settings[name].nunique(dropna=False) > 1]
    wanted = None if probes is None else pa.array(probes, pa.large_string())
    parts = [_kept(some, wanted) for some in _read(list(runs.values()))]
    of_run = np.repeat(np.arange(len(runs)), np.concatenate([counts for _, counts in parts]))
    about = settings[told].assign(key=list(runs), status=[state.value for state in states.values()])
    # of all runs at once: a column is added to a table in a tenth of a millisecond, and there are a dozen for each run
    columns = about.infer_objects().iloc[of_run].reset_index(drop=True)
    readings: pd.DataFrame = pa.concat_tables([kept for kept, _ in parts], promote_options="permissive").to_pandas()
    return pd.concat([readings, columns], axis=1)


def cost(configs: Iterable[RunConfig]) -> dict[str, Any]:
    """What finished runs cost, with those they start from: number, sum of times, and where they were trained."""
    unique = {config.key(): config for config in configs}
    unique |= {source.key(): source for source in sources(unique.values())}
    records = [Run.of(config).record() for config in unique.values()]
    return {
        "count": len(records),
        "process_seconds": round(sum(record["wall_seconds"] for record in records), 1),
        "devices": sorted({record["device"] for record in records}),
        "threads": sorted({record["threads"] for record in records}),
        "commits": sorted({str(record["commit"]) for record in records}),
    }


def _settings(config: RunConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        is_section = dataclasses.is_dataclass(value)
        found |= _of_section(name, value) if is_section else {name: value}
    return found


@functools.lru_cache(maxsize=1000)
def _of_section(name: str, section: Any) -> Mapping[str, Any]:
    """With dotted names: runs of a sweep share most sections, and equal ones hold the same."""
    return {
        f"{name}.{each}": tuple(value) if isinstance(value, list) else value
        for each, value in to_mapping(section).items()
    }


def _read(runs: Sequence[Run]) -> Iterator[list[pa.Table]]:
    """Their readings, of some runs at a time: an operation takes as long for one as for all of these."""
    for start in range(0, len(runs), AT_A_TIME):
        yield [run.arrow() for run in runs[start : start + AT_A_TIME]]


def _kept(tables: Sequence[pa.Table], probes: pa.Array | None) -> tuple[pa.Table, npt.NDArray[np.int64]]:
    """The rows of these probes of all tables, and how many there are of each."""
    counts = np.array([len(table) for table in tables])
    joined = pa.concat_tables(tables, promote_options="permissive")
    if probes is None:
        return joined, counts
    is_kept = pc.is_in(joined["probe"].cast(probes.type), value_set=probes)
    counts = np.bincount(np.repeat(np.arange(len(tables)), counts)[is_kept], minlength=len(tables))
    return joined.filter(is_kept), counts


def _is_kept(name: str) -> bool:
    return name.startswith("model.") or name in ("data.name", "train.steps", "seed")
