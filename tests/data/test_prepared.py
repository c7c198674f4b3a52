"""The prepared form: what is good loads bit for bit, what is damaged or does not belong is refused in one message."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthlab.config import DataConfig
from depthlab.data import DataError, data_root, load
from depthlab.data.prepared import KEYS, read_prepared, write_prepared

pytestmark = pytest.mark.usefixtures("tiny")


@pytest.fixture
def file(root, make_prepared) -> Path:
    write_prepared(root / "mnist.npz", make_prepared("mnist"))
    return root / "mnist.npz"


def contents(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


def replace(file: Path, content: bytes) -> None:
    """Another file under the same name: what was mapped of the old one stays as it was."""
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.replace(file)


def refusal(file: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_prepared(file, "mnist")
    message = str(caught.value)
    assert str(file) in message
    assert len(message.splitlines()) <= 2
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__  # no chain of tracebacks
    return message


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_what_is_written_is_read(name, root, make_prepared):
    prepared = make_prepared(name)
    write_prepared(root / f"{name}.npz", prepared)
    again = read_prepared(root / f"{name}.npz", name)
    for key in KEYS[:-1]:
        assert np.array_equal(getattr(again, key), getattr(prepared, key))
    assert again.classes == prepared.classes


def test_load_takes_a_prepared_file_and_leaves_it_and_its_folder_alone(file, root, make_prepared):
    before = file.read_bytes()
    splits = load(DataConfig(name="mnist"), torch.device("cpu"))
    assert np.array_equal(splits.test[:][0][:, 0].numpy(), make_prepared("mnist").test_images)
    assert file.read_bytes() == before
    assert list(root.iterdir()) == [file]


def test_channels_come_first_and_keep_their_pixels(root, make_prepared):
    prepared = make_prepared("cifar10")
    write_prepared(root / "cifar10.npz", prepared)
    splits = load(DataConfig(name="cifar10"), torch.device("cpu"))
    for channel in range(3):
        assert np.array_equal(splits.test[:][0][:, channel].numpy(), prepared.test_images[..., channel])


@pytest.mark.parametrize("kind", ["int8", "uint8", "int32", "uint64", ">i2"])
def test_labels_may_be_any_integers(kind, file):
    arrays = contents(file)
    np.savez(file, **{**arrays, "train_labels": arrays["train_labels"].astype(kind)})
    labels = load(DataConfig(name="mnist"), torch.device("cpu")).train.labels
    assert labels.dtype == torch.int64
    assert set(labels.tolist()) == set(range(10))


FAULTS = {
    "train_images": [
        (lambda x: x.astype(np.float32), "train_images are float32, not uint8"),
        (lambda x: x[1:], r"train_images have shape \(59, 28, 28\), not \(60, 28, 28\)"),
        (lambda x: x[:, :27], r"shape \(60, 27, 28\)"),
        (lambda x: x[..., None], r"shape \(60, 28, 28, 1\)"),
    ],
    "test_images": [(lambda x: x[:0], r"test_images have shape \(0, 28, 28\)")],
    "train_labels": [
        (lambda x: x.astype(float), "train_labels are float64, not integers"),
        (lambda x: x > 4, "train_labels are bool, not integers"),
        (lambda x: x[:-1], r"train_labels have shape \(59,\), not \(60,\)"),
        (lambda x: x[:, None], r"train_labels have shape \(60, 1\)"),
        (lambda x: x + 1, r"train_labels lie in 1\.\.10, not in 0\.\.9"),
        (lambda x: x - 1, r"train_labels lie in -1\.\.8"),
    ],
    "test_labels": [(lambda x: x.astype(np.uint64) * np.uint64(2**60), "test_labels lie in")],
    "classes": [
        (lambda x: x[:9], r"classes are <U7 of shape \(9,\), not 10 words"),
        (lambda x: np.arange(10), "classes are int64"),
    ],
}


@pytest.mark.parametrize(
    ("key", "change", "message"), [(key, *fault) for key, faults in FAULTS.items() for fault in faults]
)
def test_arrays_that_do_not_belong_are_refused(key, change, message, file):
    arrays = contents(file)
    np.savez(file, **{**arrays, key: change(arrays[key])})
    with pytest.raises(DataError, match=message):
        read_prepared(file, "mnist")
    assert "delete it and run again, or copy a good mnist.npz there" in refusal(file)


@pytest.mark.parametrize("key", KEYS)
def test_a_missing_array_is_named(key, file):
    arrays = contents(file)
    del arrays[key]
    np.savez(file, **arrays)
    assert key in refusal(file)


def test_every_truncation_is_refused(file):
    whole = file.read_bytes()
    lengths = {0, 1, 2, 4, 100, len(whole) - 1, len(whole) - 22, *range(0, len(whole), 997)}
    for length in lengths:
        file.write_bytes(whole[:length])
        assert "is damaged or incomplete" in refusal(file)


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_is_refused_or_changes_nothing(file, position, bit):
    whole = file.read_bytes()
    before = read_prepared(file, "mnist")
    damaged = bytearray(whole)
    damaged[int(position * len(damaged))] ^= 1 << bit
    replace(file, damaged)
    try:
        read = read_prepared(file, "mnist")
    except DataError:
        return
    finally:
        replace(file, whole)
    assert all(np.array_equal(getattr(read, key), getattr(before, key)) for key in KEYS)


class Intruder:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


def test_pickled_objects_are_refused_and_never_executed(file, tmp_path):
    mark = tmp_path / "executed"
    arrays = contents(file)
    np.savez(file, **{**arrays, "classes": np.array([Intruder(mark)], dtype=object)})
    assert "Object arrays cannot be loaded" in refusal(file)
    assert not mark.exists()

    file.write_bytes(pickle.dumps(Intruder(mark)))
    assert "is damaged or incomplete" in refusal(file)
    assert not mark.exists()

    pickle.loads(file.read_bytes())
    assert mark.exists()  # the trap works


@pytest.mark.parametrize("content", [b"", b"not a data set", b"PK\x03\x04"])
def test_other_files_are_refused(content, file):
    file.write_bytes(content)
    refusal(file)


def test_a_single_array_is_refused(file):
    with file.open("wb") as stream:
        np.save(stream, np.arange(3))
    refusal(file)


def test_a_folder_in_the_place_of_the_file_is_refused(root):
    (root / "mnist.npz").mkdir()
    assert "cannot be read: Is a directory" in refusal(root / "mnist.npz")


def test_the_data_root_is_the_variable_or_the_users_cache(monkeypatch):
    monkeypatch.setenv("DEPTHLAB_DATA", "~/images")
    assert data_root() == Path.home() / "images"
    monkeypatch.setenv("DEPTHLAB_DATA", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data_root().parts[-2:] == ("depthlab", "data")
