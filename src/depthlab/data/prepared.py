"""The prepared form of a data set: one .npz of plain arrays, checked when it is read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import platformdirs
from numpy.typing import NDArray

from depthlab.config import DATASETS, DatasetFacts
from depthlab.data.mapped import map_pixels

KEYS = ("train_images", "train_labels", "test_images", "test_labels", "classes")


class DataError(RuntimeError):
    """A data set that cannot be had: says which file or folder is wrong, and what to do."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """A data set as it lies in its file.

    Images are uint8 (n, h, w) or (n, h, w, channels), labels integers (n,); classes are the names, by label.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.integer[Any]]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.integer[Any]]
    classes: tuple[str, ...]


def data_root() -> Path:
    """The folder of the data sets: $DEPTHLAB_DATA, or a folder in the user's cache. It need not exist."""
    given = os.environ.get("DEPTHLAB_DATA")
    return Path(given).expanduser() if given else platformdirs.user_cache_path("depthlab") / "data"


def read_prepared(path: Path, name: str) -> Prepared:
    """The data set of that name, from its file.

    Images are mapped and not copied where the file stores them uncompressed: see `depthlab.data.mapped` for what must
    not be done to the file meanwhile. DataError if the file cannot be read, is damaged, or does not hold this data set.
    Nothing in it is executed: arrays of objects, which numpy stores as pickles, are refused.
    """
    try:
        # Opened here, as numpy leaves a damaged file open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {key: _array(key, stream, file) for key in KEYS}
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{path} cannot be read: {reason}; make it a file that this account may read") from None
    except Exception as error:  # a damaged file makes zipfile, zlib and numpy raise a dozen kinds
        raise _refused(path, name, f"is damaged or incomplete ({type(error).__name__}: {error})") from None
    if fault := next(find_faults(arrays, DATASETS[name]), None):
        raise _refused(path, name, f"is not a prepared {name}: {fault}")
    classes = tuple(str(word) for word in arrays.pop("classes"))
    return Prepared(**arrays, classes=classes)


def write_prepared(path: Path, prepared: Prepared) -> None:
    """The file that `read_prepared` reads. OSError if it cannot be written whole."""
    arrays = {key: getattr(prepared, key) for key in KEYS[:-1]}
    with path.open("wb") as file:
        np.savez(file, **arrays, classes=np.array(prepared.classes, dtype=np.str_))


def find_faults(arrays: Mapping[str, NDArray[Any]], facts: DatasetFacts) -> Iterator[str]:
    """Where arrays differ from what is known of the data set; those after the first may follow from it."""
    pixels = (facts.size, facts.size) + ((facts.channels,) if facts.channels > 1 else ())
    for part, count in (("train", facts.train), ("test", facts.test)):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.dtype != np.uint8:
            yield f"{part}_images are {images.dtype}, not uint8"
        if images.shape != (count, *pixels):
            yield f"{part}_images have shape {images.shape}, not {(count, *pixels)}"
        if not np.issubdtype(labels.dtype, np.integer):
            yield f"{part}_labels are {labels.dtype}, not integers"
        if labels.shape != (count,):
            yield f"{part}_labels have shape {labels.shape}, not {(count,)}"
        if labels.min() < 0 or labels.max() >= facts.classes:
            yield f"{part}_labels lie in {labels.min()}..{labels.max()}, not in 0..{facts.classes - 1}"
    classes = arrays["classes"]
    if classes.dtype.kind != "U" or classes.shape != (facts.classes,):
        yield f"classes are {classes.dtype} of shape {classes.shape}, not {facts.classes} words"


def _array(key: str, stream: BinaryIO, file: np.lib.npyio.NpzFile) -> NDArray[Any]:
    assert file.zip is not None
    mapped = map_pixels(stream, file.zip.getinfo(f"{key}.npy")) if key.endswith("_images") else None
    return file[key] if mapped is None else mapped


def _refused(path: Path, name: str, fault: str) -> DataError:
    return DataError(f"{path} {' '.join(fault.split())}\ndelete it and run again, or copy a good {name}.npz there")
