"""Where a run is, on disk: what it needs to go on after its process was lost, to the bit.

A checkpoint is a file of torch, behind a line with its checksum; loading one executes nothing that is in it. The last
two are kept, so that one that is damaged does not cost the run.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import time
from pathlib import Path
from typing import Any

import torch

from depthlab.config import PROTOCOL
from depthlab.runs.progress import tell
from depthlab.runs.store import Run, StoreError, replacing

KEPT = 2
PATTERN = "checkpoint-*.pt"
LEFT_BEHIND = (PATTERN, "checkpoint-*.damaged", ".checkpoint-*")
"""All there may be; the last is of a process that was killed while it wrote one."""

MAGIC = b"depthlab checkpoint sha256 "
FORMAT = 1
"""Raise it whenever what a checkpoint holds changes: one of another format is not used."""


def saved_steps(run: Run) -> int:
    """Updates that a run's newest checkpoint holds, as its name says; 0 if there is none."""
    return max((int(path.stem.rpartition("-")[2]) for path in run.folder.glob(PATTERN)), default=0)


class Checkpoints:
    """The checkpoints of one run. every: seconds from one to the next; 0: only when asked to stop."""

    def __init__(self, run: Run, every: float) -> None:
        self._run, self._every = run, every
        self._last = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time for the next one."""
        return self._every > 0 and time.monotonic() - self._last >= self._every

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Writes the state after `step` updates: tensors, numbers and text in lists and dicts.

        Raises StoreError on a full disk.
        """
        content = io.BytesIO()
        identity = {"key": self._run.key, "protocol": PROTOCOL, "format": FORMAT}
        torch.save({**identity, "step": step, **state}, content)
        payload = content.getvalue()
        line = MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n"
        with replacing(self._run.folder / f"checkpoint-{step:09d}.pt") as temporary:
            temporary.write_bytes(line + payload)
        for old in self._files()[KEPT:]:
            old.unlink(missing_ok=True)
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The newest state that is whole; those that are not are told and set aside. None if there is none."""
        for path in self._files():
            state = self._read(path)
            if state is not None:
                return state
            path.replace(path.with_suffix(".damaged"))
            tell(
                f"{path} is damaged or of another version: set aside as {path.stem}.damaged; going on from the one "
                f"before it, if there is one"
            )
        return None

    def remove(self) -> None:
        """Deletes all, for a run that is finished."""
        for pattern in LEFT_BEHIND:
            for path in self._run.folder.glob(pattern):
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return sorted(self._run.folder.glob(PATTERN), reverse=True)

    def _read(self, path: Path) -> dict[str, Any] | None:
        try:
            line, _, payload = path.read_bytes().partition(b"\n")
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror}; give this account access to it") from error
        if line != MAGIC + hashlib.sha256(payload).hexdigest().encode():
            return None
        try:
            state = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
            return None
        identity = {"key": self._run.key, "protocol": PROTOCOL, "format": FORMAT}
        is_own = isinstance(state, dict) and all(state.get(name) == value for name, value in identity.items())
        return state if is_own else None
