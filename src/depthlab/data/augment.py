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

    images: (b, c, h, w) of any type; top, left: int64 (b,), corner of the crop in the padded image, 0..2 * padding;
    flip: bool (b,). Raw pixels are padded, before normalization, so that the border is black as in He et al. (2015,
    section 4.2) and not the mean colour.
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, (padding, padding, padding, padding))
    rows = top[:, None] + torch.arange(height, device=images.device)
    across = torch.arange(width, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - across, across)
    # One gather does both moves, in half the time of indexing an unfolded view and mirroring what comes out.
    pixels = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]
    index = pixels.view(count, 1, height * width).expand(count, channels, height * width)
    return padded.view(count, channels, -1).gather(2, index).view(count, channels, height, width)


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
