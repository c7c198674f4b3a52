"""What tests run in processes of their own, which find it by this name: `conftest.py` puts its folder on the path."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier, Event
from pathlib import Path
from typing import Any

import torch

from depthlab.config import RunConfig
from depthlab.runs import Run, execute, locks, workers
from depthlab.runs.run import Trial

CPU = torch.device("cpu")
HERE = {"host": socket.gethostname(), "pid": os.getpid()}
LONG = 120
"""Seconds that a process gets to start; on a busy machine importing torch takes long."""

TRAIN_ONE = workers._train_one


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


def killed_at_seed_1(config: RunConfig, root: Path, device: torch.device, wait: bool) -> workers.Ended:
    """Stands in for a run that wants more memory than there is: the system kills its process."""
    if config.seed == 1:
        run = Run.of(config, root)
        with run.locked():
            run.begin(config, HERE)
            os.kill(os.getpid(), signal.SIGKILL)
    return TRAIN_ONE(config, root, device, wait)


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
