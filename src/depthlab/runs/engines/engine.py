"""What all engines of a sweep have in common: what is told, and what is known of runs from their directories."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from depthlab.config import RunConfig, SweepConfig
from depthlab.runs.checkpoints import saved_steps
from depthlab.runs.engines.job import Ended, Job, Result, told
from depthlab.runs.interrupts import interrupted_by_all
from depthlab.runs.progress import SweepProgress, tell
from depthlab.runs.store import DiskFullError, Run, StoreError, replacing, runs_root


class EngineError(RuntimeError):
    """An engine that cannot be used, such as a cluster that cannot be reached: says what it said."""


class Engine(ABC):
    """Trains the runs of a sweep, `count` at once at most.

    failures: key and line of each run that failed. elsewhere: runs that other sweeps trained meanwhile.
    """

    def __init__(self, launch: SweepConfig, count: int, device: str) -> None:
        self.failures: list[tuple[str, str]] = []
        self.elsewhere = 0
        self._held: list[RunConfig] = []
        self._launch, self._count, self._device = launch, count, device
        self._threads = launch.threads or 1

    def train_all(self, configs: Sequence[RunConfig]) -> None:
        """Trains every run. A run that fails, or whose process is killed, stops no other.

        What another sweep trains at this moment comes last, and is waited for: several sweeps share the work.
        Raises KeyboardInterrupt when it was asked to stop, and DiskFullError, both after its jobs have ended.
        """
        self._progress = SweepProgress(configs, self._count)
        self._under_way = {config.key(): config for config in configs}
        self._steps_ended = 0
        try:
            with interrupted_by_all():
                self._train_until_none_is_left(configs, wait=False)
                while self._held:
                    tell(f"{len(self._held)} runs are trained by other processes; waiting for them")
                    held, self._held = self._held, []
                    self._train_until_none_is_left(held, wait=True)
        finally:
            self._progress.close()

    @abstractmethod
    def _train_until_none_is_left(self, configs: Sequence[RunConfig], *, wait: bool) -> None:
        """Trains every run, and takes the result of each once. wait: whether jobs wait for who holds their run."""

    def _job(self, config: RunConfig, wait: bool) -> Job:
        return Job.of(config, self._device, self._threads, self._launch, wait)

    def _take(self, config: RunConfig, result: Result) -> None:
        """Tells what a job came back with; a run that another process holds comes again, and a full disk is for all."""
        if isinstance(result, DiskFullError):
            raise result
        if isinstance(result, Ended):
            self.elsewhere += result.elsewhere
            self._tell(config, result.succeeded, result.line)
        else:
            self._held.append(config)

    def _lost(self, config: RunConfig, reason: str) -> None:
        """Tells of a job that ended without a word; what the run's directory says counts."""
        _check_space(runs_root())
        run, failed = Run.of(config), Ended(False, f"failed: its job ended without a result: {reason}")
        try:
            ended = told(run) if run.status().finished else failed
        except StoreError as error:
            ended = Ended(False, f"failed: {error}")
        self._tell(config, ended.succeeded, ended.line)

    def _tell(self, config: RunConfig, succeeded: bool, result: str) -> None:
        line = f"{_name(config)}: {result}"
        if not succeeded:
            self.failures.append((config.key(), line))
        if self._under_way.pop(config.key(), None):
            self._steps_ended += config.train.steps
        self._progress.ended(config.key(), line, failed=not succeeded)

    def _look(self) -> None:
        """Shows how far the runs are, by their newest checkpoints: those of other machines say nothing else."""
        saved = sum(saved_steps(Run.of(config)) for config in self._under_way.values())
        self._progress.steps.value = self._steps_ended + saved
        self._progress.refresh()


def _check_space(root: Path) -> None:
    """Raises DiskFullError if nothing can be written: then a job could not even say so."""
    root.mkdir(parents=True, exist_ok=True)
    path = root / ".space"
    with replacing(path) as temporary:
        temporary.write_bytes(bytes(1 << 20))
    path.unlink(missing_ok=True)


def _name(config: RunConfig) -> str:
    model = config.model
    if model.family == "torchvision":
        return f"{model.architecture} seed={config.seed}"
    family = model.cell if model.family == "rnn" else model.family
    return (
        f"{family}-{model.depth} {model.activation} init={model.init} norm={model.norm} skip={model.skip} "
        f"seed={config.seed}"
    )
