"""The ledger: the state of every run, derived from its directory."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from depthlab.config import RunConfig, differing, flat
from depthlab.runs.store import Run, Status, StoreError, runs_root

DAMAGED = "damaged"
"""The state of a directory that cannot be read; no run has it for itself."""

STATES = (*(status.value for status in Status), DAMAGED)
CLEANED = (Status.FAILED.value, DAMAGED)
"""What has nothing worth keeping: other states have results, or go on where they stopped."""


@dataclass(frozen=True)
class Entry:
    """One line: key, state, a reason or result, the settings that differ from their defaults, the metrics."""

    key: str
    status: str
    about: str
    settings: Mapping[str, Any]
    metrics: Mapping[str, float | None] = field(default_factory=dict)

    def has(self, name: str, value: str) -> bool:
        """Whether a setting, under its dotted name, has a value, as one would type it."""
        known = self.settings if name in self.settings else _defaults()
        return name in known and _typed(known[name]) == value

    @property
    def described(self) -> str:
        """The settings as one would type them."""
        return " ".join(f"{name}={_typed(value)}" for name, value in self.settings.items())


def ledger(configs: Iterable[RunConfig] | None = None) -> list[Entry]:
    """An entry for each of the given runs, missing ones included; without them, for every directory there is."""
    if configs is not None:
        unique = {config.key(): config for config in configs}
        return [_entry(Run.of(config), differing(config)) for config in unique.values()]
    root = runs_root()
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [_entry(Run(folder)) for folder in folders]


def table(entries: Iterable[Entry]) -> pd.DataFrame:
    """A row for each entry: key, status, about, the settings and the metrics under their names; empty where unknown."""
    rows = [{"key": e.key, "status": e.status, "about": e.about, **e.settings, **e.metrics} for e in entries]
    # an integer that some rows lack stays one
    return pd.DataFrame(rows, columns=None if rows else ["key", "status", "about"]).convert_dtypes()


def config_of(key: str) -> RunConfig | None:
    """The configuration that a run's directory holds; None if it holds none that can be read."""
    return Run(runs_root() / key).config()


def remove(entry: Entry) -> None:
    """Deletes a run's directory, unless a process holds its lock. Raises StoreError if it cannot be deleted."""
    run = Run(runs_root() / entry.key)
    try:
        if run.is_locked():
            raise StoreError(f"{run.folder} is being trained; it was left as it is")
        shutil.rmtree(run.folder)
    except OSError as error:
        raise StoreError(f"cannot delete {run.folder}: {error.strerror or error}") from error


def _entry(run: Run, settings: Mapping[str, Any] | None = None) -> Entry:
    try:
        record = run.record()
        status = run.status(record)
    except StoreError as error:
        return Entry(run.key, DAMAGED, str(error), settings or {})
    if settings is None:
        settings = record["settings"] if "settings" in record else _settings_in(run.folder)
    return Entry(run.key, status.value, _about(status, record), settings, record.get("metrics", {}))


def _about(status: Status, record: Mapping[str, Any]) -> str:
    match status:
        case Status.DONE:
            return f"test error {record['metrics']['test_error']:.2%}"
        case Status.DIVERGED:
            return f"at step {record['diverged_step']}"
        case Status.FAILED:
            return str(record["error"])
        case Status.INTERRUPTED if "steps" in record:
            return f"after {record['steps']} updates, since {record.get('started', '?')}"
        case Status.RUNNING | Status.INTERRUPTED:
            return f"on {record.get('host', '?')}, process {record.get('pid', '?')}, since {record.get('started', '?')}"
        case Status.MISSING:
            return ""


def _settings_in(folder: Path) -> Mapping[str, Any]:
    """Of runs that were begun before run.json held them."""
    config = config_of(folder.name) if folder.parent == runs_root() else None
    return differing(config) if config else {}


@functools.cache
def _defaults() -> Mapping[str, Any]:
    """Made once: there are thousands of runs in a list."""
    return flat(RunConfig())


def _typed(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_typed, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
