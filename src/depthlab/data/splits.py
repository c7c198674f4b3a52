"""From a configuration to tensors: the training, validation and test part of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthlab.config import DataConfig, stream_seed
from depthlab.data.built_in import digits, synthetic
from depthlab.data.download import prepared_file
from depthlab.data.prepared import DataError, Prepared, read_prepared

BUILT_IN = {"digits": digits, "synthetic": synthetic}


@dataclass(frozen=True, eq=False)
class Images:
    """Images with their labels, on one device: uint8 (n, c, h, w) and int64 (n,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Splits:
    """The three parts of a data set, and what normalizes them.

    mean and std: float32 (c,), of the pixels of the training part in 0..1; classes: their names, by label.
    """

    train: Images
    validation: Images
    test: Images
    mean: Tensor
    std: Tensor
    classes: tuple[str, ...]


def load(config: DataConfig, device: torch.device) -> Splits:
    """The data set of the configuration, cut into its parts, on the device.

    Validation holds round(validation_fraction * n) of the n training images, each class in its share. train_size
    takes a class-balanced part of the rest: counts differ by at most one while every class has images left, and a
    larger part holds every smaller one. label_noise then replaces round(label_noise * n) of its labels, each by one of
    the other classes at random. All three depend on split_seed alone. Test images and labels are the data set's own.

    DataError if the data set is missing and cannot be had, or its file is damaged.
    """
    prepared = _prepared(config.name)
    count = len(prepared.classes)
    images, labels = _images(prepared.train_images), _labels(prepared.train_labels)
    training, validation = split_indices(labels, count, config)
    # index_select and not [...]: a quarter of a second, not two, for the images of CIFAR.
    training_images = images.index_select(0, training)
    mean, std = channel_statistics(training_images, config.name)
    return Splits(
        train=Images(training_images.to(device), noisy(labels[training], count, config).to(device)),
        validation=Images(images.index_select(0, validation).to(device), labels[validation].to(device)),
        test=Images(_images(prepared.test_images).to(device), _labels(prepared.test_labels).to(device)),
        mean=mean.to(device),
        std=std.to(device),
        classes=prepared.classes,
    )


def split_indices(labels: Tensor, classes: int, config: DataConfig) -> tuple[Tensor, Tensor]:
    """Which of the training images are trained on and which are validation: two ascending int64 vectors."""
    stream = torch.Generator().manual_seed(stream_seed(config.split_seed, "split"))
    shuffled = torch.randperm(len(labels), generator=stream)
    label = labels[shuffled]
    rank = _rank_in_class(label, classes)
    cut = _shares(torch.bincount(label, minlength=classes), round(config.validation_fraction * len(labels)))[label]
    validation, rest = shuffled[rank < cut], shuffled[rank >= cut]
    # Taking the first of each class, then the second of each, ... makes every size balanced and the sizes nested.
    turn = ((rank - cut) * classes + label)[rank >= cut]
    training = rest[turn.argsort()[: config.train_size]]
    return training.sort().values, validation.sort().values


def noisy(labels: Tensor, classes: int, config: DataConfig) -> Tensor:
    """The labels, round(label_noise * n) of them replaced by one of the other classes, each as likely."""
    stream = torch.Generator().manual_seed(stream_seed(config.split_seed, "label_noise"))
    changed = torch.randperm(len(labels), generator=stream)[: round(config.label_noise * len(labels))]
    shift = torch.randint(1, classes, (len(changed),), generator=stream)
    replaced = labels.clone()
    replaced[changed] = (labels[changed] + shift) % classes
    return replaced


def channel_statistics(images: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (over n, not n - 1) of each channel of uint8 (n, c, h, w), in 0..1: float32 (c,).

    They are taken from counts of the 256 values, in float64: summing millions of float32 pixels would lose digits.
    DataError if a channel is constant, as no scaling gives it unit variance.
    """
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    share = counts / counts.sum(1, keepdim=True)
    value = torch.arange(256, dtype=torch.float64) / 255
    mean = share @ value
    std = (share * (value - mean[:, None]) ** 2).sum(1).sqrt()
    if not (std > 0).all():
        raise DataError(f"the training images of {name} are the same throughout a channel; choose more or others")
    return mean.float(), std.float()


def _prepared(name: str) -> Prepared:
    return BUILT_IN[name]() if name in BUILT_IN else read_prepared(prepared_file(name), name)


def _images(images: NDArray[np.uint8]) -> Tensor:
    tensor = torch.from_numpy(images)
    return tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2).contiguous()


def _labels(labels: NDArray[np.integer[Any]]) -> Tensor:
    return torch.from_numpy(labels.astype(np.int64))


def _rank_in_class(labels: Tensor, classes: int) -> Tensor:
    """How many earlier entries have the same label."""
    counts = torch.bincount(labels, minlength=classes)
    first = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    rank = torch.empty_like(labels)
    rank[labels.argsort(stable=True)] = torch.arange(len(labels)) - first
    return rank


def _shares(counts: Tensor, total: int) -> Tensor:
    """Total divided in proportion to counts, in whole numbers that sum to it (largest remainders)."""
    share = total * counts // counts.sum()
    remainder = total * counts % counts.sum()
    share[remainder.argsort(descending=True, stable=True)[: total - int(share.sum())]] += 1
    return share
