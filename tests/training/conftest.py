"""Small random images to train on, and one thread: more are far slower on such small tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from depthlab.config import DataConfig
from depthlab.data import Batches, Images

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def batches() -> Callable[..., Batches]:
    """Makes streams of 8-pixel images with 10 classes, by seed, batch size and what the data configuration takes."""
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randint(256, (96, 1, 8, 8), generator=generator, dtype=torch.uint8)
    images = Images(pixels, torch.randint(10, (96,), generator=generator))

    def make(seed: int = 0, batch_size: int = 16, **config: object) -> Batches:
        settings = DataConfig(**config)  # type: ignore[arg-type]
        mean, std = torch.tensor([0.5]), torch.tensor([0.29])
        return Batches(images, settings, batch_size=batch_size, seed=seed, mean=mean, std=std)

    return make
