"""What tests run in processes of their own, which find it by this name: `conftest.py` puts its folder on the path."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any, Self

import torch

from depthlab.config import RunConfig
from depthlab.runs import DiskFullError, Run, execute, locks, rehearsal, workers
from depthlab.runs.engines.job import Job, Result
from depthlab.runs.trial import Trial

CPU = torch.device("cpu")
HERE = {"host": socket.gethostname(), "pid": os.getpid()}
LONG = 120
"""Seconds that a process gets to start; on a busy machine importing torch takes long."""

TRAIN_ONE = workers._train_one
REHEARSE = rehearsal._rehearse


def execute_at_once(config: RunConfig, start: Barrier, log: Path) -> None:
    """Notes on a line of its own that it trains, and then takes its time."""
    torch.set_num_threads(1)
    train = Trial.run

    def noted(self: Trial) -> dict[str, Any]:
        with log.open("a") as lines:
            lines.write(f"{os.getpid()}\n")
        time.sleep(0.5)
        return train(self)

    Trial.run = noted  # type: ignore[method-assign]
    start.wait(LONG)
    execute(config, device=CPU)


def execute_for_ever(config: RunConfig, started: Event) -> None:
    """Has the lock and does not come back."""

    def hang(self: Trial) -> dict[str, Any]:
        started.set()
        time.sleep(3600)
        return {}

    Trial.run = hang  # type: ignore[method-assign]
    execute(config, device=CPU)


def suspended(config: RunConfig, lease: float, started: Event, ended: Queue[str]) -> None:
    """Trains without end, and tells by what it was stopped."""
    locks.LEASE = lease
    try:
        execute(config, device=CPU, progress=lambda *_: started.set())
    except Exception as error:
        ended.put(type(error).__name__)


def environment_told(_config: RunConfig, _root: Path, _device: torch.device, _wait: bool) -> workers.Ended:
    """Trains nothing, and tells of its process: a variable that tests set, and the CPU seconds that it took so far."""
    return workers.Ended(False, f"{os.environ.get('TOLD')} {time.process_time()}")


def killed_at_seed_1(config: RunConfig, root: Path, device: torch.device, wait: bool) -> workers.Ended:
    """Stands in for a run that wants more memory than there is: the system kills its process."""
    if config.seed == 1:
        run = Run.of(config, root)
        with run.locked():
            run.begin(config, HERE)
            os.kill(os.getpid(), signal.SIGKILL)
    return TRAIN_ONE(config, root, device, wait)


def rehearsal_killed_at_seed_1(config: RunConfig, device: torch.device) -> rehearsal.Rehearsal | rehearsal.Failure:
    """The same in a rehearsal."""
    if config.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return REHEARSE(config, device)


def rehearsal_without_end(config: RunConfig, device: torch.device) -> rehearsal.Rehearsal | rehearsal.Failure:
    """One that nobody waits for."""
    time.sleep(LONG)
    return rehearsal.Failure("it ended")


def on_a_full_disk(config: RunConfig, root: Path, device: torch.device, wait: bool) -> workers.Ended:
    """What begins with seed 1 finds no space left, and nothing after it does."""
    full = root / "full"
    if config.seed == 1:
        full.touch()
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if full.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(self, target)

    Path.replace = failing  # type: ignore[method-assign]
    return TRAIN_ONE(config, root, device, wait)


def killed_at_once(config: RunConfig, root: Path, device: torch.device, wait: bool) -> workers.Ended:
    """A process that does not come as far as to begin a run."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class DyingJob(Job):
    """As above: seed 1 kills its process whenever it is trained, and the system says nothing about it."""

    def train(self) -> Result:
        if self.config.seed == 1:
            run = Run.of(self.config, self.root)
            with run.locked():
                run.begin(self.config, HERE)
                os.kill(os.getpid(), signal.SIGKILL)
        return super().train()


class FullDisk(Job):
    """As above: seed 1 finds no space left."""

    def train(self) -> Result:
        return DiskFullError("no space left; make room") if self.config.seed == 1 else super().train()


class Command:
    """A sweep of two runs, endless by default, in a process group of its own as a terminal makes it.

    Its learning rate is so small that neither run diverges, and so ends, before a test has stopped it.
    """

    def __init__(self, steps: int = 10_000_000, *more: str) -> None:
        lines = [sys.executable, "-m", "depthlab", "train", "-m", "data=synthetic", f"train.steps={steps}", *more]
        options = ["train.batch_size=20", "seed=0,1", "sweep.workers=2", f"train.eval_every={steps}", "train.lr=1e-6"]
        self.process = subprocess.Popen([*lines, *options], stderr=subprocess.PIPE, text=True, start_new_session=True)

    def __enter__(self) -> Self:
        assert self.process.stderr is not None
        assert "2 of 2 runs to train" in self.process.stderr.readline()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()

    def pids(self, results: Path) -> list[int]:
        """The processes of both runs, as soon as both are there."""
        for _ in range(10 * LONG):
            found = [Run(folder).record() for folder in (results / "runs").glob("*")]
            if len(found) == 2 and all(found):
                return [record["pid"] for record in found]
            time.sleep(0.1)
        raise AssertionError("the runs do not start")


def is_alive(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"
