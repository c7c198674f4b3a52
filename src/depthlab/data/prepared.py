"""The prepared form of a data set: one .npz of plain arrays, checked when it is read, written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from depthlab.config import DATASETS, DatasetFacts

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")


class DataError(RuntimeError):
    """A data set that cannot be had: says which file or folder is wrong, and what to do."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A data set as it lies in its file.

    Images are uint8 (n, h, w) or (n, h, w, 3), labels integers (n,); classes are the names, by label.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...]


def data_root() -> Path:
    """The folder of the data sets: $DEPTHLAB_DATA, or a folder in the user's cache. It need not exist."""
    given = os.environ.get("DEPTHLAB_DATA")
    if given:
        return Path(given).expanduser()
    import platformdirs  # noqa: PLC0415

    return platformdirs.user_cache_path("depthlab") / "data"


def read_prepared(name: str) -> Prepared:
    path = data_root() / f"{name}.npz"
    with np.load(path, allow_pickle=False) as file:
        return Prepared(*(file[key] for key in KEYS[:-1]), classes=tuple(map(str, file["classes"])))
