"""Where a study is kept: a file of SQLite, which one process at a time may speak to.

SQLite is not made for several writers; who speaks to it holds `study.lock` while it does.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import optuna
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from depthlab.runs import StoreError, writing


class Database:
    """The database in a folder, made if it is not there. Raises StoreError if it cannot be used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(folder / "study.lock")
        with self.speaking():
            self.storage = optuna.storages.RDBStorage(
                _url(folder / "study.db"), engine_kwargs={"connect_args": {"factory": _Connection}}
            )

    def close(self) -> None:
        """Lets go of the file."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """The database, to this process alone. Raises StoreError where it cannot be read or written."""
        with writing(self.folder):
            self._lock.acquire()
        try:
            yield
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise StoreError(
                f"{self.folder / 'study.db'} cannot be used: {reason}; make room or give access there, or begin "
                f"another study with --name"
            ) from error
        finally:
            self._lock.release()


class _Connection(sqlite3.Connection):
    """Waits for the disk when SQLite's log is full, and not at each of the twenty writes that a trial makes."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.execute("PRAGMA journal_mode=WAL").close()
        self.execute("PRAGMA synchronous=NORMAL").close()


def _url(path: Path) -> str:
    """SQLite's address of a file; Optuna fills in what stands in braces."""
    url = URL.create("sqlite", database=str(path)).render_as_string()
    return url.replace("{", "{{").replace("}", "}}")
