"""The run of a choice of settings; tests' own processes find it by this name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

from depthlab.config import (
    Choice,
    ConfigError,
    DataConfig,
    Interval,
    ModelConfig,
    ProbesConfig,
    RunConfig,
    TrainConfig,
    Value,
)
from depthlab.runs import results_root

RANGES = {"train.lr": Interval(1e-3, 1.0, log=True), "model.activation": Choice(("relu", "tanh"))}


def configured(values: Mapping[str, Value]) -> RunConfig:
    """Twenty updates of three layers, evaluated at every fifth."""
    return RunConfig(
        data=DataConfig(name="synthetic", train_size=60),
        model=ModelConfig(depth=3, width=8, activation=str(values["model.activation"])),
        train=TrainConfig(steps=20, batch_size=20, eval_every=5, lr=float(values["train.lr"])),
        probes=ProbesConfig(every=0, names=("grad_norm",)),
    )


def slow(values: Mapping[str, Value]) -> RunConfig:
    """The same, after a while in which another process can come in between; notes that it began."""
    note(f"{os.getpid()}")
    time.sleep(0.2)
    return configured(values)


def deadly(values: Mapping[str, Value]) -> RunConfig:
    """Kills the first process that comes to it."""
    if not began():
        note(f"{os.getpid()}")
        os.kill(os.getpid(), signal.SIGKILL)
    return configured(values)


def always_deadly(values: Mapping[str, Value]) -> RunConfig:
    """Kills every process that comes to tanh."""
    if values["model.activation"] == "tanh":
        os.kill(os.getpid(), signal.SIGKILL)
    return configured(values)


def orphaning(values: Mapping[str, Value]) -> RunConfig:
    """Kills, when the third trial begins, the process that its own was forked from."""
    note(f"{os.getpid()}")
    if len(began()) == 3:
        os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(0.2)
    return configured(values)


def unfit(values: Mapping[str, Value]) -> RunConfig:
    """Settings that do not go together."""
    if values["model.activation"] == "tanh":
        raise ConfigError("tanh does not fit")
    return configured(values)


def note(line: str) -> None:
    """Adds a line to a log that all processes share."""
    with log().open("a") as lines:
        lines.write(f"{line}\n")


def began() -> list[str]:
    """The lines of the log."""
    return log().read_text().splitlines() if log().exists() else []


def log() -> Path:
    """Beside the results."""
    return results_root().parent / "began.log"
