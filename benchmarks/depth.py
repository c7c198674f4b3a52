"""Time and memory of a training step against depth, each depth in a process of its own, with the fitted exponents.

An exponent of 1 is linear growth. Memory is the highest resident size of the process less that of one which has built
a net of two layers.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from measuring import circumstances
from torch.nn import functional as F
from tqdm import tqdm

from depthlab import nets
from depthlab.config import ModelConfig, TrainConfig
from depthlab.figures.tables import pipe_table
from depthlab.training import build_optimizer, prepare_process

RESULT = Path(__file__).parent / "results" / "depth.md"
FAMILIES = {
    "MLP, width 100, batch 128": (ModelConfig(width=100), 128),
    "plain CNN, 16 channels, 8 x 8, batch 32": (
        ModelConfig(family="cnn", stages=1, width=16, init="delta_orthogonal", activation="tanh"),
        32,
    ),
}
DEPTHS = (10, 30, 100, 300, 1000)
SIZE = 8  # pixels of the images


def step_of(family: str, depth: int, steps: int) -> dict[str, float]:
    """Median seconds of a step, and the highest resident size so far in MiB; in this process."""
    prepare_process(1)
    config, batch = FAMILIES[family]
    config = ModelConfig(**{**vars(config), "depth": depth})
    model = nets.build(config, channels=1, size=SIZE, classes=10, seed=0)
    if config.family == "cnn":
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, TrainConfig(lr=1e-4))
    random = torch.Generator().manual_seed(0)
    images, labels = torch.randn(batch, 1, SIZE, SIZE, generator=random), torch.randint(10, (batch,), generator=random)
    times = []
    for _ in range(steps):
        begin = time.perf_counter()
        F.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter() - begin)
    return {
        "seconds": statistics.median(times[1:] or times),
        "mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def measured(family: str, depth: int, steps: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--family", family, "--depth", str(depth), "--steps", str(steps)]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def exponent(depths: list[int], values: list[float]) -> float:
    """Slope of log value over log depth, by least squares."""
    return float(np.polyfit(np.log(depths), np.log(values), 1)[0])


def section(family: str, options: argparse.Namespace, progress: tqdm[None]) -> str:
    """Markdown: a row for each depth, then the exponents."""
    least = measured(family, 4, 2)["mebibytes"]
    found = {}
    for depth in options.depths:
        found[depth] = measured(family, depth, options.steps)
        progress.update()
    rows = [
        [str(depth), f"{1e3 * each['seconds']:.3g}", f"{max(each['mebibytes'] - least, 0):.3g}"]
        for depth, each in found.items()
    ]
    deep = [depth for depth in found if depth >= 100]
    slopes = [
        exponent(deep, [found[depth]["seconds"] for depth in deep]),
        exponent(deep, [found[depth]["mebibytes"] - least for depth in deep]),
    ]
    table = pipe_table(["layers", "ms a step", "MiB"], rows, ["right"] * 3)
    words = f"From 100 layers on time grows as depth^{slopes[0]:.2f}, memory as depth^{slopes[1]:.2f}."
    return f"## {family}\n\n{table}\n{words}\n"


def main() -> None:
    """Measures, and prints the page."""
    parser = argparse.ArgumentParser(description="Time and memory of a training step against depth.")
    parser.add_argument("--depths", nargs="+", type=int, default=DEPTHS)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--output", nargs="?", type=Path, const=RESULT, help="also write it (default: results/ here)")
    parser.add_argument("--family", choices=FAMILIES, help="only this one, at --depth; prints JSON")
    parser.add_argument("--depth", type=int)
    options = parser.parse_args()
    if options.family is not None:
        print(json.dumps(step_of(options.family, options.depth, options.steps)))
        return
    with tqdm(total=len(FAMILIES) * len(options.depths)) as progress:
        sections = [section(family, options, progress) for family in FAMILIES]
    page = f"""# Depth

{circumstances()}
One thread; median of {options.steps - 1} training steps with a fused optimiser; memory above that of the same process
with a net of 4 layers.

{chr(10).join(sections)}"""
    print(page)
    if options.output is not None:
        options.output.write_text(page)


if __name__ == "__main__":
    main()
