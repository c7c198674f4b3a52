"""Who trains a run: a lease on a lock file, which a holder renews and which others take over when it is not renewed.

The lock is a file that is created exclusively, which holds on network file systems too. The holder touches it from a
thread of its own, BEATS times in a lease. A holder on this host that is gone is known at once, by its process number
and start time; one on another host, when the file has not changed for LEASE seconds of the waiting process's own clock,
whatever the clocks of the two hosts say. A holder that was only suspended finds out, and stops without writing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from depthlab.runs.progress import tell

LEASE = 120.0
"""Seconds without a sign of life after which a lock is taken over. All who share a folder must agree on it."""

BEATS = 6
"""Signs of life in a lease. Network file systems may show one up to a minute late."""

BREAK_AFTER = 1.5
"""Leases after which a lock is deleted that could not be taken over: NFS has no exchange of two files' names."""

SILENT_FOR = 1.0
"""Seconds for which a lock is waited for without a word."""

POLL_EVERY = 0.5


class HeldError(RuntimeError):
    """Another process trains the run at this moment."""


class LeaseLostError(RuntimeError):
    """Another process has taken the run over, since this one gave no sign of life for so long."""


class Lease:
    """A lock that is held."""

    def __init__(self, lock: filelock.SoftFileLease) -> None:
        self._lock = lock

    def check(self) -> None:
        """Raises LeaseLostError if the lock is another's by now: this process must not write any more."""
        if self._lock.compromise is not None:
            raise LeaseLostError(
                f"{self._lock.lock_file} was taken over by another process, which goes on with the run"
            )


@contextmanager
def held(path: Path, *, wait: bool = True) -> Iterator[Lease]:
    """Holds the lock `path`, for which its folder must exist.

    wait: whether to wait for whoever has it; HeldError is raised at once otherwise.
    """
    lock = _lease(path)
    try:
        lock.acquire(timeout=SILENT_FOR if wait else 0, poll_interval=POLL_EVERY / 10)
    except filelock.Timeout:
        if not wait:
            raise HeldError(f"{path} is held by {_holder(lock)}") from None
        tell(f"waiting for {path}, held by {_holder(lock)}; it is taken over {LEASE:.0f} s after its last sign of life")
        _acquire(lock, path)
    try:
        yield Lease(lock)
    finally:
        lock.release()


def is_alive(path: Path) -> bool:
    """Whether the lock is there and was renewed within the last lease, as far as the clocks of the hosts agree."""
    try:
        return time.time() - path.stat().st_mtime < LEASE
    except OSError:
        return False


def is_held(path: Path) -> bool:
    """Whether a process that is alive holds the lock."""
    try:
        with held(path, wait=False):
            return False
    except HeldError:
        return is_alive(path)


def _lease(path: Path) -> filelock.SoftFileLease:
    return filelock.SoftFileLease(path, lease_duration=LEASE, heartbeat_interval=LEASE / BEATS)


def _acquire(lock: filelock.SoftFileLease, path: Path) -> None:
    seen, since = _mark(path), time.monotonic()
    while True:
        with suppress(filelock.Timeout):
            lock.acquire(timeout=POLL_EVERY * 4, poll_interval=POLL_EVERY)
            return
        if (now := _mark(path)) != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > BREAK_AFTER * LEASE and _mark(path) == seen:
            lock.force_break()


def _mark(path: Path) -> tuple[int, int, int] | None:
    """What changes whenever the lock is renewed or another's."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_ctime_ns


def _holder(lock: filelock.SoftFileLease) -> str:
    owner = lock.owner
    return "a process that is unknown" if owner is None else f"process {owner.pid} on {owner.hostname}"
