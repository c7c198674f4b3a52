"""The search: processes that claim trials of one study and run them, each as an ordinary run of the ledger."""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from depthlab import _processes
from depthlab.config import ConfigError, Range, RunConfig, Value
from depthlab.runs import DiskFullError, Run, Status, StoreError, execute
from depthlab.runs.interrupts import Stop, Stopped, interrupted_by_all
from depthlab.runs.locks import LeaseLostError
from depthlab.runs.progress import tell
from depthlab.runs.run import one_line
from depthlab.runs.trial import is_evaluated
from depthlab.runs.workers import REFRESH_EVERY, prepare_worker, stop
from depthlab.training import prepare_process
from depthlab.tuning.progress import Progress
from depthlab.tuning.study import MOST_LOST, Study, Trial

UNUSABLE = 3
"""Exit status of a worker that could not store its results, and has said so."""

UNKNOWN = 255
"""Exit status that Python makes up for a worker when the process that it was forked from has been killed."""


@dataclass(frozen=True)
class Search:
    """What is searched, and how its trials are run.

    configure: the run of a choice of settings, or ConfigError where they do not go together. It is sent to workers.
    fixed: what tells the settings that are not searched from others. threads: of each run. spared: updates during
    which no trial is pruned; a deep net's error can stand still for long before it falls.
    """

    folder: Path
    ranges: Mapping[str, Range]
    configure: Callable[[Mapping[str, Value]], RunConfig]
    fixed: str
    trials: int
    device: torch.device
    threads: int = 1
    checkpoint_seconds: float = 60.0
    pruner: str = "median"
    spared: int = 0
    seed: int = 0

    def study(self) -> Study:
        """The study, opened."""
        return Study(self.folder, self.ranges, fixed=self.fixed, pruner=self.pruner, spared=self.spared, seed=self.seed)


def search(task: Search, workers: int = 1) -> None:
    """Runs trials until so many have begun in the study, those of other commands included.

    A trial that fails, diverges or is pruned does not stop the others; a full disk does. One that was stopped or killed
    goes on where it was: in this search if a worker was killed, else when it is searched again.
    Raises ConfigError and StoreError as `Study` does, KeyboardInterrupt when asked to stop.
    """
    with task.study() as study, interrupted_by_all():
        if again := study.retry_failed():
            tell(f"{again} trials that failed are run again")
        left = study.left(task.trials)
        workers = min(workers, max(1, left))
        if left > 0:
            tell(f"{left} of {task.trials} trials to run, {workers} at once; the study is in {task.folder}")
        with Progress(study, task.trials) as progress:
            if workers > 1:
                _in_processes(task, study, workers, progress)
            else:
                prepare_process(task.threads)
                work(task, study, progress.refresh)


def work(task: Search, study: Study, after_each: Callable[[], None] = lambda: None) -> None:
    """Runs trials in this process until there is none left to begin."""
    while (trial := study.claim(task.trials)) is not None:
        try:
            _run(task, trial)
        except BaseException:
            trial.give_up()
            raise
        after_each()


def _run(task: Search, trial: Trial) -> None:
    """Brings a trial to its end; what it could not foresee ends the trial, and not the search."""
    try:
        config = task.configure(trial.settings)
    except ConfigError as error:
        trial.end("impossible", str(error))
        return
    trial.note_run(config.key())
    asked = Stop()

    def watch(done: int, _loss: float | None, error: float | None) -> None:
        if error is not None and is_evaluated(done, config.train) and trial.is_hopeless(done, error):
            asked.asked = True  # and never False: a signal may have come in between

    try:
        run = execute(
            config, device=task.device, progress=watch, checkpoint_seconds=task.checkpoint_seconds, stop=asked
        )
        errors = validation_errors(run)
    except Stopped as stopped:
        if asked.by is not None:
            raise
        trial.end("pruned", str(stopped))
    except LeaseLostError:
        trial.give_up()  # begun again, it waits for whoever trains the run now
    except DiskFullError:
        raise  # no other trial could be stored either
    except Exception as error:
        trial.end("failed", one_line(error))
    else:
        diverged = run.status() is Status.DIVERGED
        trial.end("diverged" if diverged else "done", _about(run) if diverged else "", errors)


def validation_errors(run: Run) -> dict[int, float]:
    """The validation errors of a finished run, by the number of updates before them."""
    table = run.readings()
    rows = table[table["probe"] == "validation_error"]
    return {int(step): float(value) for step, value in zip(rows["step"], rows["value"], strict=True)}


def _about(run: Run) -> str:
    return f"at step {run.record()['diverged_step']}"


def _in_processes(task: Search, study: Study, count: int, progress: Progress) -> None:
    """Keeps workers at it. One that the system kills is replaced, and its trial begun again."""
    deaths_left = count + task.trials * (MOST_LOST + 1)
    processes: list[BaseProcess] = []
    _processes.warm_up()
    try:
        processes += [_started(task) for _ in range(count)]
        while processes:
            multiprocessing.connection.wait([process.sentinel for process in processes], timeout=REFRESH_EVERY)
            for process in [process for process in processes if not process.is_alive()]:
                processes.remove(process)
                if _was_killed(process) and deaths_left > 0:
                    deaths_left -= 1
                    study.recover()
                    processes += [_started(task)] if study.left(task.trials) else []
            progress.refresh()
    except BaseException:
        stop(processes)
        raise


def _was_killed(process: BaseProcess) -> bool:
    """Whether a signal ended it. Raises StoreError if it ended itself because it could not go on."""
    if process.exitcode == UNKNOWN:
        tell("the process that those of the search are forked from was killed; what they cannot end is begun again")
        return True
    if process.exitcode and process.exitcode > 0:
        raise StoreError("a process of the search could not go on, for the reason above; type the same command later")
    if process.exitcode:
        tell(f"a process of the search was ended by {signal.Signals(-process.exitcode).name}; its trial is begun again")
    return bool(process.exitcode)


def _started(task: Search) -> BaseProcess:
    process = _processes.context().Process(target=_worker, args=(dict(os.environ), task))
    with _processes.signals_deferred():
        process.start()
    return process


def _worker(environment: Mapping[str, str], task: Search) -> None:
    prepare_worker(task.threads)
    _processes.settle(environment)
    try:
        with task.study() as study:
            work(task, study)
    except Stopped:
        pass
    except (StoreError, ConfigError) as error:
        tell(f"depthlab: {error}")
        raise SystemExit(UNUSABLE) from None
