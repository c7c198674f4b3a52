"""The store: one directory for each run, named by its key, from which alone the run's state is known.

    <results>/runs/<key>/config.yaml        the whole configuration
                         run.json           status, times, provenance; written last when a run ends
                         readings.parquet   the long table: step, layer, depth, probe, value
                         error.txt          traceback of a run that failed
                         lock               there while a process trains the run

Files are written beside their place and renamed into it, so that none is ever half there.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import filelock
import pandas as pd
import yaml

from depthlab.config import RunConfig, to_mapping

COLUMNS = {"step": "int64", "layer": "str", "depth": "int64", "probe": "str", "value": "float64"}


class StoreError(RuntimeError):
    """A run directory that cannot be read or written: names the file and says what to do."""


class Status(StrEnum):
    """State of a run."""

    MISSING = "missing"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DIVERGED = "diverged"
    DONE = "done"

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train. A run that diverged is a result."""
        return self in (Status.DONE, Status.DIVERGED)


def results_root() -> Path:
    """Where results are kept: $DEPTHLAB_RESULTS, or `results` in the working directory."""
    return Path(os.environ.get("DEPTHLAB_RESULTS") or "results").absolute()


def runs_root() -> Path:
    """Where the run directories are."""
    return results_root() / "runs"


@dataclass(frozen=True)
class Run:
    """A run's directory."""

    folder: Path

    @classmethod
    def of(cls, config: RunConfig, root: Path | None = None) -> Run:
        """The directory of a configuration, whether it is there or not."""
        return cls((root or runs_root()) / config.key())

    @property
    def key(self) -> str:
        """The run's name."""
        return self.folder.name

    def status(self) -> Status:
        """Derived from the directory; a run whose process is gone is interrupted."""
        record = self.record()
        if not record:
            return Status.MISSING
        status = Status(record["status"])
        if status is Status.RUNNING and _is_gone(record):
            return Status.INTERRUPTED
        return status

    def record(self) -> dict[str, Any]:
        """What run.json says; empty if there is none. Raises StoreError if it cannot be read."""
        path = self.folder / "run.json"
        try:
            found = json.loads(path.read_text())
            Status(found["status"])
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError):
            raise StoreError(f"{path} is damaged; delete {self.folder} and train the run again") from None
        return dict(found)

    def readings(self) -> pd.DataFrame:
        """The long table: step, layer, depth, probe, value."""
        path = self.folder / "readings.parquet"
        try:
            return pd.read_parquet(path)
        except (OSError, ValueError):
            raise StoreError(f"{path} is missing or damaged; delete {self.folder} and train the run again") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run's lock; waits for whoever holds it. The lock of a process that is gone is taken over.

        An existence lock, not flock: it holds on network file systems too.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with filelock.SoftFileLock(self.folder / "lock"):
            yield

    def begin(self, config: RunConfig, record: dict[str, Any]) -> None:
        """Notes that this process trains the run from now on."""
        write_atomically(self.folder / "config.yaml", yaml.safe_dump(to_mapping(config), sort_keys=False).encode())
        (self.folder / "error.txt").unlink(missing_ok=True)
        self.write_record({"status": Status.RUNNING, "host": socket.gethostname(), "pid": os.getpid(), **record})

    def write_record(self, record: dict[str, Any]) -> None:
        """Replaces run.json."""
        write_atomically(self.folder / "run.json", (json.dumps(record, indent=2) + "\n").encode())

    def write_readings(self, readings: pd.DataFrame) -> None:
        """Replaces readings.parquet."""
        with _replacing(self.folder / "readings.parquet") as temporary:
            readings.astype(COLUMNS).to_parquet(temporary, index=False)


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that a reader sees all of it or what was there before."""
    with _replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_gone(record: dict[str, Any]) -> bool:
    """Whether the process that trained the run has ended; of another host's nothing is known."""
    if record.get("host") != socket.gethostname():
        return False
    try:
        os.kill(int(record["pid"]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
