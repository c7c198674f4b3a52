"""Time and memory of a training step against depth, with and without activation checkpointing, and how they grow.

Each net is in a process of its own, 10,000 layers deep the deepest. An exponent of 1 is linear growth. Two memories are
told, both less those of a net of four layers: the highest resident size of the process; and by how much it rises in the
training steps, when weights, gradients and momentum are already there: activations, and gaps between them. What
checkpointing costs is the median ratio of two steps in turn, in one more process that has two nets.

Both nets are orthogonal, with tanh. Signals of an MLP with relu and of width 100 shrink with depth even with He's init:
beyond 7,000 layers they are denormal numbers, with which processors work some thirty times slower, and a step of 10,000
layers takes 20 seconds.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
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
    "MLP, width 100, batch 128": (ModelConfig(width=100, init="orthogonal", activation="tanh"), 128),
    "plain CNN, 16 channels, 8 x 8, batch 32": (
        ModelConfig(family="cnn", stages=1, width=16, init="delta_orthogonal", activation="tanh"),
        32,
    ),
}
DEPTHS = (10, 30, 100, 300, 1000, 3000, 10_000)
DEEP = 100  # layers from which on the growth is fitted
SIZE = 8  # pixels of the images
LEAST_LAYERS = 3000  # that pass in the steps whose ratios are taken, so that those of shallow nets are many


class Training:
    """A net of a family with its optimiser, and one batch that it is trained on."""

    def __init__(self, family: str, depth: int, *, checkpointing: bool) -> None:
        config, batch = FAMILIES[family]
        config = ModelConfig(**{**vars(config), "depth": depth})
        self.model = nets.build(config, channels=1, size=SIZE, classes=10, seed=0)
        if config.family == "cnn":
            self.model = self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.model, TrainConfig(lr=1e-4))
        random = torch.Generator().manual_seed(0)
        self.images = torch.randn(batch, 1, SIZE, SIZE, generator=random)
        self.labels = torch.randint(10, (batch,), generator=random)
        gradients = nets.allocate_gradients(self.model)
        self.optimizer.step()  # makes the momentum
        self.before = highest_mebibytes()
        self.gradients = gradients if checkpointing else None
        if not checkpointing:
            self.optimizer.zero_grad(set_to_none=True)

    def step(self) -> float:
        """Takes a step; the seconds it took."""
        begin = time.perf_counter()
        logits = self.model(self.images, activation_checkpointing=self.gradients is not None)
        F.cross_entropy(logits, self.labels).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.gradients is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self.gradients.fill_(-0.0)
        return time.perf_counter() - begin


def step_of(family: str, depth: int, steps: int, *, checkpointing: bool) -> dict[str, float]:
    """Median seconds of a step, the highest resident size so far and its rise in the steps in MiB; in this process."""
    training = Training(family, depth, checkpointing=checkpointing)
    times = [training.step() for _ in range(steps)]
    highest = highest_mebibytes()
    return {"seconds": statistics.median(times[1:] or times), "mebibytes": highest, "rise": highest - training.before}


def cost_of(family: str, depth: int, steps: int) -> dict[str, float]:
    """Median over pairs of steps, taken in turn, of the time with checkpointing over that without; in this process."""
    without, with_ = (Training(family, depth, checkpointing=checkpointing) for checkpointing in (False, True))
    pairs = [(with_.step(), without.step()) for _ in range(max(steps, LEAST_LAYERS // depth))]
    return {"ratio": statistics.median(again / once for again, once in pairs[1:] or pairs)}


def highest_mebibytes() -> float:
    """The highest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measured(family: str, depth: int, steps: int, mode: str) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--family", family, "--depth", str(depth), "--steps", str(steps)]
    command += ["--mode", mode]
    found: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def exponent(depths: list[int], values: list[float]) -> float:
    """Slope of log value over log depth, by least squares."""
    return float(np.polyfit(np.log(depths), np.log(values), 1)[0])


def section(family: str, options: argparse.Namespace, progress: tqdm[None]) -> tuple[str, str]:
    """Markdown: a row for each depth, then the exponents; and a headline."""
    least = measured(family, 4, 2, "without")
    found: list[tuple[dict[str, float], dict[str, float]]] = []
    ratios: list[float] = []
    for depth in options.depths:
        without, with_ = (measured(family, depth, options.steps, mode) for mode in ("without", "with"))
        ratios.append(measured(family, depth, options.steps, "ratio")["ratio"])
        for each in (without, with_):
            each["mebibytes"] = max(each["mebibytes"] - least["mebibytes"], 0.1)
            each["rise"] = max(each["rise"] - least["rise"], 0.1)
        found.append((without, with_))
        progress.update()
    heads = ["layers", *["ms a step", "MiB", "of activations"] * 2, "time over without"]
    rows = [
        [str(depth), *cells(without), *cells(with_), f"{ratio:.2f}"]
        for depth, (without, with_), ratio in zip(options.depths, found, ratios, strict=True)
    ]
    without, with_ = (Growth.of(options.depths, list(each)) for each in zip(*found, strict=True))
    table = pipe_table(heads, rows, ["right"] * len(heads))
    words = f"Without activation checkpointing{without}.\nWith activation checkpointing{with_}."
    head = (
        f"{family}: from {DEEP} to {max(options.depths):,} layers a step's time grows as depth^{without.time:.2f}, "
        f"and the memory of its activations as depth^{without.rise:.2f}; with activation checkpointing that grows as "
        f"depth^{with_.rise:.2f}, for {min(ratios):.2f} to {max(ratios):.2f} times the time from "
        f"{min(options.depths)} layers on."
    )
    return f"## {family}\n\n{table}\n{words}\n", head


def cells(step: dict[str, float]) -> list[str]:
    """Of the table."""
    return [f"{1e3 * step['seconds']:.3g}", f"{step['mebibytes']:.3g}", f"{step['rise']:.3g}"]


@dataclass(frozen=True)
class Growth:
    """Exponents of time, of memory and of what of it comes in a step, over depth."""

    time: float
    memory: float
    rise: float

    @classmethod
    def of(cls, depths: list[int], steps: list[dict[str, float]]) -> Growth:
        """Fitted from DEEP layers on, of which there must be two depths."""
        deep = [(depth, step) for depth, step in zip(depths, steps, strict=True) if depth >= DEEP]
        names = ("seconds", "mebibytes", "rise")
        return cls(*(exponent([depth for depth, _ in deep], [step[name] for _, step in deep]) for name in names))

    def __str__(self) -> str:
        """As a sentence goes on."""
        return (
            f", from {DEEP} layers on: time grows as depth^{self.time:.2f}, memory as depth^{self.memory:.2f}, that of "
            f"activations as depth^{self.rise:.2f}"
        )


def main() -> None:
    """Measures, and prints the page."""
    parser = argparse.ArgumentParser(description="Time and memory of a training step against depth.")
    parser.add_argument("--depths", nargs="+", type=int, default=DEPTHS)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--output", nargs="?", type=Path, const=RESULT, help="also write it (default: results/ here)")
    parser.add_argument("--family", choices=FAMILIES, help="only this one, at --depth; prints JSON")
    parser.add_argument("--depth", type=int)
    parser.add_argument(
        "--mode", choices=("without", "with", "ratio"), help="activation checkpointing, or what it costs"
    )
    options = parser.parse_args()
    if options.family is not None:
        prepare_process(1)
        if options.mode == "ratio":
            found = cost_of(options.family, options.depth, options.steps)
        else:
            found = step_of(options.family, options.depth, options.steps, checkpointing=options.mode == "with")
        print(json.dumps(found))
        return
    if sum(depth >= DEEP for depth in options.depths) < 2:
        parser.error(f"--depths needs two depths of {DEEP} layers or more, between which growth is fitted")
    prepare_process(1)
    with tqdm(total=len(FAMILIES) * len(options.depths)) as progress:
        sections = [section(family, options, progress) for family in FAMILIES]
    page = f"""# Depth

> {(chr(10) + "> ").join(head for _, head in sections)}

{circumstances()}
One thread; median of {options.steps - 1} training steps with a fused optimiser, first without activation checkpointing,
then with it; the last column is the median ratio of two steps in turn. MiB: memory above that of the same process with
a net of 4 layers; of activations: what of it came in the training steps, when weights, gradients and momentum were
already there.

{chr(10).join(text for text, _ in sections)}"""
    print(page)
    if options.output is not None:
        options.output.write_text(page)


if __name__ == "__main__":
    main()
