"""The ledger: the state of every run, derived from its directory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from depthlab.config import RunConfig, flat, from_mapping
from depthlab.runs.store import Run, Status, StoreError, runs_root


@dataclass(frozen=True)
class Entry:
    """One line: key, state, a reason or result, and the settings that differ from their defaults."""

    key: str
    status: str
    about: str
    settings: str


def ledger(configs: Iterable[RunConfig] | None = None) -> list[Entry]:
    """An entry for each of the given runs, missing ones included; without them, for every directory there is."""
    if configs is not None:
        unique = {config.key(): config for config in configs}
        return [_entry(Run.of(config), config) for config in unique.values()]
    root = runs_root()
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [_entry(Run(folder), _config(folder)) for folder in folders]


def _entry(run: Run, config: RunConfig | None) -> Entry:
    try:
        status, record = run.status(), run.record()
    except StoreError as error:
        return Entry(run.key, "damaged", str(error), "")
    return Entry(run.key, status.value, _about(status, record), _settings(config) if config else "")


def _about(status: Status, record: dict[str, Any]) -> str:
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


def _config(folder: Path) -> RunConfig | None:
    try:
        return from_mapping(yaml.safe_load((folder / "config.yaml").read_text()))
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
        return None


def _settings(config: RunConfig) -> str:
    defaults = flat(RunConfig())
    return " ".join(f"{name}={value}" for name, value in flat(config).items() if value != defaults[name])
