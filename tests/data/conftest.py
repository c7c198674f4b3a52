import gzip
import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from depthlab._torchvision import import_torchvision
from depthlab.config import DATASETS, DatasetFacts
from depthlab.data.prepared import Prepared

torch.set_num_threads(1)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty data root."""
    monkeypatch.setenv("DEPTHLAB_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small MNIST and CIFAR: the same code, a thousandth of the images."""
    monkeypatch.setitem(DATASETS, "mnist", DatasetFacts(train=60, test=20, channels=1, size=28, classes=10))
    monkeypatch.setitem(DATASETS, "cifar10", DatasetFacts(train=50, test=20, channels=3, size=32, classes=10))


@pytest.fixture(scope="session")
def make_prepared() -> Callable[..., Prepared]:
    def make_prepared(name: str) -> Prepared:
        """Random images of the right counts and shape."""
        facts = DATASETS[name]
        random = np.random.default_rng(1)
        pixels = (facts.size, facts.size) + ((3,) if facts.channels == 3 else ())

        def part(count: int) -> tuple[np.ndarray, np.ndarray]:
            return random.integers(0, 256, (count, *pixels), dtype=np.uint8), np.arange(count) % facts.classes

        return Prepared(
            *part(facts.train), *part(facts.test), tuple(f"class {label}" for label in range(facts.classes))
        )

    return make_prepared


@pytest.fixture
def write_mnist_layout(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def write_mnist_layout(prepared: Prepared, folder: Path) -> None:
        """torchvision's files of MNIST with these images, and their checksums made known to torchvision."""
        folder.mkdir(parents=True)
        resources = []
        for part, prefix in (("train", "train"), ("test", "t10k")):
            images, labels = getattr(prepared, f"{part}_images"), getattr(prepared, f"{part}_labels").astype(np.uint8)
            for kind, array in ((f"images-idx{images.ndim}", images), ("labels-idx1", labels)):
                header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
                file = folder / f"{prefix}-{kind}-ubyte.gz"
                file.write_bytes(gzip.compress(header + array.tobytes()))
                resources.append((file.name, hashlib.md5(file.read_bytes()).hexdigest()))
        monkeypatch.setattr(import_torchvision().datasets.MNIST, "resources", resources)

    return write_mnist_layout


@pytest.fixture
def write_cifar_archive(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def write_cifar_archive(prepared: Prepared, file: Path) -> None:
        """torchvision's file of CIFAR-10 with these images, five training batches, and its checksums made known."""
        source = import_torchvision().datasets.CIFAR10

        def batch(images: np.ndarray, labels: np.ndarray) -> bytes:
            return pickle.dumps(
                {"data": images.transpose(0, 3, 1, 2).reshape(len(images), -1), "labels": labels.tolist()}
            )

        training = zip(np.split(prepared.train_images, 5), np.split(prepared.train_labels, 5), strict=True)
        members = {f"data_batch_{number}": batch(*part) for number, part in enumerate(training, 1)}
        members["test_batch"] = batch(prepared.test_images, prepared.test_labels)
        members["batches.meta"] = pickle.dumps({"label_names": list(prepared.classes)})
        with tarfile.open(file, "w:gz") as archive:
            for name, content in members.items():
                entry = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
        sums = {name: hashlib.md5(content).hexdigest() for name, content in members.items()}
        monkeypatch.setattr(source, "tgz_md5", hashlib.md5(file.read_bytes()).hexdigest())
        monkeypatch.setattr(source, "train_list", [[name, sums[name]] for name in members if name.startswith("data")])
        monkeypatch.setattr(source, "test_list", [["test_batch", sums["test_batch"]]])
        monkeypatch.setattr(source, "meta", {**source.meta, "md5": sums["batches.meta"]})

    return write_cifar_archive
