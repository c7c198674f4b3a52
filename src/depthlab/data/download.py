"""Data sets that torchvision downloads and verifies, converted once into the prepared form."""

from __future__ import annotations

import contextlib
import errno
import http.client
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from depthlab._torchvision import import_torchvision
from depthlab.data.prepared import DataError, Prepared, data_root, write_prepared

SOURCES = {
    "mnist": ("MNIST", ("MNIST/raw/*.gz",)),
    "fashion_mnist": ("FashionMNIST", ("FashionMNIST/raw/*.gz",)),
    "cifar10": ("CIFAR10", ("cifar-10-python.tar.gz", "cifar-10-batches-py/*")),
    "cifar100": ("CIFAR100", ("cifar-100-python.tar.gz", "cifar-100-python/*")),
}
"""torchvision's class, and its files below a root: those that it verifies (the unpacked ones of MNIST it trusts)."""

PATIENCE = 15.0
"""Seconds without an answer from a server after which it is given up."""

NO_ANSWER = (RuntimeError, OSError, http.client.HTTPException)
"""What is raised where a file cannot be downloaded, or is another one than it should be."""

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def prepared_file(name: str) -> Path:
    """<name>.npz below the data root; if there is none, it is made from what torchvision has or downloads.

    It appears whole or not at all, whatever goes wrong, and processes that need it at the same time make it once.
    DataError if torchvision's files can neither be found nor downloaded, or the folder cannot be written to.
    """
    root = data_root()
    path = root / f"{name}.npz"
    with folder_faults(root, name):
        if not path.exists():
            root.mkdir(parents=True, exist_ok=True)
            _convert(name, root, path)
    return path


def _convert(name: str, root: Path, path: Path) -> None:
    from filelock import FileLock  # noqa: PLC0415 - for the first use of a data set only

    # All that is half done lies in the temporary folder, which goes even when Ctrl-C stops us. It comes before the
    # lock because it fails at once in a folder where nothing can be made, while the lock may wait for ever.
    with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=root) as folder, FileLock(root / f".{name}.lock"):
        if path.exists():  # another process made it while this one waited
            return
        work = Path(folder)
        found = _copy_downloads(name, root, work)
        try:
            prepared = read_torchvision(name, work)
        except ImportError as error:
            raise DataError(f"{error}\nor copy a prepared {path.name} to {path}") from None
        except NO_ANSWER as error:
            if is_of_the_folder(error):
                raise
            raise _no_download(name, path, found, error) from None
        write_prepared(work / path.name, prepared)
        (work / path.name).replace(path)


def read_torchvision(name: str, root: Path) -> Prepared:
    """The data set from torchvision's files below root, which are downloaded if they are not there, and verified."""
    source = getattr(import_torchvision().datasets, SOURCES[name][0])
    with patience():
        train, test = (source(root, train=part, download=True) for part in (True, False))
    # torchvision calls the classes of MNIST "0 - zero".
    classes = tuple(word.split(" - ")[0] for word in train.classes)
    return Prepared(*_arrays(train), *_arrays(test), classes)


def _arrays(part: Any) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    return np.asarray(part.data), np.asarray(part.targets, dtype=np.int64)


def _copy_downloads(name: str, root: Path, work: Path) -> list[Path]:
    """What an earlier torchvision left below root, copied: torchvision unpacks beside it and replaces bad files."""
    found = [file for pattern in SOURCES[name][1] for file in root.glob(pattern)]
    for file in found:
        target = work / file.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return found


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """What is downloaded meanwhile is given up after PATIENCE seconds without an answer."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE)  # torchvision sets none, and would wait for minutes
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _no_download(name: str, path: Path, found: list[Path], error: Exception) -> DataError:
    reason = str(error).strip().splitlines()[-1]
    copy = f"; the copy in {found[0].parent} is incomplete or damaged" if found else ""
    return DataError(
        f"{name} could not be downloaded ({reason}){copy}\n"
        f"connect to a network and run again, or copy a prepared {path.name} to {path}"
    )


def is_of_the_folder(error: Exception) -> bool:
    """Whether the disk or a folder is at fault, and no network."""
    return isinstance(error, OSError) and error.errno in NO_SPACE | NO_ACCESS


@contextlib.contextmanager
def folder_faults(root: Path, name: str) -> Iterator[None]:
    """Turns what the file system refuses into a DataError."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            advice = f"there is no room for {name}; free some space"
        else:
            advice = "the folder of the data sets cannot be used; give this account access to it"
        place = error.filename or root
        raise DataError(
            f"{place}: {error.strerror or error}\n{advice}, or set DEPTHLAB_DATA to another folder"
        ) from None
