"""A rehearsal: the first updates of a run in a process of its own, which tell what it costs; nothing is left of it."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from depthlab import _processes
from depthlab.config import ProbesConfig, RunConfig, TrainConfig, flat
from depthlab.runs.checkpoints import Checkpoints
from depthlab.runs.run import one_line
from depthlab.runs.store import Run, Status
from depthlab.runs.trial import EVALUATION_BATCH, Trial
from depthlab.runs.workers import prepare_worker
from depthlab.training import own_peak

READ_EVERY = 3
"""Of the five updates of a short rehearsal, 0 to 4, 0 (which warms up), 3 and the last are read, 1 and 2 are not."""

LONGEST = 200
LONG_ENOUGH = 0.5
"""Seconds of updates that are timed, where the clock is not the limit: as many as that takes, from 5 to 200."""

WARM_WITHIN = 10.0
"""Seconds of updates up to which all is done twice, and the second time counts: the first one waits for memory, which
made an update of 60 ms one of 1.1 s."""

TINY_RATE = 1e-8
"""The learning rate, at which nothing diverges meanwhile."""

COMPILER = 640 * 2**20
"""Bytes of the compiler that train.compile starts, which is a process of its own: 515 MiB of g++ were measured."""


SAME_COST = {
    *("seed", "data.split_seed", "data.fold", "data.part", "data.label_noise"),
    *("model.init", "model.sigma_w", "model.sigma_b", "model.gate_bias", "model.forget_bias", "model.head_gain"),
    *("model.head_bias", "train.steps", "train.eval_every", "train.early_stopping", "train.label_smoothing"),
    *("train.lr", "train.schedule", "train.milestones", "train.lr_decay", "train.warmup_steps", "train.weight_decay"),
    *("train.pretraining_lr", "probes.every", "transfer.source", "transfer.copied", "transfer.backbone_lr_factor"),
}
"""Settings that leave the cost of an update as it is; how many updates, evaluations and readings there are is known."""


@dataclass(frozen=True)
class Rehearsal:
    """What a run takes: seconds of its parts, and bytes.

    start: what comes before the first update, pre-training aside. update: one without a reading; reading: how much
    longer one with a reading takes. pretraining: one update of each hidden layer, together. image: evaluating one.
    end: what comes after the last update, with `evaluated` images, where a whole run has `last_images`. memory: of the
    process at its largest, but for what it shares, and of its compiler; gpu_memory: what it reserved on a GPU at most,
    without its context.
    """

    start: float
    update: float
    reading: float
    pretraining: float
    image: float
    end: float
    evaluated: int
    last_images: int
    validation_images: int
    memory: int
    gpu_memory: int = 0

    def seconds(self, config: RunConfig) -> float:
        """How long the run takes if it neither stops early nor diverges."""
        train = config.train
        images = evaluations(train) * self.validation_images + self.last_images - self.evaluated
        updates = train.steps * self.update + readings(train, config.probes) * self.reading
        updates += train.pretraining_steps * self.pretraining
        return self.start + updates + images * self.image + self.end


@dataclass(frozen=True)
class Failure:
    """Why there is no rehearsal; killed: whether its process was, as it is for want of memory."""

    reason: str
    killed: bool = False


def kind(config: RunConfig) -> tuple[tuple[str, Any], ...]:
    """The settings that say what an update, a reading and an evaluation take."""
    told = ((name, value) for name, value in flat(config).items() if name not in SAME_COST)
    return tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in told)


def evaluations(train: TrainConfig) -> int:
    """How often a run that does not stop early is evaluated while it trains."""
    return math.ceil(train.steps / train.eval_every)


def readings(train: TrainConfig, probes: ProbesConfig) -> int:
    """How many updates the probes read: the first, the last, and every so many between."""
    if probes.every == 0:
        return min(train.steps, 2)
    return math.ceil(train.steps / probes.every) + ((train.steps - 1) % probes.every > 0)


def rehearse(configs: Sequence[RunConfig], device: torch.device | str, threads: int) -> Generator[Rehearsal | Failure]:
    """A rehearsal of each run, one after the other in one process, a new one when it was killed; as they come.

    Real updates on real data, one evaluation and one checkpoint, into a folder that is deleted. Evaluations are of 500
    images instead of all, and weights that a run would take from another one are drawn instead.
    """
    left, others = list(configs), set(multiprocessing.active_children())
    while left:
        _processes.warm_up()
        given = dict(os.environ), threads
        with ProcessPoolExecutor(1, _processes.context(), initializer=_prepare, initargs=given) as pool:
            try:
                while left:
                    with _processes.signals_deferred():
                        rehearsed = pool.submit(_rehearse, left[0], torch.device(device))
                    found = rehearsed.result()
                    del left[0]
                    yield found
            except (BrokenProcessPool, EOFError, ConnectionError):
                del left[0]
                yield Failure("its process was killed, perhaps for want of memory", killed=True)
            except BaseException:  # Ctrl-C, or nobody wants the others: there is nothing to save
                for process in set(multiprocessing.active_children()) - others:
                    process.kill()
                raise


def _prepare(environment: Mapping[str, str], threads: int) -> None:
    prepare_worker(threads)
    _processes.settle(environment)


def _rehearse(config: RunConfig, device: torch.device) -> Rehearsal | Failure:
    """In a process of its own."""
    try:
        shortest = _warming_up(config) + READ_EVERY + 1
        found = _timed(config, device, shortest)
        if shortest * found.update < WARM_WITHIN:  # again, in memory that the process has by now
            steps = min(max(round(LONG_ENOUGH / found.update), shortest), LONGEST)
            found = _timed(config, device, steps)
        return found
    except Exception as error:  # whatever it is, the other runs are rehearsed
        return Failure(one_line(error))


def _timed(config: RunConfig, device: torch.device, steps: int) -> Rehearsal:
    """Trains so many updates, evaluates and saves; the clock is read whenever the trial tells how far it is."""
    short, clock = _shortened(config, steps), _Clock(device)
    trial = Trial(short, device, clock)
    built, whole = clock.lap(), trial.splits
    validation, test = (part.first(EVALUATION_BATCH) for part in (whole.validation, whole.test))
    trial.splits = dataclasses.replace(whole, validation=validation, test=test)
    diverged = trial.run()["status"] is Status.DIVERGED
    end = clock.lap()
    if diverged:  # before it evaluated anything
        trial.evaluate(trial.splits.validation)
    evaluation = clock.lap()
    with tempfile.TemporaryDirectory() as folder:
        Checkpoints(Run(Path(folder)), 0).save(steps, trial.state())
    warming_up = _warming_up(config)
    update, read = clock.medians(steps, warming_up)
    usual = sum(update if step % READ_EVERY else read for step in range(warming_up))
    if not diverged:
        evaluation = clock.updates[-1] - read
    phase = short.train.pretraining_steps
    return Rehearsal(
        start=built + max(sum(clock.updates[:warming_up]) - usual, 0),
        update=update,
        reading=max(read - update, 0),
        pretraining=sum(clock.before[phase // 2 :: phase]) if phase else 0.0,
        image=max(evaluation, 0) / len(validation),
        end=end,
        evaluated=len(test) + min(len(validation), len(whole.train)),
        # the test images twice: with the last weights, and with those that validation chose
        last_images=2 * len(whole.test) + min(len(whole.validation), len(whole.train)),
        validation_images=len(whole.validation),
        memory=own_peak() + (COMPILER if config.train.compile else 0),
        gpu_memory=torch.cuda.max_memory_reserved(device) if device.type == "cuda" else 0,
    )


def _warming_up(config: RunConfig) -> int:
    """How many updates come before those that are timed: update 1 is compiled, and on a GPU captured in update 2."""
    return 1 + READ_EVERY if config.train.compile else 1


class _Clock:
    """Laps between the updates of a trial, which calls it after each; on a GPU, when the update is done."""

    def __init__(self, device: torch.device) -> None:
        self.before: list[float] = []
        self.updates: list[float] = []
        self._device, self._last = device, time.perf_counter()

    def __call__(self, done: int, _loss: float | None, _error: float | None) -> None:
        (self.updates if done else self.before).append(self.lap())

    def medians(self, steps: int, warming_up: int) -> tuple[float, float]:
        """Of updates without and with a reading, but for the first ones and the last; a run that diverged has fewer."""
        between = list(enumerate(self.updates[: steps - 1]))[warming_up:]
        plain = statistics.median(lap for step, lap in between if step % READ_EVERY)
        return plain, statistics.median(lap for step, lap in between if step % READ_EVERY == 0)

    def lap(self) -> float:
        """Seconds since it was last called."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        last, self._last = self._last, time.perf_counter()
        return self._last - last


def _shortened(config: RunConfig, steps: int) -> RunConfig:
    """The same run but for its length and rate: one evaluation, after the last update."""
    train = dataclasses.replace(
        config.train,
        steps=steps,
        eval_every=steps,
        warmup_steps=0,
        lr=min(config.train.lr, TINY_RATE),
        pretraining_steps=min(config.train.pretraining_steps, READ_EVERY),
    )
    return dataclasses.replace(config, train=train, probes=dataclasses.replace(config.probes, every=READ_EVERY))
