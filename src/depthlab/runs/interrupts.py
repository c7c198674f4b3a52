"""Ctrl-C and the signals of schedulers: the first asks a run to stop where it can go on later, the second ends it."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))
"""Ctrl-C, what ends a job, and what Slurm sends before its time is up (--signal=USR1@60)."""


class Stop:
    """Whether somebody has asked to stop. `asked` may be read at every step, and set: then `by` stays None."""

    def __init__(self) -> None:
        self.asked = False
        self.by: signal.Signals | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """The handler of the signals."""
        # a worker may be asked twice, by a scheduler and by its parent; what ends it at once is its parent's SIGKILL
        if self.asked and multiprocessing.parent_process() is None:
            raise KeyboardInterrupt
        self.asked, self.by = True, signal.Signals(number)


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop has stopped, and can go on from where it is."""


@contextmanager
def stopping_politely(stop: Stop | None = None) -> Iterator[Stop]:
    """Turns the first of these signals into `Stop.asked`; the second raises KeyboardInterrupt, wherever it comes."""
    stop = stop or Stop()
    with _handling(stop):
        yield stop


@contextmanager
def interrupted_by_all() -> Iterator[None]:
    """Makes each of these signals raise KeyboardInterrupt, as Ctrl-C does."""
    with _handling(_interrupt):
        yield


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Sets the handler of all that are not ignored; in a thread that is not the main one nothing can be set."""
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in STOPPING}
        before = {number: old for number, old in handlers.items() if old is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
