"""Images a second of crop, flip and normalise on CIFAR-10: depthlab's batches beside torchvision's transforms.

The data are random pixels of CIFAR-10's shape. The popular loop takes them image by image through PIL, as
torchvision's own CIFAR10 does, in a DataLoader without and with worker processes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import circumstances, interleaved, speed, speed_table
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from depthlab import import_torchvision
from depthlab.config import DataConfig
from depthlab.data import Batches, Images
from depthlab.training import prepare_process

IMAGES, BATCH = 50_000, 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
RESULT = Path(__file__).parent / "results" / "data.md"


class PerSample(Dataset[tuple[Tensor, int]]):
    """What torchvision's CIFAR10 with the usual transforms does."""

    def __init__(self, pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self.pixels = pixels
        transforms = import_torchvision().transforms
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), index % 10


def random_pixels() -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 (n, 32, 32, 3)."""
    return np.random.default_rng(0).integers(256, size=(IMAGES, 32, 32, 3), dtype=np.uint8)


def popular(pixels: np.ndarray[Any, np.dtype[np.uint8]], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The popular loop's batches without end."""
    loader = DataLoader(
        PerSample(pixels),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="fork" if workers else None,  # which a process that was spawned would not choose
    )
    while True:
        yield from loader


def ours(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> Iterator[tuple[Tensor, Tensor]]:
    """depthlab's batches without end."""
    images = Images(torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.arange(IMAGES) % 10)
    config = DataConfig(name="cifar10", crop_padding=4, flip=True)
    batches = Batches(images, config, batch_size=BATCH, seed=0, mean=torch.tensor(MEAN), std=torch.tensor(STD))
    step = 0
    while True:
        yield batches[step]
        step += 1


def stretch(batches: Iterator[tuple[Tensor, Tensor]], count: int, threads: int = 1) -> float:
    """Seconds of one batch, mean over so many."""
    torch.set_num_threads(threads)
    for _ in range(3):
        next(batches)
    begin = time.perf_counter()
    for _ in range(count):
        next(batches)
    return (time.perf_counter() - begin) / count


def main() -> None:
    """Measures, and prints the page."""
    parser = argparse.ArgumentParser(description="Images a second: depthlab's batches beside torchvision's transforms.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", nargs="?", type=Path, const=RESULT, help="also write it (default: results/ here)")
    options = parser.parse_args()
    prepare_process(1)
    pixels = random_pixels()
    here, loaders = ours(pixels), {workers: popular(pixels, workers) for workers in (0, 4)}
    seconds = interleaved(
        {
            "depthlab, 1 thread": lambda: stretch(here, 300),
            "depthlab, 4 threads": lambda: stretch(here, 300, threads=4),
            "DataLoader, 0 workers": lambda: stretch(loaders[0], 15),
            "DataLoader, 4 workers": lambda: stretch(loaders[4], 60),
        },
        options.rounds,
    )
    torch.set_num_threads(1)
    slow, fast = (speed(seconds, "depthlab, 4 threads", f"DataLoader, {workers} workers") for workers in (0, 4))
    page = f"""# Crop, flip and normalise

> Images of CIFAR-10's size are cropped, flipped and normalized {slow} times as fast as by a `DataLoader` without
> workers, {fast} times as fast as by one with four.

{circumstances()}
Images of CIFAR-10's shape in batches of {BATCH}: median over {options.rounds} rounds, in which all take their turn in
one process; ratios of speeds with quartiles. The tests compare the pixels with a reference that crops and flips image
by image.

{speed_table(seconds, ["DataLoader, 0 workers", "DataLoader, 4 workers"], "images", BATCH)}"""
    print(page)
    if options.output is not None:
        options.output.write_text(page)


if __name__ == "__main__":
    main()
