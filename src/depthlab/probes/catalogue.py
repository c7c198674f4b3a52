"""What can be read where: each probe is a statistic at a site."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from torch import Tensor

from depthlab.config import suggest
from depthlab.probes import statistics

Site = Literal["weight", "gradient", "update", "output", "activation", "output_gradient"]
"""Where a weight layer z = W x is read: W, dL/dW as the optimiser receives it, what the optimiser adds to W, z, what
the next activation makes of z, dL/dz."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A statistic at a site.

    statistic: of a float tensor (layers, examples, places, units), a number for each layer: (layers,). Places are
    pixels or tokens. A weight, its gradient and its update come as (layers, outputs, 1, inputs). None for what needs
    more than one tensor, or all examples instead of a sample: those have code of their own.
    """

    site: Site
    statistic: Callable[[Tensor], Tensor] | None = None


class Readout(NamedTuple):
    """What a probe read: `values` (layers,), float64 on their device, of the weights at `positions`."""

    probe: str
    positions: Sequence[int]
    values: Tensor


def entries(statistic: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """A statistic of all entries of each layer."""
    return partial(statistic, dim=(-3, -2, -1))


def rank(tensor: Tensor) -> Tensor:
    """Effective rank of the matrix whose rows are places, or the outputs of a weight."""
    return statistics.effective_rank(tensor.flatten(-3, -2))


def example_cosine(tensor: Tensor) -> Tensor:
    """Mean cosine between examples, each with all of its places."""
    return statistics.example_cosine(tensor.flatten(-2))


PROBES: dict[str, Probe] = {
    "grad_norm": Probe("gradient", entries(statistics.norm)),
    "grad_rms": Probe("gradient", entries(statistics.rms)),
    "grad_std": Probe("gradient", entries(statistics.std)),
    "grad_sparsity": Probe("gradient", entries(statistics.sparsity)),
    "grad_rank": Probe("gradient", rank),
    "grad_cosine": Probe("gradient"),
    "grad_snr": Probe("gradient"),
    "weight_norm": Probe("weight", entries(statistics.norm)),
    "weight_mean": Probe("weight", entries(statistics.mean)),
    "weight_std": Probe("weight", entries(statistics.std)),
    "weight_sparsity": Probe("weight", entries(statistics.sparsity)),
    "weight_rank": Probe("weight", rank),
    "update_norm": Probe("update", entries(statistics.norm)),
    "update_ratio": Probe("update"),
    "output_norm": Probe("output", entries(statistics.norm)),
    "output_rms": Probe("output", entries(statistics.rms)),
    "output_mean": Probe("output", entries(statistics.mean)),
    "output_std": Probe("output", entries(statistics.std)),
    "output_rank": Probe("output", rank),
    "output_cosine": Probe("output", example_cosine),
    "activation_mean": Probe("activation", entries(statistics.mean)),
    "activation_std": Probe("activation", entries(statistics.std)),
    "activation_sparsity": Probe("activation", entries(statistics.sparsity)),
    "activation_rank": Probe("activation", rank),
    "saturation": Probe("activation"),
    "dead_fraction": Probe("activation"),
    "backward_norm": Probe("output_gradient"),
    "backward_rms": Probe("output_gradient"),
}

SCALE_WITH_LOSS = {"grad_norm", "grad_rms", "grad_std", "backward_norm", "backward_rms"}


def known(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each once. Raises ValueError on one that is no probe."""
    wanted = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    for name in wanted:
        if name not in PROBES:
            raise ValueError(f"probe {name!r} must be one of {', '.join(PROBES)}{suggest(name, tuple(PROBES))}")
    return wanted
