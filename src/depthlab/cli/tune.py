"""`depthlab tune`: a search over ranges of settings, and how its result is told."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
import shlex
from argparse import Namespace
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING

from depthlab import runs
from depthlab.cli import experiments
from depthlab.cli.compose import Composer, Launch, Searched
from depthlab.config import ConfigError, RunConfig, Value, declared, typed
from depthlab.runs.packing import Packing, bound, pack
from depthlab.runs.progress import tell, tell_of_compiling
from depthlab.training import available_cores, resolve_device

if TYPE_CHECKING:
    import torch

    from depthlab import tuning

COMPARED_ON = ("data", "data.name", "data.classes", "data.validation_fraction", "data.split_seed")
"""What says on which images the validation error is measured: trials that differ in it could not be compared."""

COMBINATIONS = 50
"""Choices of the other settings with which an end of a range is tried before it is called impossible."""

SIZED = ("model", "data", "train.batch_size", "train.compile")
"""What the memory of a trial depends on."""

SIZES, ATTEMPTS = 1000, 4
"""Combinations of their ranges' ends that are looked at, and of the other settings with each."""


def tune(options: Namespace) -> int:
    """Searches ranges for the settings of least validation error."""
    tuning = _tuning()
    searched = Composer(experiments.folder("configs")).searched(options.overrides)
    launch = _checked(searched)
    device = resolve_device(launch.device)
    packing = _packed(searched, launch, device, options.trials)
    task = tuning.Search(
        folder=runs.results_root() / "tune" / _name(options.name, searched, launch),
        ranges=searched.ranges,
        configure=searched,
        fixed=launch.run.key(),
        trials=options.trials,
        device=device,
        threads=packing.threads,
        checkpoint_seconds=launch.sweep.checkpoint_seconds,
        pruner=options.pruner,
        spared=launch.run.train.steps // 4,
        seed=options.sampler_seed,
    )
    if packing.reason:
        tell(str(packing))
    tell_of_compiling([launch.run])
    try:
        tuning.search(task, packing.workers)
    except KeyboardInterrupt:
        _conclude(task, searched, is_complete=False)
        raise
    return _conclude(task, searched, is_complete=True)


def _packed(searched: Searched, launch: Launch, device: torch.device, trials: int) -> Packing:
    """How many trials at once, as a sweep of the largest would be packed, and with how many threads each.

    On a GPU one, if nothing else is asked for. A trial that is alone has all cores, if they are of use to it.
    """
    if device.type == "cuda" and not launch.sweep.workers:
        found = Packing(1, launch.sweep.threads or 1)
    else:
        found = pack([_largest(searched, launch.run)] * trials, launch.sweep, str(device))
    is_alone = found.workers == 1 and launch.run.model.gains_from_threads
    return dataclasses.replace(found, threads=available_cores()) if is_alone and not launch.sweep.threads else found


def _largest(searched: Searched, known: RunConfig) -> RunConfig:
    """The trial that may take the most memory: `known`, or one with ends of ranges for what its size depends on."""
    ends = {name: found.ends for name, found in searched.ranges.items() if name.startswith(SIZED)}
    launches = (
        launch
        for combination in itertools.islice(itertools.product(*ends.values()), SIZES)
        for launch in itertools.islice(_launches(searched, dict(zip(ends, combination, strict=True))), ATTEMPTS)
        if isinstance(launch, Launch)
    )
    return max((known, *(launch.run for launch in launches)), key=bound)


def _tuning() -> ModuleType:
    try:
        from depthlab import tuning  # noqa: PLC0415 - optuna, which the other commands do without
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "depthlab":
            raise
        raise ConfigError(
            f"depthlab tune needs {error.name}, which is not installed: pip install 'depthlab[tune]'"
        ) from None
    return tuning


def _checked(searched: Searched) -> Launch:
    """How trials are launched; ConfigError where a range holds what no run can have."""
    if not searched.ranges:
        raise ConfigError(
            "there is nothing to search; give a setting a range, such as 'train.lr=tag(log,interval(1e-3,1))' or "
            "model.depth=5,10,20"
        )
    for name in searched.ranges:
        if name == "device" or name.startswith("sweep."):
            raise ConfigError(f"{name} holds for all trials of a search; give it one value")
        if name in COMPARED_ON:
            raise ConfigError(f"{name}: trials are compared on one validation split; give it one value")
    for name, found in searched.ranges.items():
        for value in found.ends:
            _check_end(searched, name, value)
    return next(launch for launch in _launches(searched, {}) if isinstance(launch, Launch))


def _check_end(searched: Searched, name: str, value: Value) -> None:
    """A value with which none of many combinations of the others can be run is a mistake."""
    tried = list(itertools.islice(_launches(searched, {name: value}), COMBINATIONS))
    if not any(isinstance(launch, Launch) for launch in tried):
        (refused, *_) = tried
        raise ConfigError(f"{typed({name: value})[0]}, at the end of its range, is impossible: {refused}")


def _launches(searched: Searched, held: Mapping[str, Value]) -> Iterator[Launch | ConfigError]:
    """Combinations of the ranges' ends, with some settings held at a value, until one can be run."""
    ends = {name: (held[name],) if name in held else found.ends for name, found in sorted(searched.ranges.items())}
    for combination in itertools.product(*ends.values()):
        try:
            yield searched.launch(dict(zip(ends, combination, strict=True)))
            return
        except ConfigError as error:
            yield error


def _name(given: str | None, searched: Searched, launch: Launch) -> str:
    """The study's name: of equal ranges and other settings the same, in whatever order they are typed."""
    if given is None:
        content = hashlib.sha256(f"{declared(searched.ranges)}{launch.run.key()}".encode()).hexdigest()[:8]
        return "-".join([*sorted(name.rpartition(".")[2] for name in searched.ranges), content])
    if not re.fullmatch(r"\w[\w.-]*", given):
        raise ConfigError(f"--name {given} names a folder; use letters, digits and . _ -")
    return given


def _conclude(task: tuning.Search, searched: Searched, *, is_complete: bool) -> int:
    """Writes and tells what was found; 1 if there is no trial to recommend."""
    tuning = _tuning()
    with task.study() as study:
        outcomes, shares, running = study.outcomes(), study.importances(), study.running()
    if not outcomes:
        print(f"no trial has ended yet; the study is in {task.folder}")
        return 1
    for line in tuning.describe(outcomes, shares):
        print(line)
    if running:
        print(f"{running} trials are still run by another command")
    best = outcomes[0]
    if best.state == "done":
        _tell_best(best, searched, is_final=is_complete and not running)
    else:
        print("no trial was brought to its end; raise --trials, or change the ranges")
    print(f"wrote {task.folder}/{', '.join(tuning.write(task.folder, outcomes, shares))}")
    return 0 if best.state == "done" else 1


def _tell_best(best: tuning.Outcome, searched: Searched, *, is_final: bool) -> None:
    """The best trial. The test set is looked at once, when there is nothing left to choose."""
    test = ""
    record = runs.Run(runs.runs_root() / best.key).record() if is_final else {}
    if "metrics" in record:
        test = f"; test error of these weights {record['metrics']['chosen_test_error']:.2%}"
    print(f"best: trial {best.number}, validation error {best.error:.2%} after {best.step} updates{test}")
    print(f"  its run is {best.key}: {_command(searched, best)}")


def _command(searched: Searched, best: tuning.Outcome) -> str:
    """The command line of the best trial's run."""
    fixed = [text for text in searched.fixed if not text.startswith(("sweep.", "device="))]
    return shlex.join(["depthlab", "train", *fixed, *typed(best.settings)])
