"""The store: one directory for each run, named by its key, from which alone the run's state is known.

    <results>/runs/<key>/config.yaml        the whole configuration
                         run.json           status, times, provenance; written last when a run ends
                         readings.parquet   the long table: step, layer, depth, probe, value
                         weights.pt             the last weights, where a run is a source or they were asked for
                         error.txt          traceback of a run that failed
                         checkpoint-*.pt    while it is trained, and after an interruption: what it goes on from
                         lock               there while a process trains the run

Files are written beside their place and renamed into it, so that none is ever half there.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import yaml
from pyarrow.parquet import ParquetFile

from depthlab.config import RunConfig, from_mapping, to_mapping
from depthlab.runs.locks import Lease, held, is_alive, is_held

YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""That of libyaml, ten times as fast, where PyYAML was built with it."""

COLUMNS = {"step": "int64", "layer": "str", "depth": "int64", "probe": "str", "value": "float64"}


class StoreError(RuntimeError):
    """A run directory that cannot be read or written: names the file and says what to do."""


class DiskFullError(StoreError):
    """There is no space left for results: no run can be stored, and a sweep stops."""


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


REQUIRED: dict[str, tuple[str, ...]] = {
    Status.RUNNING: ("host", "pid"),
    Status.INTERRUPTED: (),
    Status.FAILED: ("error",),
    Status.DIVERGED: ("diverged_step", "wall_seconds"),
    Status.DONE: ("steps", "metrics", "wall_seconds"),
}
"""What run.json holds besides provenance, by its status."""


def results_root() -> Path:
    """Where results are kept: $DEPTHLAB_RESULTS, or `results` in the working directory."""
    return Path(os.environ.get("DEPTHLAB_RESULTS") or "results").expanduser().absolute()


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

    def status(self, record: Mapping[str, Any] | None = None) -> Status:
        """Derived from the directory; a run whose process is gone is interrupted. record: run.json, if read."""
        record = self.record() if record is None else record
        if not record:
            return Status.MISSING
        status = Status(record["status"])
        if status is Status.RUNNING and (_is_gone(record) or not is_alive(self.folder / "lock")):
            return Status.INTERRUPTED
        return status

    def record(self) -> dict[str, Any]:
        """What run.json says; empty if there is none. Raises StoreError if it cannot be read."""
        path = self.folder / "run.json"
        try:
            found = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return {}
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}; give this account access to it") from None
        except ValueError:
            found = None
        if not _is_whole(found):
            raise StoreError(f"{path} is damaged; delete {self.folder} and train the run again")
        return dict(found)

    def config(self) -> RunConfig | None:
        """The configuration that the directory holds; None if it holds none that can be read."""
        try:
            return from_mapping(yaml.load((self.folder / "config.yaml").read_text(), Loader=YAML_LOADER))
        except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError):
            return None

    def readings(self) -> pd.DataFrame:
        """The long table: step, layer, depth, probe, value."""
        table: pd.DataFrame = self.arrow().to_pandas()
        return table

    def arrow(self) -> pa.Table:
        """The same as Arrow has it: those of a thousand runs are joined before pandas sees them, not one by one."""
        path = self.folder / "readings.parquet"
        try:
            with ParquetFile(pa.BufferReader(path.read_bytes())) as file:
                return file.read(use_threads=False)  # a few kilobytes: threads only cost
        except (OSError, ValueError):
            raise StoreError(f"{path} is missing or damaged; delete {self.folder} and train the run again") from None

    @contextmanager
    def locked(self, *, wait: bool = True) -> Iterator[Lease]:
        """Holds the run's lock, that of a process gone too; waits for one that is alive, or raises HeldError."""
        with ExitStack() as stack:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                lease = stack.enter_context(held(self.folder / "lock", wait=wait))
            yield lease

    def is_locked(self) -> bool:
        """Whether a process that is alive trains the run."""
        return is_held(self.folder / "lock")

    def begin(self, config: RunConfig, record: dict[str, Any]) -> None:
        """Notes that a process trains the run from now on: its host and pid are in the record."""
        self._replace("config.yaml", yaml.safe_dump(to_mapping(config), sort_keys=False))
        (self.folder / "error.txt").unlink(missing_ok=True)
        for half_written in self.folder.glob(".*"):  # by a process that was killed before it could rename it
            half_written.unlink(missing_ok=True)
        self._write_record({"status": Status.RUNNING, **record})

    def end(self, readings: pd.DataFrame, record: dict[str, Any]) -> None:
        """Notes a result: the readings first, so that a run that is finished has them."""
        with replacing(self.folder / "readings.parquet") as temporary:
            readings.astype(COLUMNS).to_parquet(temporary, index=False)
        self._write_record(record)

    def end_early(self, record: dict[str, Any], trace: str | None) -> None:
        """Notes that the run was interrupted or, with a traceback, that it failed; on a full disk as far as it can."""
        with suppress(StoreError):
            if trace is not None:
                self._replace("error.txt", trace)
            self._write_record(record)

    def _write_record(self, record: dict[str, Any]) -> None:
        self._replace("run.json", json.dumps(record, indent=2, allow_nan=False) + "\n")

    def _replace(self, name: str, text: str) -> None:
        with replacing(self.folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Tells faults of the disk that happen inside as a StoreError: no space, no access, no such folder."""
    try:
        yield
    except OSError as error:
        kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StoreError
        raise kind(
            f"cannot write {path}: {error.strerror or error}; make room or give access there, or set DEPTHLAB_RESULTS"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, renamed to its place when all of it is on the disk: a reader sees all of it, or the old one."""
    with writing(path):
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


def _is_whole(record: Any) -> bool:
    status = record.get("status") if isinstance(record, dict) else None
    return isinstance(status, str) and status in REQUIRED and all(name in record for name in REQUIRED[status])


def _is_gone(record: Mapping[str, Any]) -> bool:
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
