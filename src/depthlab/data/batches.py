"""Batches as a pure function of seed and step: nothing to save for resuming, and runs of equal seed see equal data."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from depthlab.config import DataConfig, stream_seed
from depthlab.data.augment import cut_out, normalize, on_device, scaled, scaling, shift_and_flip
from depthlab.data.splits import Images


class Batches:
    """The endless training stream: batches[step] is (inputs, labels) of that step, whatever was asked for before.

    inputs: float32 (batch_size, c, h, w), augmented as the configuration says and normalized by mean and std, float32
    (c,); labels: int64 (batch_size,). Both lie where the images lie. Epoch e is steps e * steps_per_epoch onwards, in
    an order of its own in which no image comes twice; what is left of an epoch after its last whole batch is dropped.
    Order and augmentation are drawn on the CPU from streams named by seed, epoch and step, so that a GPU sees the same
    data. ValueError if there are fewer images than batch_size.
    """

    def __init__(
        self, images: Images, config: DataConfig, *, batch_size: int, seed: int, mean: Tensor, std: Tensor
    ) -> None:
        if not 1 <= batch_size <= len(images):
            raise ValueError(f"batch_size={batch_size} must be between 1 and the number of images, {len(images)}")
        self.batch_size = batch_size
        self.steps_per_epoch = len(images) // batch_size
        self._images, self._config, self._seed = images, config, seed
        self._scaling = scaling(mean, std)  # made once: a third of what a batch of MNIST takes
        self._epoch, self._shuffled = -1, images

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        if step < 0:
            raise IndexError(f"step {step} is before the first, 0; the stream has no end to count from")
        epoch, batch = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._shuffled = epoch, self._images.ordered(self._draw_order(epoch))
        images, labels = self._shuffled[batch * self.batch_size : (batch + 1) * self.batch_size]
        return self._augment(images, step), labels

    def _draw_order(self, epoch: int) -> Tensor:
        order = torch.randperm(len(self._images), generator=_stream(self._seed, f"order/{epoch}"))
        return order.to(self._images.pool.device)

    def _augment(self, images: Tensor, step: int) -> Tensor:
        config = self._config
        if not (config.crop_padding or config.flip or config.cutout):
            return scaled(images, *self._scaling)
        top, left, flip, row, column = self._draw_augmentation(images.shape, step)
        if config.crop_padding or config.flip:
            images = shift_and_flip(images, top, left, flip.bool(), config.crop_padding)
        inputs = scaled(images, *self._scaling)
        if config.cutout:
            cut_out(inputs, on_device(row, inputs.device), on_device(column, inputs.device), config.cutout)
        return inputs

    def _draw_augmentation(self, shape: torch.Size, step: int) -> Tensor:
        """int64 (5, b), on the CPU: top, left, flip, row, column."""
        count, _, height, width = shape
        stream = _stream(self._seed, f"augment/{step}")
        # All five are drawn even when not used, so that turning one on leaves the others as they were.
        limits = (2 * self._config.crop_padding + 1,) * 2 + (2, height, width)
        drawn = torch.stack([torch.randint(limit, (count,), generator=stream) for limit in limits])
        drawn[2] *= self._config.flip
        return drawn


def evaluation_batches(
    images: Images, *, batch_size: int, mean: Tensor, std: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in order, normalized and not augmented: (inputs, labels) of at most batch_size images.

    inputs: float32 (b, c, h, w); labels: int64 (b,). The last batch holds what is left.
    """
    for start in range(0, len(images), batch_size):
        pixels, labels = images[start : start + batch_size]
        yield normalize(pixels, mean, std), labels


def _stream(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(seed, name))
