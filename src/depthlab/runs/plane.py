"""Data sets of points: the square that all inputs lie in, and what a net decides all over it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from depthlab import data
from depthlab.config import TrainConfig
from depthlab.training import predictions

LATTICE = 50
"""Points along each side of the square at which decisions are read."""


def corners(splits: data.Splits) -> tuple[Tensor, Tensor]:
    """What points of all pixels 0 and of all pixels 255 become when they are normalized: float32 (2,) each.

    No input lies outside the square between them.
    """
    black = torch.zeros(1, *splits.train.pool.shape[1:], dtype=torch.uint8, device=splits.mean.device)
    low, high = (data.normalize(images, splits.mean, splits.std).flatten() for images in (black, black + 255))
    return low, high


def decisions(model: nn.Module, splits: data.Splits, config: TrainConfig) -> dict[tuple[int, int], int]:
    """The class that the net tells at each point of a lattice over the square, by the point's column and row.

    Columns and rows count from 0, at the corner of pixels 0, to `LATTICE` - 1, at that of pixels 255.
    """
    low, high = corners(splits)
    along = torch.linspace(0, 1, LATTICE, device=low.device)
    points = low + torch.cartesian_prod(along, along) * (high - low)
    found = predictions(model, points[:, :, None, None], config).tolist()
    return {divmod(place, LATTICE): each for place, each in enumerate(found)}
