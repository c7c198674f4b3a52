"""Files of trained weights: downloaded whole or not at all, checked by the checksum in their names, and found again."""

from __future__ import annotations

import errno
import functools
import gc
import hashlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from depthlab.data import DataError, download, pretrained, pretrained_file
from depthlab.data.pretrained import checksum

# torch.hub leaves the connection of a download that it refuses to the garbage collector.
pytestmark = [pytest.mark.filterwarnings("ignore::ResourceWarning"), pytest.mark.usefixtures("collected")]

CONTENT = b"weights" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
NAME = f"net-{SHA256[:8]}.pth"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$DEPTHLAB_DATA, which does not exist yet."""
    monkeypatch.setenv("DEPTHLAB_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def collected() -> Iterator[None]:
    """No connection is left to be found in another test."""
    yield
    gc.collect()


class Mirror:
    """A server of one folder; asked: what for."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, list[str]()
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                asked.append(self.path)

        make = functools.partial(Handler, directory=str(folder))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), make)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/{NAME}"


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Mirror]:
    """A server of the file."""
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / NAME).write_bytes(CONTENT)
    found = Mirror(tmp_path / "mirror")
    thread = threading.Thread(target=found.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    found.server.shutdown()
    found.server.server_close()
    thread.join()


def left(root: Path) -> list[str]:
    """What lies below the root, but for the lock, which is empty."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.suffix != ".lock")


def refusal(url: str) -> str:
    with pytest.raises(DataError) as caught:
        pretrained_file(url)
    assert len(str(caught.value).splitlines()) == 2, caught.value
    return str(caught.value)


def test_a_file_is_downloaded_once(root: Path, mirror: Mirror) -> None:
    path, content = pretrained_file(mirror.url)
    assert (path, content) == (root / "torchvision" / NAME, CONTENT)
    assert left(root) == [f"torchvision/{NAME}"]
    assert pretrained_file(mirror.url) == (path, content)
    assert len(mirror.asked) == 1


def test_a_local_file_comes_first_and_needs_no_network(root: Path) -> None:
    (root / "torchvision").mkdir(parents=True)
    (root / "torchvision" / NAME).write_bytes(CONTENT)
    assert pretrained_file(f"https://nowhere.invalid/models/{NAME}")[1] == CONTENT


def test_a_damaged_local_file_is_told_and_left_alone(root: Path, mirror: Mirror) -> None:
    (root / "torchvision").mkdir(parents=True)
    path = root / "torchvision" / NAME
    path.write_bytes(CONTENT[:-1])
    message = refusal(mirror.url)
    found = hashlib.sha256(CONTENT[:-1]).hexdigest()[:8]
    assert (
        f"{path} is damaged or another file: its sha256 begins with {found}, and its name says {SHA256[:8]}" in message
    )
    assert f"copy a good {NAME} there" in message
    assert path.read_bytes() == CONTENT[:-1]
    assert mirror.asked == []


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x", b""])
def test_a_download_of_another_content_is_refused(content: bytes, root: Path, mirror: Mirror) -> None:
    (mirror.folder / NAME).write_bytes(content)
    assert f"{NAME} could not be downloaded from {mirror.url} (invalid hash value" in refusal(mirror.url)
    assert left(root) == []


def test_a_file_that_the_server_has_not_is_told(root: Path, mirror: Mirror) -> None:
    (mirror.folder / NAME).unlink()
    assert "(HTTP Error 404: File not found)" in refusal(mirror.url)


def test_without_a_network_the_message_says_where_to_put_the_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    message = refusal(f"https://nowhere.invalid/models/{NAME}")
    assert message.startswith(
        f"{NAME} could not be downloaded from https://nowhere.invalid/models/{NAME} (<urlopen err"
    )
    assert message.endswith(f"or copy the file to {root / 'torchvision' / NAME}")
    assert left(root) == []


def test_a_server_that_never_answers_is_given_up(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        end = threading.Timer(6, silent.close)  # for a client that would wait for ever
        end.start()
        begin = time.monotonic()
        assert "could not be downloaded" in refusal(f"http://127.0.0.1:{silent.getsockname()[1]}/{NAME}")
    end.cancel()
    assert time.monotonic() - begin < 5
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), MemoryError()])
def test_an_interrupted_download_leaves_nothing_behind(
    fault: BaseException, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_url: str, path: str, *_: Any, **__: Any) -> None:
        Path(path).write_bytes(CONTENT[:100])
        raise fault

    monkeypatch.setattr(torch.hub, "download_url_to_file", interrupted)
    with pytest.raises(type(fault)):
        pretrained_file(f"https://nowhere.invalid/{NAME}")
    assert left(root) == []


def test_a_disk_that_fills_is_not_called_a_network_fault(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "part")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    assert f"there is no room for {NAME}" in refusal(f"https://nowhere.invalid/{NAME}")


def test_several_processes_download_once(root: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = torch.hub.download_url_to_file

    def slow(*args: Any, **settings: Any) -> None:
        time.sleep(0.2)
        whole(*args, **settings)

    monkeypatch.setattr(torch.hub, "download_url_to_file", slow)
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(pretrained_file(mirror.url)[1])) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [CONTENT] * 3
    assert len(mirror.asked) == 1
    assert left(root) == [f"torchvision/{NAME}"]


def test_a_file_in_the_place_of_the_folder_is_named(root: Path) -> None:
    root.parent.mkdir(exist_ok=True)
    root.touch()
    assert "set DEPTHLAB_DATA to another folder" in refusal(f"https://nowhere.invalid/{NAME}")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("resnet18-f37072fd.pth", "f37072fd"),
        ("alexnet-owt-7be5be79.pth", "7be5be79"),
        ("mnasnet0.5_top1_67.823-3ffadce67e.pth", "3ffadce67e"),
        ("vgg16_features-amdegroot-88682ab5.pth", "88682ab5"),
    ],
)
def test_the_checksum_is_the_last_part_of_the_name(name: str, found: str) -> None:
    assert checksum(name) == found


@pytest.mark.parametrize("name", ["model.pth", "model-f37072f.pth", "model-f37072fd.pth.1", "model-f37072fd-v2.pth"])
def test_a_file_without_a_checksum_is_not_taken(root: Path, name: str) -> None:
    assert f"{name} does not tell its checksum" in refusal(f"https://nowhere.invalid/{name}")
    assert not (root / pretrained.FOLDER / name).exists()
