"""How near a training step comes to this machine's limit: the products and convolutions that it cannot do without.

- limit: every weight layer's product and its two gradients, alone, on tensors of the same shapes, over and over; the
  first layer without the gradient of its input. What is measured there is the machine's peak at these shapes.
- step: forward and backward pass and update of the whole net on one batch that lies there prepared.

Both do the same floating-point operations, as torch counts them, so that the ratio of their times is the share of the
limit that the step reaches. Where the rest goes is told by torch's profiler.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from measuring import circumstances, interleaved, ratios
from step import NETS as OTHER_NETS
from step import build
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.flop_counter import FlopCounterMode

from depthlab import nets
from depthlab.config import RunConfig
from depthlab.figures.tables import pipe_table
from depthlab.training import build_optimizer, prepare_process

RESULT = Path(__file__).parent / "results" / "limit.md"
RESNET = OTHER_NETS["ResNet-20, float32"]
NETS = {
    "MLP-50x256": OTHER_NETS["MLP-50x256"],
    "ResNet-20": RESNET,
    "ResNet-56": replace(RESNET, model=replace(RESNET.model, depth=56)),
}
STEP, SQUARE, BF16 = "step", "square product", "square product in bf16"
SIDE = 1024
"""Of the square matrices whose product is told beside the limit: about the most that the machine can do at all."""

OPERATIONS = {
    "products": ("mm", "addmm", "mkldnn_convolution", "_convolution", "convolution", "convolution_backward", "conv2d"),
    "normalization": ("native_batch_norm", "native_batch_norm_backward", "_batch_norm_impl_index", "batch_norm"),
    "activation": ("relu", "clamp_min", "threshold_backward"),
    "shortcuts and sums of gradients": ("add", "add_", "pad", "constant_pad_nd", "slice_backward", "sum"),
    "copies and fills": ("copy_", "clone", "fill_", "zero_", "contiguous", "to", "_to_copy"),
    "optimiser": ("_fused_sgd_",),
}
"""Names of torch's operations, by what they are for; what is in none is told as `other operations`."""

PYTHON = "Python, between operations"


@dataclass(frozen=True)
class Product:
    """A weight layer's product at its shapes, with the gradients that the backward pass needs of it."""

    inputs: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    needs_input_gradient: bool

    def operation(self) -> Callable[[], None]:
        """Does all of it once, on random tensors."""
        return self._convolution() if len(self.weight) == 4 else self._matrices()

    def _matrices(self) -> Callable[[], None]:
        x, weight = torch.randn(self.inputs), torch.randn(self.weight)
        gradient = torch.randn(self.inputs[0], self.weight[0])

        def run() -> None:
            torch.mm(x, weight.t())
            torch.mm(gradient.t(), x)
            if self.needs_input_gradient:
                torch.mm(gradient, weight)

        return run

    def _convolution(self) -> Callable[[], None]:
        x, weight = (torch.randn(shape).to(memory_format=torch.channels_last) for shape in (self.inputs, self.weight))
        shape = (None, self.stride, self.padding, (1, 1), False, (0, 0), 1)
        gradient = torch.randn_like(torch.convolution(x, weight, *shape))
        asked = [self.needs_input_gradient, True, False]

        def run() -> None:
            torch.convolution(x, weight, *shape)
            torch.ops.aten.convolution_backward(gradient, x, weight, None, *shape[1:], asked)

        return run


def products_of(model: nn.Module, images: Tensor) -> Counter[Product]:
    """The products of a net, and how often each comes."""
    found: Counter[Product] = Counter()

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        strides = (layer.stride, layer.padding) if isinstance(layer, nn.Conv2d) else ((), ())
        found[Product(tuple(inputs[0].shape), tuple(layer.weight.shape), *strides, inputs[0].requires_grad)] += 1

    handles = [layer.register_forward_hook(note) for _, layer in nets.weight_layers(model)]
    model(images)
    for handle in handles:
        handle.remove()
    return found


def stepper(config: RunConfig, images: Tensor, labels: Tensor) -> Callable[[], None]:
    """An update of the net of a run."""
    model = build(config)
    optimizer = build_optimizer(model, config.train)

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def timed(run: Callable[[], None], least: float) -> float:
    """Seconds of one run, mean over at least so many seconds."""
    run()
    count, begin = 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < least:
        run()
        count += 1
    return passed / count


def flops_of(run: Callable[[], None]) -> int:
    """Floating-point operations of the products in a run; a product with a sum is two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def shares_of(step: Callable[[], None], count: int) -> dict[str, float]:
    """Which share of a step each kind of operation has, by torch's profiler (whose own cost is part of it)."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(count):
            with record_function(STEP):
                step()
    kinds = {f"aten::{name}": kind for kind, names in OPERATIONS.items() for name in names}
    times: dict[str, float] = defaultdict(float)
    for event in found.key_averages():
        is_python = not event.key.startswith("aten::") and "Backward" not in event.key
        times[PYTHON if is_python else kinds.get(event.key, "other operations")] += event.self_cpu_time_total
    whole = sum(times.values())
    return {kind: time_ / whole for kind, time_ in sorted(times.items(), key=lambda item: -item[1])}


def measured(name: str, options: argparse.Namespace) -> tuple[list[str], list[list[str]]]:
    """The cells of a net's row, and the rows of its table of shares."""
    config = NETS[name]
    channels, size = (3, 32) if config.model.family == "cnn" else (1, 28)
    random = torch.Generator().manual_seed(0)
    images = torch.randn(config.train.batch_size, channels, size, size, generator=random)
    labels = torch.randint(10, (config.train.batch_size,), generator=random)
    step, products = stepper(config, images, labels), products_of(build(config), images)
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    runs = {STEP: step, SQUARE: partial(torch.mm, a, b), BF16: partial(torch.mm, a.bfloat16(), b.bfloat16())}
    runs |= {str(product): product.operation() for product in products}
    seconds = interleaved(
        {key: partial(timed, run, options.seconds) for key, run in runs.items()}, options.rounds, name
    )
    limit = [
        sum(count * seconds[str(product)][round_] for product, count in products.items())
        for round_ in range(options.rounds)
    ]
    flops = flops_of(step)
    alone = sum(count * flops_of(runs[str(product)]) for product, count in products.items())
    if alone != flops:
        raise RuntimeError(f"{name}: a step has {flops} operations, its products have {alone}")
    low, middle, high = ratios({STEP: seconds[STEP], "limit": limit}, STEP, "limit")
    speeds = [flops / 1e9 / statistics.median(each) for each in (seconds[STEP], limit)]
    speeds += [2 * SIDE**3 / 1e9 / statistics.median(seconds[square]) for square in (SQUARE, BF16)]
    cells = [name, f"{flops / 1e9:.3g}", *(f"{speed:.3g}" for speed in speeds)]
    shares = [[kind, f"{share:.1%}"] for kind, share in shares_of(step, options.profiled).items()]
    return [*cells, f"{middle:.1%} [{low:.1%}, {high:.1%}]"], shares


def main() -> None:
    """Measures, and prints the page."""
    parser = argparse.ArgumentParser(description="How near a training step comes to this machine's limit.")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="that everything runs for in a round")
    parser.add_argument("--profiled", type=int, default=10, help="steps that the profiler sees")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--output", nargs="?", type=Path, const=RESULT, help="also write it (default: results/ here)")
    options = parser.parse_args()
    prepare_process(options.threads)
    found = {name: measured(name, options) for name in options.nets}
    speeds = ["GFLOP/s of the step", "of its limit", "of a square product", "of that in bf16"]
    heads = ["net", "GFLOP a step", *speeds, "share of the limit"]
    rest = [
        f"## {name}\n\n{pipe_table(['of a step', 'share'], shares, ['left', 'right'])}"
        for name, (_, shares) in found.items()
    ]
    reached = ", ".join(f"{row[-1].split()[0]} ({name})" for name, (row, _) in found.items())
    page = f"""# The limit

> A training step's floating-point speed, as a share of that of its matrix products and convolutions alone: {reached}.

{circumstances()}
Batch {RESNET.train.batch_size}, float32, {options.rounds} rounds in which all take their turn, each for
{options.seconds:g} s; medians, the share with quartiles. The limit is the time of the same products alone, shape by
shape; beside it, the product of two matrices of {SIDE} x {SIDE}, and the same in bf16: where that is slower,
`train.precision=bf16` is too. Below, where the time of a step goes, by torch's profiler.

{pipe_table(heads, [row for row, _ in found.values()], ["left"] + ["right"] * 6)}
{chr(10).join(rest)}"""
    print(page)
    if options.output is not None:
        options.output.write_text(page)


if __name__ == "__main__":
    main()
