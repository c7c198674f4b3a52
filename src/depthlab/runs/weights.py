"""The last weights of a run, kept beside its readings where somebody wants them, those of files, and torchvision's.

A kept file is one of torch behind a line with its checksum, like a checkpoint. Loading weights executes nothing.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from depthlab import data, nets
from depthlab.runs.progress import tell
from depthlab.runs.store import Run, StoreError, replacing

NAME = "weights.pt"
MAGIC = b"depthlab weights sha256 "


@dataclass(frozen=True, eq=False)
class Weights:
    """A state dict, and where it is from: the run's key or the file's name, and the checksum of the content."""

    state: Mapping[str, Tensor]
    origin: str
    sha256: str


def keep(run: Run, state: Mapping[str, Tensor]) -> None:
    """Writes weights into a run's directory. Raises StoreError on a full disk."""
    content = io.BytesIO()
    torch.save({"key": run.key, "weights": dict(state)}, content)
    payload = content.getvalue()
    with replacing(run.folder / NAME) as temporary:
        temporary.write_bytes(MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload)


def are_kept(run: Run) -> bool:
    """Whether a run's directory has its weights, whole or not."""
    return (run.folder / NAME).is_file()


def kept(run: Run) -> Weights | None:
    """The weights that a run's directory has; None if it has none, or damaged ones, which are told and deleted."""
    path = run.folder / NAME
    if not path.is_file():
        return None
    line, _, payload = _bytes(path).partition(b"\n")
    sha256 = hashlib.sha256(payload).hexdigest()
    if line == MAGIC + sha256.encode():
        found = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        if found["key"] == run.key:
            return Weights(found["weights"], f"run {run.key}", sha256)
    tell(f"{path} is damaged or another run's: deleted")
    path.unlink()
    return None


def in_file(path: Path, sha256: str) -> Weights:
    """The state dict of a file that was written with torch.save, or that `keep` wrote.

    Raises StoreError if the file is missing, has another checksum or holds anything but tensors by name.
    """
    content = _bytes(path)
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise StoreError(
            f"{path} has the checksum {found}, not {sha256}: it is another file than the run was declared with; "
            f"find that one, or declare the run with sha256:{found}"
        )
    return Weights(_state(content, path), str(path), sha256)


def of_torchvision(architecture: str, name: str) -> Weights:
    """The weights of that name that torchvision has for an architecture, downloaded if they are not there.

    ConfigError if torchvision does not know the one or the other, DataError if the file cannot be had or is damaged,
    StoreError if it holds no state dict.
    """
    path, content = data.pretrained_file(nets.weights_url(architecture, name))
    origin = f"torchvision {architecture} {name}"
    return Weights(_state(content, path), origin, hashlib.sha256(content).hexdigest())


def _state(content: bytes, path: Path) -> Mapping[str, Tensor]:
    """The state dict in the content of a file."""
    payload = content.partition(b"\n")[2] if content.startswith(MAGIC) else content
    try:
        state: Any = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise StoreError(
            f"{path} holds no weights that can be loaded without executing what is in it; write it anew with "
            f"torch.save(model.state_dict(), PATH)"
        ) from error
    if isinstance(state, dict) and "weights" in state:
        state = state["weights"]
    if not isinstance(state, dict) or not all(isinstance(each, Tensor) for each in state.values()):
        raise StoreError(f"{path} holds no state dict; write it anew with torch.save(model.state_dict(), PATH)")
    return state


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(
            f"{path} cannot be read: {error.strerror}; give transfer.source a file that is there"
        ) from error
