"""What the commands do."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from tqdm import tqdm

from depthlab import figures, runs
from depthlab.cli import experiments
from depthlab.cli.compose import Composer, Launch
from depthlab.cli.report import report
from depthlab.cli.tune import tune
from depthlab.config import ConfigError, RunConfig, SweepConfig, flat, suggest
from depthlab.data import DataError
from depthlab.runs.provenance import provenance
from depthlab.training import available_cores, prepare_process, resolve_device

EXPECTED_ERRORS = (DataError, runs.StoreError, runs.EngineError, PermissionError)
"""Faults of files and folders, told in one line; anything else is a defect and shows its traceback."""


def train(options: Namespace) -> int:
    """One run or a sweep."""
    launches, is_sweep = _launches(options.overrides, options.multirun)
    if len({(launch.device, launch.sweep) for launch in launches}) > 1:
        raise ConfigError("device and what is under sweep hold for all runs of a sweep; give each one value")
    first = launches[0]
    if is_sweep:
        device = first.device if first.sweep.engine in runs.ELSEWHERE else resolve_device(first.device)
        return _told(runs.sweep([launch.run for launch in launches], device=device, launch=first.sweep))
    if first.sweep.engine != SweepConfig().engine:
        raise ConfigError(f"hydra/launcher={first.sweep.engine} trains sweeps; give -m, with one run too")
    return _train_one(first, resolve_device(first.device))


def _told(outcome: runs.Outcome) -> int:
    print(f"{outcome.trained} runs trained, {outcome.found} found finished, {len(outcome.failures)} failed")
    for key, reason in outcome.failures:
        print(f"  {key} {reason}", file=sys.stderr)
    return 1 if outcome.failures else 0


def figure(options: Namespace) -> int:
    """Draws an experiment."""
    experiment = experiments.load(options.name)
    script = experiments.script(options.name)
    folder = runs.results_root() / options.name
    if options.redraw and options.overrides:
        raise ConfigError(f"{options.overrides[0]} has no effect with --redraw, which draws the readings as they are")
    scale, overrides = _take(options.overrides, "scale")
    claims = _redraw(folder, script) if options.redraw else _draw(folder, script, experiment, scale, overrides)
    for claim in claims:
        print(f"{claim.verdict:>13}: {claim.statement}")
    print(f"wrote {folder}/figure.png, table.md, claims.md")
    return 0


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
    name, overrides = _take(options.overrides, "experiment")
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
    entries = runs.ledger([launch.run for launch in _launches(options.overrides, True)[0]] if name else None)
    return [e for e in entries if e.status in states and all(e.has(setting, value) for setting, value in wanted)]


def _retry(entries: Sequence[runs.Entry]) -> int:
    configs = {entry.key: runs.config_of(entry.key) for entry in entries}
    for key in [key for key, config in configs.items() if config is None]:
        print(f"{key}: its config.yaml cannot be read; train it by its settings", file=sys.stderr)
    found = [config for config in configs.values() if config is not None]
    outcome = runs.sweep(found, device=resolve_device("auto"), launch=SweepConfig())
    return _told(outcome)


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


COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "train": train,
    "figure": figure,
    "report": report,
    "runs": list_runs,
    "tune": tune,
}


def _launches(overrides: Sequence[str], multirun: bool) -> tuple[list[Launch], bool]:
    """The runs that a command line stands for, and whether it is a sweep."""
    composer = Composer(experiments.folder("configs"))
    name, rest = _take(overrides, "experiment")
    scale, rest = _take(rest, "scale")
    if name is None:
        if scale is not None:
            raise ConfigError(f"scale={scale} is that of an experiment; give experiment=NAME as well, or leave it out")
        launches = list(composer.sweep(rest))
        if len(launches) > 1 and not multirun:
            raise ConfigError(f"these settings stand for {len(launches)} runs; give -m to train them as a sweep")
        return launches, multirun
    return experiments.load(name).launches(composer, experiments.check_scale(scale), rest), True


def _take(overrides: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of one override, the last if it is given twice, and the others."""
    values = [text.partition("=")[2] for text in overrides if text.startswith(f"{name}=")]
    return (values[-1] if values else None), [text for text in overrides if not text.startswith(f"{name}=")]


def _redraw(folder: Path, script: Any) -> list[figures.Claim]:
    try:
        return figures.redraw(folder, script)
    except OSError as error:
        raise runs.StoreError(f"cannot redraw {folder}: {error}") from error


def _draw(
    folder: Path, script: Any, experiment: experiments.Experiment, scale: str | None, overrides: list[str]
) -> list[figures.Claim]:
    scale = experiments.check_scale(scale)
    composer = Composer(experiments.folder("configs"))
    configs = [launch.run for launch in experiment.launches(composer, scale, overrides)]
    try:
        readings = runs.load_readings(configs, script.PROBES)
    except runs.StoreError as error:
        again = shlex.join(["depthlab", "train", f"experiment={experiment.name}", f"scale={scale}", *overrides])
        raise runs.StoreError(f"{error}; train them with: {again}") from None
    origin = {"experiment": experiment.name, "scale": scale, "overrides": overrides, **provenance()}
    with runs.writing(folder):
        return figures.write(folder, script, readings, {**origin, "runs": runs.cost(configs)})


def _train_one(launch: Launch, device: torch.device) -> int:
    config = launch.run
    # small matrices are slower on many threads than on one
    prepare_process(launch.sweep.threads or (1 if config.model.family == "mlp" else available_cores()))
    run = runs.Run.of(config)
    was_there = run.status().finished
    with _Progress(config) as progress:
        runs.execute(config, device=device, progress=progress, checkpoint_seconds=launch.sweep.checkpoint_seconds)
    record = run.record()
    if record["status"] == "diverged":
        print(f"diverged at step {record['diverged_step']}: the loss is not finite")
    else:
        metrics = record["metrics"]
        print(
            f"test error {metrics['test_error']:.2%} after {record['steps']} steps "
            f"({metrics['chosen_test_error']:.2%} with the weights that validation chose, "
            f"step {metrics['chosen_step']:.0f})"
        )
    print(f"{'found' if was_there else 'wrote'} {run.folder}")
    return 0


class _Progress:
    """A bar on a terminal, a line at each tenth of the way elsewhere."""

    def __init__(self, config: RunConfig) -> None:
        self._steps = config.train.steps
        self._bar = tqdm(total=self._steps, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True)

    def __call__(self, done: int, loss: float | None, validation_error: float | None) -> None:
        known = [] if loss is None else [f"loss {loss:.4g}"]
        known += [] if validation_error is None else [f"validation accuracy {1 - validation_error:.2%}"]
        if not self._bar.disable:
            self._bar.set_postfix_str(", ".join(known), refresh=False)
            self._bar.update(done - self._bar.n)
        elif done == self._steps or done % max(1, self._steps // 10) == 0:
            line = f"step {done}/{self._steps}"
            print(f"{line}: {', '.join(known)}" if known else line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
