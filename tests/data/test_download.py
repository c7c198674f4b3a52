"""torchvision's files become a prepared file, whole or not at all; every fault is one clear message."""

import errno
import functools
import http.client
import http.server
import os
import resource
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest

from depthlab._torchvision import import_torchvision
from depthlab.data import DataError, download
from depthlab.data.download import SOURCES, prepared_file
from depthlab.data.prepared import KEYS, Prepared, read_prepared

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that torchvision takes for the mirror of MNIST."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    folder = tmp_path_factory.mktemp("mirror")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setattr(
        import_torchvision().datasets.MNIST, "mirrors", [f"http://127.0.0.1:{server.server_address[1]}/raw/"]
    )
    yield folder
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def torchvision_has_mnist(monkeypatch, make_prepared) -> None:
    """torchvision finds MNIST; what comes after is under test."""
    monkeypatch.setattr(download, "read_torchvision", lambda name, root: make_prepared(name))


def same(one: Prepared, two: Prepared) -> bool:
    return all(np.array_equal(getattr(one, key), getattr(two, key)) for key in KEYS)


def left(root: Path) -> list[str]:
    """What lies below the root, but for the lock, which is empty."""
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if not path.name.endswith(".lock"))


def refusal(name: str = "mnist") -> str:
    with pytest.raises(DataError) as caught:
        prepared_file(name)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    message = str(caught.value)
    assert len(message.splitlines()) == 2, message
    return message


def test_torchvisions_own_layout_is_converted_without_a_network(root, no_network, make_prepared, write_mnist_layout):
    prepared = make_prepared("mnist")
    write_mnist_layout(prepared, root / "MNIST" / "raw")
    before = left(root)
    assert prepared_file("mnist") == root / "mnist.npz"
    read = read_prepared(root / "mnist.npz", "mnist")
    assert same(read, Prepared(**{**vars(prepared), "classes": tuple("0123456789")}))
    assert left(root) == sorted([*before, "mnist.npz"])  # torchvision unpacks, but not here


def test_mnist_is_downloaded_verified_and_converted(root, served, make_prepared, write_mnist_layout):
    prepared = make_prepared("mnist")
    write_mnist_layout(prepared, served / "raw")
    prepared_file("mnist")
    assert np.array_equal(read_prepared(root / "mnist.npz", "mnist").test_images, prepared.test_images)
    assert left(root) == ["mnist.npz"]


@pytest.mark.parametrize("unpacked", [False, True])
def test_cifar_is_converted_from_its_archive_and_from_what_torchvision_unpacked(
    unpacked, root, no_network, make_prepared, write_cifar_archive
):
    prepared = make_prepared("cifar10")
    archive = root / "cifar-10-python.tar.gz"
    write_cifar_archive(prepared, archive)
    if unpacked:
        import_torchvision().datasets.CIFAR10(root, download=True)
        archive.unlink()
    prepared_file("cifar10")
    assert same(read_prepared(root / "cifar10.npz", "cifar10"), prepared)


def test_every_source_is_a_data_set_of_torchvision_whose_files_lie_where_we_look():
    for name, (kind, patterns) in SOURCES.items():
        source = getattr(import_torchvision().datasets, kind)
        if "mnist" in name:
            assert patterns == (f"{kind}/raw/*.gz",)
            assert all(file.endswith(".gz") for file, _ in source.resources)
        else:
            assert patterns == (source.filename, f"{source.base_folder}/*")


def test_a_file_that_is_there_is_taken_as_it_is(root, no_network):
    (root / "mnist.npz").write_bytes(b"the user's own")
    assert prepared_file("mnist").read_bytes() == b"the user's own"
    assert list(root.iterdir()) == [root / "mnist.npz"]


@pytest.mark.parametrize("name", list(SOURCES))
def test_without_a_network_the_message_says_where_to_put_the_file(name, root, no_network):
    message = refusal(name)
    assert message.startswith(f"{name} could not be downloaded (<urlopen error")
    assert f"or copy a prepared {name}.npz to {root / name}.npz" in message
    assert left(root) == []


def test_a_damaged_copy_is_named(root, no_network, make_prepared, write_mnist_layout):
    write_mnist_layout(make_prepared("mnist"), root / "MNIST" / "raw")
    file = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-1])
    assert f"the copy in {root / 'MNIST' / 'raw'} is incomplete or damaged" in refusal()
    assert not (root / "mnist.npz").exists()


def test_a_damaged_copy_is_replaced_in_the_prepared_file_and_left_as_it_is(
    root, served, make_prepared, write_mnist_layout
):
    prepared = make_prepared("mnist")
    write_mnist_layout(prepared, served / "raw")
    copy = root / "MNIST" / "raw" / "t10k-images-idx3-ubyte.gz"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(b"damaged")
    prepared_file("mnist")
    assert np.array_equal(read_prepared(root / "mnist.npz", "mnist").test_images, prepared.test_images)
    assert copy.read_bytes() == b"damaged"


def test_a_download_of_the_wrong_content_is_refused(root, served, make_prepared, write_mnist_layout):
    write_mnist_layout(make_prepared("mnist"), served / "raw")
    file = served / "raw" / "train-labels-idx1-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert "mnist could not be downloaded (File not found or corrupted" in refusal()
    assert left(root) == []


def test_a_server_that_never_answers_is_given_up(root, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mirror = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(import_torchvision().datasets.MNIST, "mirrors", [mirror])
        monkeypatch.setattr(download, "PATIENCE", 0.2)
        begin = time.monotonic()
        assert "could not be downloaded" in refusal()
    assert time.monotonic() - begin < 5
    assert socket.getdefaulttimeout() is None
    assert left(root) == []


@pytest.mark.parametrize(
    "fault",
    [
        URLError("unreachable"),
        TimeoutError("timed out"),
        ConnectionResetError(errno.ECONNRESET, "reset"),
        http.client.IncompleteRead(b""),
        RuntimeError("Error downloading x:\nTried y, got:\nFile not found or corrupted.\n"),
        ImportError("the installed torchvision does not fit"),
    ],
)
def test_whatever_torchvision_raises_becomes_one_message(fault, root, monkeypatch):
    def fail(name: str, root: Path) -> Prepared:
        raise fault

    monkeypatch.setattr(download, "read_torchvision", fail)
    assert f"copy a prepared mnist.npz to {root / 'mnist.npz'}" in refusal()
    assert left(root) == []


def test_a_disk_that_fills_while_downloading_is_not_called_a_network_fault(root, monkeypatch):
    def fail(name: str, root: Path) -> Prepared:
        raise OSError(errno.ENOSPC, "No space left on device", str(root / "part"))

    monkeypatch.setattr(download, "read_torchvision", fail)
    assert "there is no room for mnist" in refusal()
    assert left(root) == []


def test_a_full_disk_leaves_nothing_behind(root, torchvision_has_mnist):
    """A limit on the size of files is the nearest thing to a full disk that every machine has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        message = refusal()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "there is no room for mnist; free some space, or set DEPTHLAB_DATA to another folder" in message
    assert left(root) == []
    assert prepared_file("mnist").exists()


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), MemoryError()])
def test_an_interrupted_write_leaves_nothing_behind(fault, root, torchvision_has_mnist, monkeypatch):
    def interrupted(file: object, **_: object) -> None:
        file.write(b"PK half of it")  # type: ignore[attr-defined]
        file.flush()  # type: ignore[attr-defined]
        raise fault

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(type(fault)):
        prepared_file("mnist")
    assert left(root) == []
    monkeypatch.undo()


def test_the_file_appears_only_when_it_is_whole(root, torchvision_has_mnist, monkeypatch):
    savez, seen = np.savez, []

    def watched(file: object, **arrays: np.ndarray) -> None:
        savez(file, **arrays)
        seen.append((root / "mnist.npz").exists())

    monkeypatch.setattr(np, "savez", watched)
    prepared_file("mnist")
    assert seen == [False]
    assert left(root) == ["mnist.npz"]


def test_several_processes_convert_once(root, monkeypatch, make_prepared):
    made = []

    def slow(name: str, root: Path) -> Prepared:
        made.append(name)
        time.sleep(0.2)
        return make_prepared(name)

    monkeypatch.setattr(download, "read_torchvision", slow)
    threads = [threading.Thread(target=prepared_file, args=("mnist",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == ["mnist"]
    assert left(root) == ["mnist.npz"]


@pytest.fixture
def another_account() -> Iterator[None]:
    """Root may write everywhere, so as root the test goes on as nobody."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


@pytest.fixture
def locked_folder() -> Iterator[Path]:
    """A folder that may be read but not written."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to other accounts
        folder = Path(name)
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IROTH | stat.S_IXOTH)
        yield folder
        folder.chmod(stat.S_IRWXU)


@pytest.mark.parametrize("below", [".", "new"])
def test_a_folder_without_permission_is_named(below, locked_folder, another_account, monkeypatch):
    monkeypatch.setenv("DEPTHLAB_DATA", str(locked_folder / below))
    message = refusal()
    assert str(locked_folder) in message
    assert "Permission denied" in message
    assert "set DEPTHLAB_DATA to another folder" in message


def test_a_file_without_permission_is_named(locked_folder, monkeypatch):
    locked_folder.chmod(stat.S_IRWXU | stat.S_IROTH | stat.S_IXOTH)
    file = locked_folder / "mnist.npz"
    file.write_bytes(b"")
    file.chmod(0)
    if not os.geteuid():
        os.seteuid(65534)
    try:
        with pytest.raises(DataError, match=r"mnist\.npz cannot be read: Permission denied"):
            read_prepared(file, "mnist")
    finally:
        if not os.getuid():
            os.seteuid(0)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("DEPTHLAB_DATA", str(place))
        assert "the folder of the data sets cannot be used" in refusal()
