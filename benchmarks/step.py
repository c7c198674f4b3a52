"""What is around the step: depthlab's whole loop beside a bare one, and beside the loop that is usual for CIFAR.

- depthlab: a run as `depthlab train` does it: batches, augmentation, update, default probes, logging; without the
  evaluations, which the others do not have.
- compiled, with --compile: the same run with train.compile; it begins with a cache of its own, and what compiling takes
  is told beside, not counted.
- bare: the same net and optimiser over batches that lie there prepared; nothing is read, not even the loss. It and
  depthlab's take turns of a fraction of a second.
- usual: torchvision's transforms image by image in a DataLoader, contiguous float32, torch's default SGD, loss.item()
  every 100 updates; in a process of its own, which allocates memory as any Python does: the others keep what they free.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import torch
from data import BATCH, popular, random_pixels
from measuring import TURN, Turns, circumstances, interleaved, speed, speed_table
from torch import Tensor
from torch.nn import functional as F

from depthlab import nets
from depthlab.config import DataConfig, ModelConfig, RunConfig, TrainConfig
from depthlab.data import Batches
from depthlab.runs.trial import Trial, load_splits
from depthlab.training import build_optimizer, prepare_process

RESULT = Path(__file__).parent / "results" / "step.md"
CPU = torch.device("cpu")
RESNET = ModelConfig(family="cnn", depth=20, width=16, norm="batch", skip="residual", bias=False)
CIFAR = DataConfig(name="cifar10", crop_padding=4, flip=True)
TRAIN = TrainConfig(batch_size=BATCH, momentum=0.9, lr=0.01, weight_decay=1e-4)
NETS = {
    "ResNet-20, float32": RunConfig(data=CIFAR, model=RESNET, train=TRAIN),
    "ResNet-20, bf16": RunConfig(data=CIFAR, model=RESNET, train=replace(TRAIN, precision="bf16")),
    "MLP-20x100": RunConfig(data=DataConfig(name="mnist"), model=ModelConfig(depth=20), train=TRAIN),
    "MLP-50x256": RunConfig(data=DataConfig(name="mnist"), model=ModelConfig(depth=50, width=256), train=TRAIN),
}
"""The MLPs read MNIST."""

MORE_ROUNDS = 5
"""As many of an MLP, whose stretches are short and whose ratios therefore spread, as of one round of a CNN."""


class EnoughError(Exception):
    """The stretch is over."""


def ours(
    config: RunConfig,
    settle: int,
    steps: int,
    second: list[float] | None = None,
    others_turn: Callable[[], object] = lambda: None,
) -> float:
    """Seconds of an update in a run of depthlab, which lets another have its turn before each of its own.

    second: list to which the seconds of the second update are added, which compiles.
    """
    own, begun, times = Turns(), (0, 0.0), dict[int, float]()

    def progress(done: int, *_: float | None) -> None:
        nonlocal begun
        times[done] = now = time.perf_counter()
        before, begin = begun
        is_last = done == settle + steps
        if done > settle and (is_last or now - begin >= TURN):
            own.add(done - before, now - begin)
        elif done != settle:
            return
        if is_last:
            raise EnoughError
        others_turn()
        begun = done, time.perf_counter()

    endless = replace(config, train=replace(config.train, steps=10**9, eval_every=10**9))
    with suppress(EnoughError):
        Trial(endless, CPU, progress).run()
    if second is not None:
        second.append(times[2] - times[1])
    return own.mean


def ours_beside_bare(
    config: RunConfig, batches: list[tuple[Tensor, Tensor]], settle: int, steps: int, found: list[float]
) -> float:
    """Seconds of an update in a run of depthlab; those of the bare loop, in turns with it, are added to `found`."""
    loop, others = bare(config, batches), Turns()
    is_first = len(found) % 2 == 0  # the net that is built first may lie better in memory

    def settled() -> None:
        for _ in range(settle):
            next(loop)

    def turn() -> None:
        if not (is_first or others.pieces):
            settled()
        others.take(lambda: next(loop))

    if is_first:
        settled()
    taken = ours(config, settle, steps, others_turn=turn)
    found.append(others.mean)
    return taken


def bare(config: RunConfig, batches: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Updates, and nothing else."""
    model = build(config)
    optimizer = build_optimizer(model, config.train)
    for inputs, labels in itertools.cycle(batches):
        with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
            logits = model(inputs)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        yield


def usual(config: RunConfig, workers: int, settle: int, steps: int) -> float:
    """Seconds of an update in the loop that popular repositories have."""
    batches = loader(workers)
    model = build(config, memory_format=torch.contiguous_format)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=config.train.lr, momentum=config.train.momentum, weight_decay=config.train.weight_decay
    )
    for count in range(settle + steps):
        if count == settle:
            begin = time.perf_counter()
        inputs, labels = next(batches)
        loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if count % 100 == 0:
            loss.item()
    return (time.perf_counter() - begin) / steps


def elsewhere(process: ProcessPoolExecutor, contender: Callable[..., float], *arguments: object) -> float:
    """What a contender takes in another process."""
    return process.submit(contender, *arguments).result()


@cache
def loader(workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The usual loop's batches; its workers stay from one round to the next."""
    return popular(random_pixels(), workers)


def build(config: RunConfig, memory_format: torch.memory_format = torch.channels_last) -> torch.nn.Module:
    """The net of a run."""
    channels, size = (3, 32) if config.data.name == "cifar10" else (1, 28)
    net = nets.build(config.model, channels=channels, size=size, classes=10, seed=0)
    return net.to(memory_format=memory_format) if config.model.family == "cnn" else net


def prepared(config: RunConfig, count: int) -> list[tuple[Tensor, Tensor]]:
    """The first batches of the run, made beforehand."""
    splits = load_splits(config.data, CPU)
    stream = Batches(splits.train, config.data, batch_size=BATCH, seed=0, mean=splits.mean, std=splits.std)
    return [stream[step] for step in range(count)]


def main() -> None:
    """Measures, and prints the page."""
    parser = argparse.ArgumentParser(description="depthlab's whole loop beside a bare one and the usual one.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100, help="timed updates; the probes read at one of 100")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--compile", action="store_true", help="also with train.compile; needs a C++ compiler")
    parser.add_argument("--output", nargs="?", type=Path, const=RESULT, help="also write it (default: results/ here)")
    options = parser.parse_args()
    apart = partial(ProcessPoolExecutor, 1, get_context("spawn"), torch.set_num_threads, (options.threads,))
    with tempfile.TemporaryDirectory() as compiled, apart() as process:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = compiled  # what an earlier round compiled, but nothing older
        page = measured(options, process)
    print(page)
    if options.output is not None:
        options.output.write_text(page)


def measured(options: argparse.Namespace, apart: ProcessPoolExecutor) -> str:
    """The page; what depthlab has no part in runs apart."""
    prepare_process(options.threads)
    tables, heads = [], []
    for name in options.nets:
        config, stretch = NETS[name], (5, options.steps)
        batches = prepared(config, 20)
        over, bares, second = ["bare"], list[float](), list[float]()
        contenders = {"depthlab": partial(ours_beside_bare, config, batches, *stretch, bares)}
        if options.compile:
            compiling = replace(config, train=replace(config.train, compile=True))
            contenders["compiled"] = partial(ours, compiling, *stretch, second)
            over.append("depthlab")
        if config.data.name == "cifar10":
            names = {f"usual, {workers} workers": workers for workers in (0, 2, 4)}
            contenders |= {
                each: partial(elsewhere, apart, usual, config, workers, *stretch) for each, workers in names.items()
            }
            over += names
        rounds = options.rounds * (1 if config.model.family == "cnn" else MORE_ROUNDS)
        seconds = {"bare": bares, **interleaved(contenders, rounds, name)}
        tables.append(f"## {name}\n\n{speed_table(seconds, over, 'updates')}")
        if second:
            again = f", again from torch's cache {statistics.median(second[1:]):.0f} s" if second[1:] else ""
            tables.append(f"Compiling, in the second update: {second[0]:.0f} s{again}.\n")
        usually = [other for other in over if other.startswith("usual")]
        beside = "".join(
            f", {speed(seconds, mine, other)} times that of a loop with a `DataLoader`{how}"
            for mine, how in (("depthlab", ""), ("compiled", " where it is compiled"))
            for other in usually[-1:]
            if mine in seconds
        )
        heads.append(f"> {speed(seconds, 'depthlab', 'bare')} ({name}){beside}")
    return f"""# What is around the step

> On {options.threads} thread{"s" * (options.threads > 1)}, batches, probes and readings included, a run's updates go
> at this share of the speed of a bare loop's:
{(";" + chr(10)).join(heads)}.

{circumstances()}
Batch {BATCH}, {options.steps} timed updates a round, {options.rounds} rounds, of MLPs {MORE_ROUNDS * options.rounds},
in each of which all take their turn, depthlab and the bare loop every {TURN:g} s; medians, ratios of speeds with
quartiles. `usual` is always float32, in a process of its own.

{chr(10).join(tables)}"""


if __name__ == "__main__":
    main()
