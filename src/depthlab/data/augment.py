"""Augmentation of whole batches, each image with parameters of its own.

Every function is exact: it moves pixels or sets them to zero, and rounds nothing. What is random is drawn in
`depthlab.data.batches`; here are only the operations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Images of mean 0 and standard deviation 1 in each channel: (x / 255 - mean) / std, float32 (b, c, h, w).

    images: uint8 (b, c, h, w); mean and std: float32 (c,), of pixels in 0..1. It is computed as one product and one
    sum, each correctly rounded, so that CPU and GPU give the same bits. The result is contiguous, channels first,
    however the images lie in memory.
    """
    return scaled(images, *scaling(mean, std))


def scaling(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Factor and summand (c, 1, 1) of `normalize`, which are the same for all batches."""
    return 1 / (255 * std)[:, None, None], (-mean / std)[:, None, None]


def scaled(images: Tensor, factor: Tensor, summand: Tensor) -> Tensor:
    """The same with what `scaling` gives."""
    return images.contiguous().to(torch.float32).mul_(factor).add_(summand)


def shift_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Each image padded with zeros, cropped to its old size, then mirrored left to right where flip is true.

    images: (b, c, h, w) of any type; the result is contiguous, channels first. top, left: int64 (b,), corner of the
    crop in the padded image, 0..2 * padding; flip: bool (b,); all three on the CPU, so that a GPU is not waited for.
    Raw pixels are padded, before normalization, so that the border is black as in He et al. (2015, section 4.2) and not
    the mean colour.
    """
    count, channels, height, width = images.shape
    padded = F.pad(images.permute(0, 2, 3, 1).contiguous(), (0, 0, *(padding,) * 4))
    _, rows, columns, _ = padded.shape
    begins = (torch.arange(count) * rows + top)[:, None] + torch.arange(height)
    begins = begins * columns + left[:, None]
    # Stretches of memory are copied fast: pixel by pixel, a row of a crop is one, and so are all images that are
    # mirrored, once they come last. A gather of single values takes a quarter longer in all.
    order = flip.to(torch.uint8).argsort(stable=True)
    stretches = padded.view(-1).as_strided((count * rows * columns - width + 1, width * channels), (channels, 1))
    crops = stretches.index_select(0, on_device(begins.index_select(0, order).view(-1), images.device))
    planes = crops.view(count, height, width, channels).permute(0, 3, 1, 2).contiguous()
    mirrored = planes[count - int(flip.sum()) :]
    mirrored.copy_(mirrored.flip(3))
    return planes.index_select(0, on_device(order.argsort(), images.device))


def on_device(values: Tensor, device: torch.device) -> Tensor:
    """The same there, without waiting for a GPU: only pinned memory is copied beside what it computes."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def cut_out(images: Tensor, row: Tensor, column: Tensor, side: int) -> Tensor:
    """Each image with a square set to 0, in place; on normalized images that is the mean colour.

    images: (b, c, h, w); row, column: int64 (b,), the centre, anywhere in the image. The square spans side pixels
    from row - side // 2 and column - side // 2 and is clipped at the borders, so that part of it may lie outside
    (DeVries & Taylor 2017, section 3.2).
    """
    height, width = images.shape[2:]
    above = (row - side // 2)[:, None]
    before = (column - side // 2)[:, None]
    down = torch.arange(height, device=images.device)
    across = torch.arange(width, device=images.device)
    rows = (down >= above) & (down < above + side)
    columns = (across >= before) & (across < before + side)
    outside = ~(rows[:, :, None] & columns[:, None, :])
    return images.mul_(outside[:, None])  # twice as fast as masked_fill_
