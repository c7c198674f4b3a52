"""Runs from whose weights others start."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from depthlab.config import RunConfig
from depthlab.runs.store import Run, StoreError, runs_root


def source_of(config: RunConfig, root: Path | None = None) -> RunConfig | None:
    """The run whose weights a run starts from, if it is one. Raises StoreError for a key that is not in the store."""
    key = config.transfer.parts.get("run")
    if key is None:
        return config.source()
    found = Run((root or runs_root()) / key).config()
    if found is None or found.key() != key:
        raise StoreError(
            f"transfer.source is the run {key}, which {root or runs_root()} does not have; train it first, or give the "
            f"source by its settings, such as [data.name:mnist,train.steps:600], which trains it where it is missing"
        )
    return found


def sources(configs: Iterable[RunConfig]) -> list[RunConfig]:
    """The runs from whose weights these start, each once."""
    found: dict[str, RunConfig] = {}
    for config in configs:
        with suppress(StoreError):  # a key that is not in the store: the run that names it fails with the reason
            if (source := source_of(config)) is not None:
                found[source.key()] = source
    return list(found.values())
