"""How many runs of a sweep are trained at once on this machine, and with how many threads each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import Any

import torch

from depthlab.config import DATASETS, RunConfig, SweepConfig
from depthlab.runs.progress import tell
from depthlab.runs.rehearsal import COMPILER, Failure, Rehearsal, kind, rehearse
from depthlab.runs.trial import EVALUATION_BATCH
from depthlab.training import available_cores, available_memory, free_gpu_memory

NO_LIMIT = 10_000
"""Runs at once where a cluster says how many it takes."""

SHARE = 0.9
"""Of the memory that is free, what a sweep takes."""

PROCESS = 512 * 2**20
"""Bytes of a process that trains a run of next to nothing: 270 to 420 MiB were measured, of two builds of torch."""

REHEARSED = 3
"""Kinds of runs that are rehearsed, those with the highest bounds: of two, the one with the lower may take more. Those
without a bound, models of torchvision, are all rehearsed beside them: which of them is large is not known."""

CONTEXT = 2**29
"""Bytes that a process takes of a GPU before it has put anything there: assumed, not measured."""

ACTIVATION, EVALUATED, WEIGHT = 16, 6, 24
"""Bounds of what a run has in memory for each float32 of a batch's activations, of those of a layer that is evaluated,
and of its weights. At most 9, 5 and 15 were measured, of MLPs, CNNs and recurrent nets: the heap gets holes."""


@dataclass(frozen=True)
class Packing:
    """So many runs at once with so many threads each; reason: why they are fewer than the cores would allow, or ""."""

    workers: int
    threads: int
    reason: str = ""

    def __str__(self) -> str:
        """As a sweep tells it at its start."""
        threads = f" with {self.threads} threads each" if self.threads > 1 else ""
        return f"{self.workers} at once{threads}" + (f" ({self.reason})" if self.reason else "")


def pack(configs: Sequence[RunConfig], launch: SweepConfig, device: str) -> Packing:
    """What a sweep takes if it is not told: one process of one thread on each core.

    Many runs share a machine better so than one after the other with all threads, and a run's bits, which depend on the
    number of its threads, do not depend on what else the sweep trains. They are fewer where memory is short: of the
    largest runs, so many as fit into 0.9 of it together. A bound from the configuration says whether that could happen;
    if so, runs of the largest kinds are rehearsed, and what they took counts for all runs whose bound is larger. The
    cores that are then left over become threads if all runs are of CNNs or of torchvision's models, as they do for one
    such run without a sweep; thin layers are slower on several threads. On a GPU as many runs share it as its memory
    and the machine's hold; there it always takes a rehearsal. That has been tested with made-up memory only, not on a
    GPU.

    sweep.workers and sweep.threads win, and nothing is then estimated; a cluster says itself what it takes. A run that
    asks for more than there is trains alone, which is told.
    """
    if launch.workers or _is_cluster(launch):
        return Packing(min(len(configs), launch.workers or NO_LIMIT), launch.threads or 1)
    cores, on_gpu = available_cores(), device.startswith("cuda") or launch.gpus > 0
    most = min(len(configs), max(cores // (launch.threads or 1), 1))
    if most == 1 or (launch.gpus and launch.engine == "ray"):  # Ray gives each run GPUs of its own
        return Packing(1, launch.threads or 1)
    bounds = [PROCESS + bound(config) for config in configs]
    if not on_gpu and _fitting(bounds, SHARE * available_memory()) >= most:
        return Packing(most, launch.threads or 1)
    place = torch.device("cpu" if not on_gpu else device if device.startswith("cuda") else "cuda")
    fits, reason = _fits(_rehearsed(configs, bounds, place, launch.threads or 1), bounds, place)
    if fits == 0:
        tell(f"there may be too little memory even for one run at a time: {reason}; it is tried all the same")
    workers = max(min(fits, most), 1)
    if workers == most:
        return Packing(most, launch.threads or 1)
    gain = not on_gpu and all(config.model.gains_from_threads for config in configs)
    return Packing(workers, launch.threads or (cores // workers if gain else 1), reason)


def _rehearsed(
    configs: Sequence[RunConfig], bounds: Sequence[float], place: torch.device, threads: int
) -> Sequence[Rehearsal | Failure]:
    """What became of one run of each of the largest kinds, and of each kind without a bound."""
    falling = sorted(zip(bounds, configs, strict=True), key=lambda pair: pair[0], reverse=True)
    largest: dict[Any, RunConfig] = {}
    for _, config in falling:
        largest.setdefault(kind(config), config)
    boundless = sum(math.isinf(bound(config)) for config in largest.values())
    return list(rehearse(list(islice(largest.values(), boundless + REHEARSED)), place, threads))


def _fits(found: Sequence[Rehearsal | Failure], bounds: Sequence[float], place: torch.device) -> tuple[int, str]:
    """How many runs fit into what is free, and what to tell of that."""
    free, on_gpu = available_memory(), place.type == "cuda"
    if any(isinstance(each, Failure) and each.killed for each in found):
        return 0, f"the process of a rehearsal was killed, with {_gib(free)} free"
    known = [each for each in found if isinstance(each, Rehearsal)]
    if not known:  # whatever it is, the runs themselves will tell
        return 1 if on_gpu or math.isinf(max(bounds)) else _fitting(bounds, SHARE * free), f"{_gib(free)} are free"
    most = max(each.memory for each in known)
    are_bounds = not on_gpu and most <= max(bounds)
    fits = _fitting([min(size, most) if are_bounds else most for size in bounds], SHARE * free)
    reason = f"a run takes up to {_gib(most)}, and {_gib(free)} are free"
    if not on_gpu:
        return fits, reason
    left, each_on_it = free_gpu_memory(place), CONTEXT + max(each.gpu_memory for each in known)
    if (on_it := int(SHARE * left // each_on_it)) >= fits:
        return fits, reason
    return on_it, f"a run takes up to {_gib(each_on_it)} of the GPU, and {_gib(left)} of it are free"


def _fitting(sizes: Sequence[float], room: float) -> int:
    """How many fit together, whichever they are: so many of the largest."""
    return sum(together <= room for together in accumulate(sorted(sizes, reverse=True)))


def _is_cluster(launch: SweepConfig) -> bool:
    return launch.engine == "submitit_slurm" or (launch.engine == "ray" and launch.ray.address is not None)


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def bound(config: RunConfig) -> float:
    """Bytes that training a run takes at most beside those of its process, on the CPU; a compiler's too, if it has one.

    4 (16 b sum_l u_l + 6 * 500 max_l u_l + 24 P): b images in a batch, u_l outputs of weight layer l for one image, 500
    images evaluated at once, P weights. The factors bound what was measured. Infinite for torchvision's models, whose
    layers the configuration does not tell: these are rehearsed.
    """
    if config.model.family == "torchvision":
        return math.inf
    layers = list(_layers(config))
    outputs = [count for count, _, _ in layers]
    batch = ACTIVATION * config.train.batch_size * sum(outputs) + EVALUATED * EVALUATION_BATCH * max(outputs)
    compiler = 2 * COMPILER if config.train.compile else 0  # and 220 MiB more of the process were measured
    return compiler + 4 * (batch + WEIGHT * sum(weights for _, weights, _ in layers))


def work(config: RunConfig) -> int:
    """Multiplications of an update's forward pass, about: b sum_l w_l s_l, w_l weights that are used at s_l places.

    Of torchvision's models only what is in proportion to it: pixels of a batch.
    """
    if config.model.family == "torchvision":
        return config.train.batch_size * (config.model.image_size or DATASETS[config.data.name].size) ** 2
    return config.train.batch_size * sum(weights * places for _, weights, places in _layers(config))


def _layers(config: RunConfig) -> Iterator[tuple[int, int, int]]:
    """Outputs for one image, weights, and places where these are used, of each weight layer; a cell's are steps."""
    model, facts = config.model, DATASETS[config.data.name]
    each = 2 if model.skip == "highway" else GATES[model.cell]
    inputs, width, size = facts.channels * facts.size**2, model.width, facts.size
    if model.family == "rnn":
        yield each * size * width, each * width * (facts.channels * size + width), size
    elif model.family == "mlp":
        yield width, inputs * width, 1
        yield from [(each * width, each * width**2, 1)] * (model.depth - 2)
    else:
        yield width * size**2, 9 * facts.channels * width, size**2
        for stage in range(model.stages):
            if stage:
                width, size = 2 * width, -(-size // 2)
            yield from [(each * width * size**2, each * 9 * width**2, size**2)] * ((model.depth - 2) // model.stages)
    yield facts.classes, width * facts.classes, 1


GATES = {"rnn": 1, "lstm": 4, "gru": 3}
"""By config.cell: how many times a cell has the weights and outputs of a plain one."""
