"""`depthlab train`: one run or a sweep, how it goes and how it ended."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import torch
from tqdm import tqdm

from depthlab import runs
from depthlab.cli import experiments
from depthlab.cli.compose import Launch
from depthlab.config import ConfigError, RunConfig, SweepConfig
from depthlab.runs.progress import tell_of_compiling
from depthlab.training import available_cores, prepare_process, resolve_device


def train(options: Namespace) -> int:
    """One run or a sweep."""
    launches, is_sweep = experiments.launches(options.overrides, options.multirun)
    first = one_launch(launches)
    if is_sweep:
        device = first.device if first.sweep.engine in runs.ELSEWHERE else resolve_device(first.device)
        return told(runs.sweep([launch.run for launch in launches], device=device, launch=first.sweep))
    if first.sweep.engine != SweepConfig().engine:
        raise ConfigError(f"hydra/launcher={first.sweep.engine} trains sweeps; give -m, with one run too")
    return _train_one(first, resolve_device(first.device))


def one_launch(launches: Sequence[Launch]) -> Launch:
    """One of them, whose device and sweep are those of all. Raises ConfigError if they differ."""
    if len({(launch.device, launch.sweep) for launch in launches}) > 1:
        raise ConfigError("device and what is under sweep hold for all runs of a sweep; give each one value")
    return launches[0]


def told(outcome: runs.Outcome) -> int:
    """Says what became of a sweep; the exit status."""
    print(f"{outcome.trained} runs trained, {outcome.found} found finished, {len(outcome.failures)} failed")
    for key, reason in outcome.failures:
        print(f"  {key} {reason}", file=sys.stderr)
    return 1 if outcome.failures else 0


def _train_one(launch: Launch, device: torch.device) -> int:
    config = launch.run
    # small matrices are slower on many threads than on one
    prepare_process(launch.sweep.threads or (available_cores() if config.model.gains_from_threads else 1))
    run = runs.Run.of(config)
    was_there = runs.is_finished(run, launch.sweep.keep_weights)
    if not was_there:
        tell_of_compiling([config])
    with _Progress(config) as progress:
        runs.execute(
            config,
            device=device,
            progress=progress,
            checkpoint_seconds=launch.sweep.checkpoint_seconds,
            keep_weights=launch.sweep.keep_weights,
        )
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
        elif done == self._steps or (done > 0 and done % max(1, self._steps // 10) == 0):
            line = f"step {done}/{self._steps}"
            print(f"{line}: {', '.join(known)}" if known else line, file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
