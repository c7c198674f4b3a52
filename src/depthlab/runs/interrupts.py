"""Ctrl-C and the signals of schedulers: the first asks a run to stop where it can go on later, the second ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar

from depthlab._processes import STOPPING


class Stop:
    """Whether somebody has asked to stop. `asked` may be read at every step, and set: then `by` stays None."""

    has_master: ClassVar[bool] = False

    def __init__(self) -> None:
        self.asked = False
        self.by: signal.Signals | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        """The handler of the signals."""
        if self.asked and not self.has_master:
            raise KeyboardInterrupt
        self.asked, self.by = True, signal.Signals(number)


def obey_once() -> None:
    """In a worker or a job: a second of these signals changes nothing from now on.

    It may be asked twice, by a scheduler and by who started it; what ends it at once is their SIGKILL.
    """
    Stop.has_master = True


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop, by this signal, has stopped, and can go on from where it is."""

    def __init__(self, where: str = "", by: signal.Signals | None = None) -> None:
        super().__init__(where)
        self.by = by


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
