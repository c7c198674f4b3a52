"""joblib's processes (loky) on this machine."""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import joblib
from joblib.externals.loky import get_reusable_executor
from joblib.externals.loky.process_executor import BrokenProcessPool

from depthlab.config import RunConfig
from depthlab.runs.engines.job import Job, Result
from depthlab.runs.interrupts import Stopped, interrupts_ignored
from depthlab.runs.progress import tell
from depthlab.runs.store import DiskFullError, Run, Status, StoreError
from depthlab.runs.workers import ASK_AGAIN_AFTER, REFRESH_EVERY, Workers

Ended = queue.SimpleQueue[tuple[int, Result] | BaseException | None]
"""Number and result of runs as they end; an error of joblib's; None when there is nothing more to come."""

TIDIED_WITHIN = 10.0
"""Seconds that joblib has for it, once its processes are gone, which take it a few hundredths."""


class Joblib(Workers):
    """A pool of joblib's. When one process is killed, joblib gives up all that is left, which is then started again."""

    def _train(self, configs: Sequence[RunConfig], count: int, wait_for_others: bool) -> list[RunConfig]:
        if not configs:
            return []
        ended: Ended = queue.SimpleQueue()
        started = threading.Event()
        # joblib waits inside a generator, where Ctrl-C would have it kill its processes: it waits in another thread
        jobs = [self._job(config, wait_for_others) for config in configs]
        feeding = threading.Thread(target=_feed, args=(jobs, count, ended, started), daemon=True)
        left = dict(enumerate(configs))
        try:
            with interrupts_ignored():
                feeding.start()
                started.wait()
            while (item := self._next(ended)) is not None:
                if isinstance(item, BaseException):
                    raise item
                number, result = item
                self._take(configs[number], result)
                del left[number]
        except (KeyboardInterrupt, DiskFullError):
            self._save_all(configs)
            raise
        finally:
            get_reusable_executor(reuse=True, kill_workers=True).shutdown(kill_workers=True)
            if feeding.is_alive():  # joblib tidies up in there; where Python ends meanwhile, its exit hook does so too
                feeding.join(TIDIED_WITHIN)
        return list(left.values())

    def _save_all(self, configs: Sequence[RunConfig]) -> None:
        """Has all runs saved. Their processes stay: joblib kills all of them as soon as one of them ends."""
        tell("stopping: each run finishes its update and is saved; Ctrl-C again ends them at once")
        with suppress(KeyboardInterrupt):
            while running := [run for run in map(Run.of, configs) if _is_running(run)]:
                for run in running:
                    with suppress(KeyError, ProcessLookupError):
                        os.kill(run.record()["pid"], signal.SIGTERM)
                time.sleep(ASK_AGAIN_AFTER)

    def _next(self, ended: Ended) -> Any:
        """What ends next; until then, the bar goes on."""
        while True:
            try:
                return ended.get(timeout=REFRESH_EVERY)
            except queue.Empty:
                self._look()


def _feed(jobs: Sequence[Job], count: int, ended: Ended, started: threading.Event) -> None:
    # with one worker joblib would use this very process: there are two, and pre_dispatch says how many have work
    parallel = joblib.Parallel(
        n_jobs=max(count, 2), pre_dispatch=count, batch_size=1, backend="loky", return_as="generator_unordered"
    )
    try:
        results = parallel(joblib.delayed(_train_one)(number, job, os.getpid()) for number, job in enumerate(jobs))
        started.set()
        for item in results:
            ended.put(item)
    except BrokenProcessPool:
        pass  # a process was killed: what has not ended is left
    except BaseException as error:  # it is raised where somebody waits
        ended.put(error)
    finally:
        started.set()
        ended.put(None)


def _train_one(number: int, job: Job, parent: int) -> tuple[int, Result]:
    """In a worker: the run of that number."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent answers it, with SIGTERM
    if not any(thread.name == _end_with.__name__ for thread in threading.enumerate()):
        threading.Thread(target=_end_with, args=[parent], name=_end_with.__name__, daemon=True).start()
    try:
        return number, job.train()
    except Stopped:
        signal.pause()  # this worker is to train no other run, nor to end before the others have saved theirs
        raise


def _is_running(run: Run) -> bool:
    with suppress(StoreError):
        return run.status() is Status.RUNNING and run.record().get("host") == socket.gethostname()
    return False


def _end_with(parent: int) -> None:
    """Ends this worker when its parent was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
