"""What it costs to pass once over all weights of a net, as a share of its training step.

Norms of gradients, weights and updates are three norms, a copy and a subtraction over every layer, so that the least a
watcher of every layer at every step can cost is their sum. The passes are timed in turn with the step itself.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from limit import stepper, timed
from measuring import circumstances, interleaved
from step import NETS as OTHER_NETS
from step import build
from torch import Tensor

from depthlab import nets
from depthlab.config import ModelConfig, RunConfig, TrainConfig
from depthlab.figures.tables import pipe_table
from depthlab.training import prepare_process

RESULT = Path(__file__).parent / "results" / "passes.md"
NETS = {
    "MLP-50x100": RunConfig(model=ModelConfig(depth=50, width=100), train=TrainConfig(batch_size=128)),
    "MLP-50x256": OTHER_NETS["MLP-50x256"],
}
STEP = "step"


def passes(weights: list[Tensor]) -> dict[str, Callable[[], object]]:
    """What can be done once over all square weights of a net, eagerly."""
    old = [weight.clone() for weight in weights]
    stacked = torch.stack(weights)
    return {
        "norms, one `foreach` operation": lambda: torch._foreach_norm(weights),
        "copy, one `foreach` operation": lambda: torch._foreach_copy_(old, weights),
        "difference, one `foreach` operation": lambda: torch._foreach_sub(weights, old),
        "stacking into one tensor": lambda: torch.stack(weights, out=stacked),
        "norms of the stacked tensor": lambda: torch.linalg.vector_norm(stacked, dim=(1, 2)),
    }


def all_of_it(weights: list[Tensor], gradients: list[Tensor], old: list[Tensor]) -> list[Tensor]:
    """Norms of gradients, weights and updates, and the copy for the next update."""
    updates = torch._foreach_sub(weights, old)
    norms = [torch._foreach_norm(each) for each in (gradients, weights, updates)]
    torch._foreach_copy_(old, weights)
    return [torch.stack(list(each)) for each in norms]


def measured(name: str, options: argparse.Namespace) -> list[list[str]]:
    """The rows of a net: each pass, its median time, and its share of the step."""
    config = NETS[name]
    random = torch.Generator().manual_seed(0)
    images = torch.randn(config.train.batch_size, 1, 28, 28, generator=random)
    labels = torch.randint(10, (config.train.batch_size,), generator=random)
    layers = [layer.weight.detach() for _, layer in nets.weight_layers(build(config))]
    weights = [weight for weight in layers if weight.shape == layers[1].shape]
    gradients, old = ([torch.randn_like(weight) for weight in weights] for _ in range(2))
    runs: dict[str, Callable[[], object]] = {STEP: stepper(config, images, labels), **passes(weights)}
    runs["all: three norms, difference, copy"] = partial(all_of_it, weights, gradients, old)
    if options.compile:
        compiled = torch.compile(all_of_it)
        compiled(weights, gradients, old)
        runs["all, as `torch.compile` makes it"] = partial(compiled, weights, gradients, old)
    with torch.no_grad():
        seconds = interleaved(
            {key: partial(timed, _with_gradient(run) if key == STEP else run, options.seconds)
             for key, run in runs.items()}, options.rounds, name
        )  # fmt: skip
    rows = []
    for key, times in seconds.items():
        shares = sorted(time / step for time, step in zip(times, seconds[STEP], strict=True))
        rows.append([name, key, f"{statistics.median(times) * 1e6:,.0f}", f"{statistics.median(shares):.1%}"])
    return rows


def _with_gradient(run: Callable[[], object]) -> Callable[[], object]:
    return torch.enable_grad()(run)


def main() -> None:
    """Measures, and prints the page."""
    parser = argparse.ArgumentParser(description="What a pass over all weights costs, as a share of the step.")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.3, help="that each runs for in a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="needs a C++ compiler")
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--output", nargs="?", type=Path, const=RESULT, help="also write it (default: results/ here)")
    options = parser.parse_args()
    prepare_process(options.threads)
    rows = [row for name in options.nets for row in measured(name, options)]
    heads = ["net", "pass over all square weights", "microseconds", "share of a step"]
    page = (
        f"# What a pass over all weights costs\n\n{circumstances()}\n"
        f"Batch 128, a fused optimiser; medians over {options.rounds} rounds, in which all take their turn in one\n"
        f"process.\n\n{pipe_table(heads, rows, ['left', 'left', 'right', 'right'])}\n"
    )
    print(page)
    if options.output:
        options.output.write_text(page)


if __name__ == "__main__":
    main()
