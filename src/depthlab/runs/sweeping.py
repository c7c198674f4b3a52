"""A sweep: trains what is missing of a list of runs, several at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from depthlab.config import RunConfig, SweepConfig
from depthlab.runs.engines import engine_of
from depthlab.runs.packing import pack
from depthlab.runs.progress import tell, tell_of_compiling
from depthlab.runs.run import is_finished
from depthlab.runs.sources import sources
from depthlab.runs.store import Run, StoreError


@dataclass(frozen=True)
class Outcome:
    """What a sweep did: runs it trained, runs that others had trained or did meanwhile, key and error of failures."""

    trained: int
    found: int
    failures: Sequence[tuple[str, str]]


def sweep(configs: Iterable[RunConfig], *, device: torch.device | str, launch: SweepConfig) -> Outcome:
    """Trains what is not finished, with the engine of `launch`. A run that fails does not stop the others.

    Runs from whose weights others start come first, where their weights are not there, and are counted as well.

    Processes of one thread each, as many as there are cores, or fewer where memory is short (see `packing.pack`).

    device: a name such as auto is resolved where a run is trained, which need not be this machine.
    Raises ConfigError if the engine's package is not installed, EngineError if it cannot be reached, DiskFullError.
    """
    unique = list({config.key(): config for config in configs}.values())
    lacking = missing_sources(config for config in unique if not is_trained(config, launch.keep_weights))
    if not lacking:
        return _train_missing(unique, device, launch)
    tell(f"{len(lacking)} runs come first, from whose weights others start")
    first = _train_missing(lacking, device, dataclasses.replace(launch, keep_weights=True))
    lost = {key for key, _ in first.failures}
    orphans = [config for config in unique if _source_key(config) in lost]
    rest = _train_missing([config for config in unique if config not in orphans], device, launch)
    failures = [(config.key(), f"not begun, since its source {_source_key(config)} failed") for config in orphans]
    return Outcome(first.trained + rest.trained, first.found + rest.found, [*first.failures, *rest.failures, *failures])


def _train_missing(configs: Sequence[RunConfig], device: torch.device | str, launch: SweepConfig) -> Outcome:
    """The same for runs whose sources are there."""
    missing = [config for config in configs if not is_trained(config, launch.keep_weights)]
    missing.sort(key=_cost, reverse=True)  # the longest first, so that none is left over at the end
    found = len(configs) - len(missing)
    if not missing:
        return Outcome(0, found, [])
    make = engine_of(launch.engine)
    packing = pack(missing, launch, str(device))
    tell(f"{len(missing)} of {len(configs)} runs to train, {packing}; {found} are finished")
    tell_of_compiling(missing)
    engine = make(dataclasses.replace(launch, threads=packing.threads), packing.workers, str(device))
    engine.train_all(missing)
    trained = len(missing) - len(engine.failures) - engine.elsewhere
    return Outcome(trained, found + engine.elsewhere, engine.failures)


def missing_sources(configs: Iterable[RunConfig]) -> list[RunConfig]:
    """The runs from whose weights these start, each once, where their weights are not there."""
    return [source for source in sources(configs) if not is_trained(source, keep_weights=True)]


def _source_key(config: RunConfig) -> str | None:
    source = config.source()
    return config.transfer.parts.get("run") if source is None else source.key()


def is_trained(config: RunConfig, keep_weights: bool = False) -> bool:
    """A run whose directory is damaged is not: asked for, it fails with the reason, and the others go on."""
    try:
        return is_finished(Run.of(config), keep_weights)
    except StoreError:
        return False


def _cost(config: RunConfig) -> float:
    return config.model.depth * config.train.steps
