"""From a configuration to tensors: the training, validation and test part of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from depthlab.config import DataConfig, stream_seed
from depthlab.data.built_in import digits, spirals, synthetic
from depthlab.data.download import prepared_file
from depthlab.data.prepared import DataError, Prepared, read_prepared

BUILT_IN = {"digits": digits, "synthetic": synthetic, "spirals": spirals}

COUNTED_AT_ONCE = 100
"""Images that are copied at once to count their pixels' values: a copy of all would be each process's own memory."""


@dataclass(frozen=True, eq=False)
class Images:
    """n images with their labels, on one device.

    pool: uint8 (m, c, h, w), contiguous or channels last; other parts of the data set may share it.
    labels: int64 (n,), those of the n images and not of the pool.
    index: int64 (n,), where each of them lies in the pool; None: they are the pool.
    """

    pool: Tensor
    labels: Tensor
    index: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: slice) -> tuple[Tensor, Tensor]:
        """Some images (b, c, h, w), whose channels may be last in memory, and their labels (b,)."""
        images = self.pool[chosen] if self.index is None else _take(self.pool, self.index[chosen])
        return images, self.labels[chosen]

    def ordered(self, order: Tensor) -> Images:
        """The images at positions order, int64 (k,) in 0..n - 1 on their device, without copying any."""
        index = order if self.index is None else self.index.index_select(0, order)
        return Images(self.pool, self.labels.index_select(0, order), index)

    def first(self, count: int) -> Images:
        """The first of them, in the same memory."""
        pool, index = (self.pool[:count], None) if self.index is None else (self.pool, self.index[:count])
        return Images(pool, self.labels[:count], index)


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

    pool_size takes a class-balanced part of the training images: counts differ by at most one while every class has
    images left, and a larger part holds every smaller one. Of its n images validation holds round(validation_fraction
    * n), each class in its share; or, in cross-validation, the fold of that number: folds have no image in common and
    hold all of the pool together, and the sizes of two folds, and their counts of a class, differ by at most one.
    train_size takes a part of the rest as pool_size does; part counts such subsets, from 0: no two of them share an
    image. label_noise then replaces round(label_noise * n) of its labels, each by one of the other classes at random,
    in each part by a stream of its own. All of it depends on split_seed alone. Test images and labels are the data
    set's own. classes keeps the images of some classes in all three parts, as if the data set had no others.

    On the CPU training and validation are an index into one pool, the mapped file if there is one, so that processes
    share its memory; on another device each part has its own images.

    DataError if the data set is missing and cannot be had, or its file is damaged.
    """
    prepared = _prepared(config.name)
    whole = of_classes(Images(_images(prepared.train_images), _labels(prepared.train_labels)), config.classes)
    test = of_classes(Images(_images(prepared.test_images), _labels(prepared.test_labels)), config.classes)
    names = tuple(prepared.classes[label] for label in config.classes) or prepared.classes
    training, validation = split_indices(whole.labels, len(names), config)
    if config.classes and len(training) < (config.train_size or 0):
        raise DataError(
            f"data.train_size={config.train_size} is more than the {len(training)} images that {config.name} has of "
            f"data.classes={list(config.classes)} besides the validation split; choose at most {len(training)}"
        )
    train = _part(whole, training)
    train = Images(train.pool, noisy(train.labels, len(names), config), train.index)
    mean, std = channel_statistics(train, config.name)
    return Splits(
        train=_moved(train, device),
        validation=_moved(_part(whole, validation), device),
        test=_moved(test, device),
        mean=mean.to(device),
        std=std.to(device),
        classes=names,
    )


def of_classes(images: Images, classes: Sequence[int]) -> Images:
    """Those whose label is among `classes`, in the same memory and order, with its place there as label; []: all."""
    if not classes:
        return images
    is_class = images.labels[:, None] == torch.tensor(list(classes))
    kept = is_class.any(dim=1).nonzero().flatten()
    return Images(images.pool, is_class[kept].int().argmax(dim=1), kept if images.index is None else images.index[kept])


def split_indices(labels: Tensor, classes: int, config: DataConfig) -> tuple[Tensor, Tensor]:
    """Which of the training images are trained on and which are validation: two ascending int64 vectors."""
    stream = torch.Generator().manual_seed(stream_seed(config.split_seed, "split"))
    shuffled = torch.randperm(len(labels), generator=stream)
    pool = shuffled[_balanced(labels[shuffled], classes, config.pool_size)]
    if config.folds is None:
        chosen = _share_of_each_class(labels[pool], classes, config.validation_fraction)
    else:
        chosen = _fold_of_each(labels[pool], config.folds) == config.fold
    validation, rest = pool[chosen], pool[~chosen]
    training = rest[_balanced(labels[rest], classes, config.train_size, config.part)]
    return training.sort().values, validation.sort().values


def _share_of_each_class(labels: Tensor, classes: int, fraction: float) -> Tensor:
    """True, (n,), for round(fraction * n) images: the first of each class, in its share."""
    cut = _shares(torch.bincount(labels, minlength=classes), round(fraction * len(labels)))
    return _rank_in_class(labels, classes) < cut[labels]


def _fold_of_each(labels: Tensor, folds: int) -> Tensor:
    """The fold of each image, (n,): dealt out class after class, without a new start for each class."""
    fold = torch.empty_like(labels)
    fold[labels.argsort(stable=True)] = torch.arange(len(labels)) % folds
    return fold


def _balanced(labels: Tensor, classes: int, size: int | None, part: int = 0) -> Tensor:
    """Ascending positions of so many images, after those of earlier parts.

    It takes the first of each class, then the second of each, ..., so that every size is balanced and sizes nest.
    """
    turn = _rank_in_class(labels, classes) * classes + labels
    size = len(labels) if size is None else size
    return turn.argsort()[part * size : (part + 1) * size].sort().values


def noisy(labels: Tensor, classes: int, config: DataConfig) -> Tensor:
    """The labels, round(label_noise * n) of them replaced by one of the other classes, each as likely."""
    # Part 0 has the stream that training sets had before there were parts.
    name = f"label_noise/{config.part}" if config.part else "label_noise"
    stream = torch.Generator().manual_seed(stream_seed(config.split_seed, name))
    changed = torch.randperm(len(labels), generator=stream)[: round(config.label_noise * len(labels))]
    shift = torch.randint(1, classes, (len(changed),), generator=stream)
    replaced = labels.clone()
    replaced[changed] = (labels[changed] + shift) % classes
    return replaced


def channel_statistics(images: Images, name: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (over n, not n - 1) of each channel, of pixels in 0..1: float32 (c,) each.

    They are taken from counts of the 256 values, in float64: summing millions of float32 pixels would lose digits.
    DataError if a channel is constant, as no scaling gives it unit variance.
    """
    counts = torch.zeros(images.pool.shape[1], 256, dtype=torch.float64)
    for start in range(0, len(images), COUNTED_AT_ONCE):
        part, _ = images[start : start + COUNTED_AT_ONCE]
        counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in part.unbind(1)])
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
    """(n, c, h, w), in the memory that was given."""
    tensor = torch.from_numpy(images)
    return tensor[:, None] if tensor.ndim == 3 else tensor.permute(0, 3, 1, 2)


def _part(images: Images, chosen: Tensor) -> Images:
    """Some of them, in the same memory."""
    return Images(images.pool, images.labels[chosen], chosen if images.index is None else images.index[chosen])


def _take(pool: Tensor, places: Tensor) -> Tensor:
    """Some images of a pool, in its memory format."""
    if pool.is_contiguous():
        return pool.index_select(0, places)
    # As they lie in memory, where an image is one stretch: four times as fast.
    return pool.permute(0, 2, 3, 1).index_select(0, places).permute(0, 3, 1, 2)


def _moved(images: Images, device: torch.device) -> Images:
    """The same on a device; another one than the CPU gets these images alone, channels first."""
    if device.type == "cpu":
        return images
    pixels, labels = images[:]
    return Images(pixels.contiguous().to(device), labels.to(device))


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
