"""The processes of a sweep."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch

from depthlab.config import RunConfig
from depthlab.runs.interrupts import Stopped, interrupted_by_all
from depthlab.runs.locks import HeldError, LeaseLostError
from depthlab.runs.progress import SweepProgress, tell
from depthlab.runs.run import execute, one_line
from depthlab.runs.store import DiskFullError, Run, Status, runs_root
from depthlab.training import prepare_process

REFRESH_EVERY = 0.5
"""Seconds between looks at how far the runs are."""

ASK_AGAIN_AFTER = 1.0
"""Seconds after which a worker that has not ended is asked to once more."""

LOCK_LOST_AFTER = 0.01
"""Seconds after which the lock of the count is not to be had; it is held for a few microseconds."""

_steps: Synchronized[int] | None = None
"""In a worker: the updates of all runs of the sweep."""

_checkpoint_seconds = 60.0
"""In a worker: time between checkpoints."""


class Workers:
    """The processes of a sweep, and what is told of their runs."""

    def __init__(self, count: int, device: torch.device, threads: int, checkpoint_seconds: float) -> None:
        self.failures: list[tuple[str, str]] = []
        self.elsewhere = 0  # runs that other processes trained meanwhile
        self._held: list[RunConfig] = []
        self._count, self._device = count, device
        self._threads, self._checkpoint_seconds = threads, checkpoint_seconds

    def train_all(self, configs: Sequence[RunConfig]) -> None:
        """Trains every run. A run whose process is killed fails, and the others are trained all the same.

        One process that dies takes the others of its pool with it. What was being trained is then trained again, each
        run alone, which tells the run that kills its process from those that only stood beside it.

        What another sweep trains at this moment comes last, and is waited for: several sweeps share the work.
        """
        self._progress = SweepProgress(configs)
        try:
            with interrupted_by_all():
                self._train_until_none_is_left(configs, wait=False)
                if self._held:
                    tell(f"{len(self._held)} runs are trained by other processes; waiting for them")
                    self._train_until_none_is_left(self._held, wait=True)
        finally:
            self._progress.close()

    def _train_until_none_is_left(self, configs: Sequence[RunConfig], *, wait: bool) -> None:
        while left := self._train(configs, self._count, wait):
            suspects = [config for config in left if Run.of(config).status() is Status.INTERRUPTED]
            for suspect in suspects:
                if self._train([suspect], 1, wait):
                    self._tell(suspect, False, "failed: its process was killed, perhaps for want of memory")
            configs = [config for config in left if config not in suspects]
            if not suspects:
                for config in configs:
                    self._tell(config, False, "failed: its process was killed before it could begin")
                return

    def _train(self, configs: Sequence[RunConfig], count: int, wait_for_others: bool) -> list[RunConfig]:
        """Trains runs in a pool of so many processes, and returns those that are left when one of these has died."""
        if not configs:
            return []
        others = set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")
        shared = (self._threads, self._progress.steps, self._checkpoint_seconds)
        pool = ProcessPoolExecutor(count, mp_context=context, initializer=_prepare_worker, initargs=shared)
        left = dict.fromkeys(configs)
        try:
            with interrupts_ignored():
                futures = {
                    pool.submit(_train_one, config, runs_root(), self._device, wait_for_others): config
                    for config in configs
                }
            pending = set(futures)
            while pending:
                ended, pending = wait(pending, timeout=REFRESH_EVERY, return_when=FIRST_COMPLETED)
                for future in ended:
                    self._end(futures[future], future)
                    del left[futures[future]]
                self._progress.refresh()
        except BrokenProcessPool:
            pass
        except (KeyboardInterrupt, DiskFullError):
            stop(list(set(multiprocessing.active_children()) - others))
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return list(left)

    def _end(self, config: RunConfig, future: Future[Ended]) -> None:
        try:
            ended = future.result()
        except (HeldError, LeaseLostError):
            self._held.append(config)
            return
        self.elsewhere += ended.elsewhere
        self._tell(config, ended.succeeded, ended.line)

    def _tell(self, config: RunConfig, succeeded: bool, result: str) -> None:
        line = f"{_name(config)}: {result}"
        if not succeeded:
            self.failures.append((config.key(), line))
        self._progress.ended(config.key(), line, failed=not succeeded)


def stop(processes: Sequence[multiprocessing.process.BaseProcess]) -> None:
    """Asks workers to save and end; a second Ctrl-C ends them."""
    tell("stopping: each run finishes its update and is saved; Ctrl-C again ends them at once")
    try:
        while alive := [process for process in processes if process.is_alive()]:
            for process in alive:
                process.terminate()  # again, too: one that could not save ends when it waits for the next run
            for process in alive:
                process.join(ASK_AGAIN_AFTER)
    except KeyboardInterrupt:
        for process in processes:
            process.kill()


@contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Ctrl-C reaches the workers as well; those started inside ignore it from their first moment on.

    The parent alone answers it, and ends them. Only a main thread can set this; of another's workers each sets it
    itself when it is up.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _prepare_worker(threads: int, steps: Synchronized[int], checkpoint_seconds: float) -> None:
    global _steps, _checkpoint_seconds
    _steps, _checkpoint_seconds = steps, checkpoint_seconds
    prepare_worker(threads)


def prepare_worker(threads: int) -> None:
    """What every worker does first: it leaves Ctrl-C to its parent, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare_process(threads)


def _end_with_parent() -> None:
    """Ends this worker when its parent was killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: whether with a result, what to tell of it, and whether another process trained it."""

    succeeded: bool
    line: str
    elsewhere: bool = False


def _train_one(config: RunConfig, root: Path, device: torch.device, wait_for_others: bool = True) -> Ended:
    """Trains a run. Raises HeldError or LeaseLostError if another process does."""
    counted = 0

    def count(done: int, *_known: float | None) -> None:
        nonlocal counted
        # who was killed may have taken the lock along: then the bar no longer tells the truth, but the run goes on
        if _steps is not None and _steps.get_lock().acquire(timeout=LOCK_LOST_AFTER):
            _steps.get_obj().value += done - counted
            _steps.get_lock().release()
            counted = done

    try:
        run = execute(
            config,
            root=root,
            device=device,
            progress=count,
            checkpoint_seconds=_checkpoint_seconds,
            wait=wait_for_others,
        )
        record = run.record()
    except Stopped:
        os._exit(0)  # this worker is to train no other run
    except (HeldError, LeaseLostError):
        count(0)  # its updates are still to come
        raise
    except DiskFullError:
        raise  # no other run could be stored either
    except Exception as error:  # whatever it is, the other runs go on
        count(config.train.steps)
        trace = Run.of(config, root).folder / "error.txt"
        return Ended(False, f"failed: {one_line(error)}" + (f" (traceback in {trace})" if trace.exists() else ""))
    count(config.train.steps)
    elsewhere = (record.get("host"), record.get("pid")) != (socket.gethostname(), os.getpid())
    if record["status"] == Status.DIVERGED:
        line = f"diverged at step {record['diverged_step']} after {record['wall_seconds']:.1f} s"
    else:
        line = f"done in {record['wall_seconds']:.1f} s, test error {record['metrics']['test_error']:.2%}"
    return Ended(
        True,
        line + (f", trained by process {record.get('pid')} on {record.get('host')}" if elsewhere else ""),
        elsewhere,
    )


def _name(config: RunConfig) -> str:
    model = config.model
    return (
        f"{model.family}-{model.depth} {model.activation} init={model.init} norm={model.norm} skip={model.skip} "
        f"seed={config.seed}"
    )
