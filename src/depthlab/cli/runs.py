"""`depthlab runs`: the state of every run, and what can be done about it."""

from __future__ import annotations

import dataclasses
import json
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence

from depthlab import runs
from depthlab.cli import experiments
from depthlab.config import ConfigError, RunConfig, SweepConfig, flat, suggest


def list_runs(options: Namespace) -> int:
    """The ledger, and what can be done with what it lists."""
    entries = _selected(options)
    if options.retry_failed:
        return _retry([entry for entry in entries if entry.status == runs.Status.FAILED])
    if options.clean:
        return _clean([entry for entry in entries if options.status or entry.status in runs.CLEANED])
    if options.format == "csv":
        print(runs.table(entries).to_csv(index=False), end="")
    elif options.format == "json":
        print(json.dumps([dataclasses.asdict(entry) for entry in entries], indent=2))
    else:
        for entry in entries:
            print(f"{entry.key}  {entry.status:<11}  {entry.about:<28}  {entry.described}".rstrip())
        counts = Counter(entry.status for entry in entries)
        print(", ".join(f"{count} {status}" for status, count in counts.items()) or f"no runs in {runs.runs_root()}")
    return 0


def _selected(options: Namespace) -> list[runs.Entry]:
    name, overrides = experiments.take(options.overrides, "experiment")
    if name is None and overrides:
        raise ConfigError(
            f"{overrides[0]}: depthlab runs takes experiment=NAME with scale and other settings, or nothing; "
            f"to select by a setting, give --where {overrides[0]}"
        )
    states = options.status.split(",") if options.status else runs.STATES
    for state in states:
        if state not in runs.STATES:
            raise ConfigError(f"--status {state} must be among {', '.join(runs.STATES)}{suggest(state, runs.STATES)}")
    wanted = [text.partition("=")[::2] for text in options.where]
    for setting, _ in wanted:
        if setting not in (known := tuple(flat(RunConfig()))):
            raise ConfigError(f"--where {setting}: there is no such setting{suggest(setting, known)}")
    entries = runs.ledger([launch.run for launch in experiments.launches(options.overrides, True)[0]] if name else None)
    return [e for e in entries if e.status in states and all(e.has(setting, value) for setting, value in wanted)]


def _retry(entries: Sequence[runs.Entry]) -> int:
    from depthlab.cli.train import told  # noqa: PLC0415 - torch, which the list does without
    from depthlab.training import resolve_device  # noqa: PLC0415

    configs = {entry.key: runs.config_of(entry.key) for entry in entries}
    for key in [key for key, config in configs.items() if config is None]:
        print(f"{key}: its config.yaml cannot be read; train it by its settings", file=sys.stderr)
    found = [config for config in configs.values() if config is not None]
    outcome = runs.sweep(found, device=resolve_device("auto"), launch=SweepConfig())
    return told(outcome)


def _clean(entries: Sequence[runs.Entry]) -> int:
    kept = 0
    for entry in entries:
        try:
            runs.remove(entry)
            print(f"deleted {entry.key}  {entry.status}  {entry.about}")
        except runs.StoreError as error:
            kept += 1
            print(f"{error}", file=sys.stderr)
    print(f"{len(entries) - kept} runs deleted")
    return 1 if kept else 0
