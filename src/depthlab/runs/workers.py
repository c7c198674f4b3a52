"""The processes of a sweep."""

from __future__ import annotations

import multiprocessing
import multiprocessing.process
import os
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch

from depthlab import _processes
from depthlab.config import RunConfig, SweepConfig
from depthlab.runs.engines.engine import Engine
from depthlab.runs.engines.job import Ended, Result, train
from depthlab.runs.interrupts import Stopped, obey_once
from depthlab.runs.locks import HeldError, LeaseLostError
from depthlab.runs.progress import tell
from depthlab.runs.store import DiskFullError, Run, Status, runs_root
from depthlab.training import prepare_process, resolve_device

REFRESH_EVERY = 0.5
"""Seconds between looks at how far the runs are."""

ASK_AGAIN_AFTER = 1.0
"""Seconds after which a worker that has not ended is asked to once more."""

LOCK_LOST_AFTER = 0.01
"""Seconds after which the lock of the count is not to be had; it is held for a few microseconds."""

_steps: Synchronized[int] | None = None
"""In a worker: the updates of all runs of the sweep."""

_launch = SweepConfig()
"""In a worker: how often runs are saved, and what of them is kept."""


class Workers(Engine):
    """A pool of processes on this machine.

    One process that dies takes the others of its pool with it. What was being trained is then trained again, each run
    alone, which tells the run that kills its process from those that only stood beside it.
    """

    def _train_until_none_is_left(self, configs: Sequence[RunConfig], *, wait: bool) -> None:
        while left := self._train(configs, self._count, wait):
            states = {config: Run.of(config).status() for config in left}
            suspects = [config for config, state in states.items() if state is Status.INTERRUPTED]
            alive = [config for config, state in states.items() if state is Status.RUNNING]
            self._held += alive  # about to end, like those that were forked from a process that was killed
            for suspect in suspects:
                if self._train([suspect], 1, wait):
                    self._tell(suspect, False, "failed: its process was killed, perhaps for want of memory")
            configs = [config for config in left if config not in (*suspects, *alive)]
            if len(configs) == len(left):
                for config in configs:
                    self._tell(config, False, "failed: its process was killed before it could begin")
                return

    def _train(self, configs: Sequence[RunConfig], count: int, wait_for_others: bool) -> list[RunConfig]:
        """Trains runs in a pool of so many processes, and returns those that are left when one of these has died."""
        if not configs:
            return []
        others = set(multiprocessing.active_children())
        device = resolve_device(self._device)
        _processes.warm_up()
        pool = ProcessPoolExecutor(
            count,
            mp_context=_processes.context(),
            initializer=_prepare_worker,
            initargs=(dict(os.environ), self._threads, self._progress.steps, self._launch),
        )
        left = dict.fromkeys(configs)
        try:
            with _processes.signals_deferred():
                futures = {
                    pool.submit(_train_one, config, runs_root(), device, wait_for_others): config for config in configs
                }
            pending = set(futures)
            while pending:
                ended, pending = wait(pending, timeout=REFRESH_EVERY, return_when=FIRST_COMPLETED)
                for future in ended:
                    self._take(futures[future], _result(future))
                    del left[futures[future]]
                self._progress.refresh()
        except (BrokenProcessPool, EOFError, ConnectionError):
            pass  # a worker was killed, or the process that they are forked from just when one was to start
        except (KeyboardInterrupt, DiskFullError):
            stop(list(set(multiprocessing.active_children()) - others))
            raise
        finally:
            pool.shutdown(cancel_futures=True)
        return list(left)


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


def _result(future: Future[Ended]) -> Result:
    try:
        return future.result()
    except (HeldError, LeaseLostError) as error:
        return error


def _prepare_worker(
    environment: Mapping[str, str], threads: int, steps: Synchronized[int], launch: SweepConfig
) -> None:
    global _steps, _launch
    _steps, _launch = steps, launch
    prepare_worker(threads)
    _processes.settle(environment)


def prepare_worker(threads: int) -> None:
    """What every worker does first: it leaves Ctrl-C to its parent, and does not outlive it."""
    obey_once()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare_process(threads)


def _end_with_parent() -> None:
    """Ends this worker when its parent was killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


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
        ended = train(
            config,
            root,
            device,
            progress=count,
            checkpoint_seconds=_launch.checkpoint_seconds,
            wait=wait_for_others,
            keep_weights=_launch.keep_weights,
        )
    except Stopped:
        os._exit(0)  # this worker is to train no other run
    except (HeldError, LeaseLostError):
        count(0)  # its updates are still to come
        raise
    count(config.train.steps)
    return ended
