"""A sweep: trains what is missing of a list of runs, several at once, and gathers their readings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from depthlab.config import RunConfig, SweepConfig, flat
from depthlab.runs.engines import count_of, engine_of
from depthlab.runs.progress import tell
from depthlab.runs.run import is_finished, source_of
from depthlab.runs.store import Run, StoreError, runs_root


@dataclass(frozen=True)
class Outcome:
    """What a sweep did: runs it trained, runs that others had trained or did meanwhile, key and error of failures."""

    trained: int
    found: int
    failures: Sequence[tuple[str, str]]


def sweep(configs: Iterable[RunConfig], *, device: torch.device | str, launch: SweepConfig) -> Outcome:
    """Trains what is not finished, with the engine of `launch`. A run that fails does not stop the others.

    Runs from whose weights others start come first, where their weights are not there, and are counted as well.

    Processes of one thread each, as many as there are cores: many small runs share a machine better so than one after
    the other with all threads, and a run's bits do not depend on how many run beside it.

    device: a name such as auto is resolved where a run is trained, which need not be this machine.
    Raises ConfigError if the engine's package is not installed, EngineError if it cannot be reached, DiskFullError.
    """
    unique = list({config.key(): config for config in configs}.values())
    sources = _missing_sources(config for config in unique if not _is_finished(config, launch.keep_weights))
    if not sources:
        return _train_missing(unique, device, launch)
    tell(f"{len(sources)} runs come first, from whose weights others start")
    first = _train_missing(sources, device, dataclasses.replace(launch, keep_weights=True))
    lost = {key for key, _ in first.failures}
    orphans = [config for config in unique if _source_key(config) in lost]
    rest = _train_missing([config for config in unique if config not in orphans], device, launch)
    failures = [(config.key(), f"not begun, since its source {_source_key(config)} failed") for config in orphans]
    return Outcome(first.trained + rest.trained, first.found + rest.found, [*first.failures, *rest.failures, *failures])


def _train_missing(configs: Sequence[RunConfig], device: torch.device | str, launch: SweepConfig) -> Outcome:
    """The same for runs whose sources are there."""
    missing = [config for config in configs if not _is_finished(config, launch.keep_weights)]
    missing.sort(key=_cost, reverse=True)  # the longest first, so that none is left over at the end
    found = len(configs) - len(missing)
    if not missing:
        return Outcome(0, found, [])
    make = engine_of(launch.engine)
    count = min(len(missing), count_of(launch, str(device)))
    tell(f"{len(missing)} of {len(configs)} runs to train, {count} at once; {found} are finished")
    engine = make(launch, count, str(device))
    engine.train_all(missing)
    trained = len(missing) - len(engine.failures) - engine.elsewhere
    return Outcome(trained, found + engine.elsewhere, engine.failures)


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
    tables = [_kept(run.readings(), probes) for run in runs.values()]
    of_run = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    about = settings[told].assign(key=list(runs), status=[state.value for state in states.values()])
    # of all runs at once: a column is added to a table in a tenth of a millisecond, and there are a dozen for each run
    columns = about.infer_objects().iloc[of_run].reset_index(drop=True)
    return pd.concat([pd.concat(tables, ignore_index=True), columns], axis=1)


def cost(configs: Iterable[RunConfig]) -> dict[str, Any]:
    """What finished runs cost, with those they start from: number, sum of times, and where they were trained."""
    unique = {config.key(): config for config in configs}
    unique |= {source.key(): source for source in _sources(unique.values())}
    records = [Run.of(config).record() for config in unique.values()]
    return {
        "count": len(records),
        "process_seconds": round(sum(record["wall_seconds"] for record in records), 1),
        "devices": sorted({record["device"] for record in records}),
        "threads": sorted({record["threads"] for record in records}),
        "commits": sorted({str(record["commit"]) for record in records}),
    }


def _sources(configs: Iterable[RunConfig]) -> list[RunConfig]:
    """The runs from whose weights these start, each once."""
    found: dict[str, RunConfig] = {}
    for config in configs:
        with suppress(StoreError):  # a key that is not in the store: the run that names it fails with the reason
            if (source := source_of(config)) is not None:
                found[source.key()] = source
    return list(found.values())


def _missing_sources(configs: Iterable[RunConfig]) -> list[RunConfig]:
    return [source for source in _sources(configs) if not _is_finished(source, keep_weights=True)]


def _source_key(config: RunConfig) -> str | None:
    source = config.source()
    return config.transfer.parts.get("run") if source is None else source.key()


def _is_finished(config: RunConfig, keep_weights: bool = False) -> bool:
    """A run whose directory is damaged is not: asked for, it fails with the reason, and the others go on."""
    try:
        return is_finished(Run.of(config), keep_weights)
    except StoreError:
        return False


def _settings(config: RunConfig) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in flat(config).items()}


def _kept(readings: pd.DataFrame, probes: Sequence[str] | None) -> pd.DataFrame:
    return readings if probes is None else readings[readings["probe"].isin(probes)]


def _is_kept(name: str) -> bool:
    return name.startswith("model.") or name in ("data.name", "train.steps", "seed")


def _cost(config: RunConfig) -> float:
    return config.model.depth * config.train.steps
