"""The real data sets, where the machine has them: DEPTHLAB_DATA and DEPTHLAB_TEST_RAW say where."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from depthlab.config import DATASETS, DataConfig
from depthlab.data import Images, load
from depthlab.data.download import SOURCES, prepared_file
from depthlab.data.prepared import read_prepared
from depthlab.data.splits import channel_statistics

STATISTICS = {  # of all training images, as everybody quotes them
    "mnist": ([0.1307], [0.3081]),
    "fashion_mnist": ([0.2860], [0.3530]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "cifar100": ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
}
CLASS_COUNTS = {  # of the training and the test images
    "mnist": (
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
    ),
    "fashion_mnist": ([6000] * 10, [1000] * 10),
    "cifar10": ([5000] * 10, [1000] * 10),
    "cifar100": ([500] * 100, [100] * 100),
}


def check(path: Path, name: str) -> None:
    prepared = read_prepared(path, name)
    train_counts, test_counts = CLASS_COUNTS[name]
    assert np.bincount(prepared.train_labels).tolist() == train_counts
    assert np.bincount(prepared.test_labels).tolist() == test_counts
    images = torch.from_numpy(prepared.train_images)
    channels_first = images.permute(0, 3, 1, 2) if images.ndim == 4 else images[:, None]
    found = channel_statistics(Images(channels_first, torch.zeros(len(images)).long()), name)
    for actual, expected in zip(found, STATISTICS[name], strict=True):
        torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=6e-5)  # four digits are quoted


@pytest.mark.parametrize("name", list(SOURCES))
def test_prepared_file(name):
    folder = os.environ.get("DEPTHLAB_DATA")
    if not folder:
        pytest.skip("DEPTHLAB_DATA is not set")
    path = Path(folder) / f"{name}.npz"
    if not path.exists():
        pytest.skip(f"there is no {name}.npz in DEPTHLAB_DATA")
    check(path, name)
    splits = load(DataConfig(name=name), torch.device("cpu"))
    facts = DATASETS[name]
    assert (len(splits.train), len(splits.validation)) == (facts.train * 9 // 10, facts.train // 10)
    assert splits.test.pool.shape == (facts.test, facts.channels, facts.size, facts.size)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_conversion_from_torchvisions_layout(name, root, monkeypatch):
    raw = os.environ.get("DEPTHLAB_TEST_RAW")
    if not raw:
        pytest.skip("DEPTHLAB_TEST_RAW, a folder with MNIST/raw and FashionMNIST/raw, is not set")
    folder = SOURCES[name][0]
    (root / folder).symlink_to(Path(raw) / folder)
    before = sorted((Path(raw) / folder).rglob("*"))
    path = prepared_file(name)
    assert sorted((Path(raw) / folder).rglob("*")) == before
    check(path, name)
