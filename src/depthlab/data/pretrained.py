"""Files of trained weights, downloaded once and checked against the checksum in their names."""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
import urllib.parse
from pathlib import Path

import torch

from depthlab.data.download import NO_ANSWER, folder_faults, is_of_the_folder, patience
from depthlab.data.prepared import DataError, data_root

FOLDER = "torchvision"
"""Where the files lie below the root of the data sets."""

CHECKSUM = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")
"""The end of a file's name that tells the first digits of its sha256, as PyTorch names files of weights."""


def pretrained_file(url: str) -> tuple[Path, bytes]:
    """The file of that address in the folder torchvision below the data root, and its content; downloaded if missing.

    It appears whole or not at all, whatever goes wrong, and processes that need it at the same time download it once.
    DataError if it can neither be found nor downloaded, or its sha256 does not begin as its name says.
    """
    name = Path(urllib.parse.urlparse(url).path).name
    path, expected = data_root() / FOLDER / name, checksum(name)
    with folder_faults(path.parent, name):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(url, path, expected)
        content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if not found.startswith(expected):
        raise DataError(
            f"{path} is damaged or another file: its sha256 begins with {found[: len(expected)]}, and its name says "
            f"{expected}\ndelete it and run again, or copy a good {name} there"
        )
    return path, content


def checksum(name: str) -> str:
    """The first digits of the sha256 of a file, out of its name. DataError if there are none."""
    found = CHECKSUM.search(name)
    if found is None:
        raise DataError(
            f"{name} does not tell its checksum, without which it is not taken\n"
            f"download it yourself, and give it as transfer.source=[file:PATH,sha256:HEX]"
        )
    return found.group(1)


def _download(url: str, path: Path, sha256: str) -> None:
    from filelock import FileLock  # noqa: PLC0415 - for the first use of a file only

    # The folder comes before the lock: see depthlab.data.download, where data sets are made in the same way.
    with (
        tempfile.TemporaryDirectory(prefix=".download-", dir=path.parent) as folder,
        FileLock(path.parent / f".{path.name}.lock"),
    ):
        if path.exists():  # another process made it while this one waited
            return
        part = Path(folder) / path.name
        try:
            with patience():
                torch.hub.download_url_to_file(url, str(part), sha256, progress=sys.stderr.isatty())
        except NO_ANSWER as error:
            if is_of_the_folder(error):
                raise
            raise DataError(
                f"{path.name} could not be downloaded from {url} ({str(error).strip().splitlines()[-1]})\n"
                f"connect to a network and run again, or copy the file to {path}"
            ) from None
        part.replace(path)
