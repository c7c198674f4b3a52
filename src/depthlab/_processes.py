"""Processes: how they start warm, and which signals stop them.

A process that is to train is forked from one that has imported torch and has computed nothing. Importing torch takes
seconds, and longer where several do it at once; a fork takes milliseconds. No room of depthlab is imported here, so
that the process to be forked can start before this one imports torch itself.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Windows has but one of them
    from multiprocessing.context import ForkServerContext, SpawnContext

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
"""Ctrl-C, what ends a job, and what Slurm sends before its time is up: --signal=USR1@60, or submitit's own USR2."""

ARE_FORKED = sys.platform == "linux"
"""Windows cannot fork, and libraries of macOS do not survive it: there each process imports for itself."""

IMPORTED = ("depthlab.runs.workers",)
"""What the process to be forked imports."""

PRELOADED = "depthlab._forked"
"""The module that imports it."""


def context() -> ForkServerContext | SpawnContext:
    """What makes processes; the first of them waits until the one to be forked is ready."""
    if not ARE_FORKED:
        return multiprocessing.get_context("spawn")
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload([PRELOADED])
    return found


def warm_up() -> None:
    """Starts the process to be forked, if there is none: it imports beside this one, with which it ends.

    Signals that stop a sweep never come to it. A scheduler sends them to every process of a job, and without this one
    nobody would know whether the workers have ended.
    """
    if ARE_FORKED:
        from multiprocessing import forkserver, resource_tracker  # noqa: PLC0415 - Windows has none

        context()
        resource_tracker.ensure_running()  # whose start would end what is deferred
        with signals_deferred():
            forkserver.ensure_running()


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Signals that stop a sweep come when it is over; to processes that start inside, only after `settle`.

    Blocking them is for this thread and for those processes. The system then hands them to another thread, such as that
    of a progress bar, upon which Python calls the handler in the main thread all the same: so handlers wait as well.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    noted: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: old for number in STOPPING if callable(old := signal.getsignal(number))}
    try:
        for number in handlers:
            signal.signal(number, lambda came, _frame: noted.append(came))
        yield
    finally:
        for number, old in handlers.items():
            signal.signal(number, old)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        if noted:
            signal.raise_signal(noted[0])


def settle(environment: Mapping[str, str]) -> None:
    """In a new process: takes its parent's environment as it is now, and the signals that were deferred for it."""
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # looked for once, perhaps by the process that this one was forked from
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
