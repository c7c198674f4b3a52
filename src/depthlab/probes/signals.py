"""What passes a network's weight layers in one update: outputs, activations and their gradients, kept as samples."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from depthlab.probes import statistics
from depthlab.probes.catalogue import PROBES, Readout
from depthlab.probes.trace import Trace

SAMPLE_ENTRIES = 2**16
"""A sample of an output holds about this many entries at most: of large images and long texts, a grid of places."""

EDGES = {
    "tanh": statistics.SATURATION_EDGES[nn.Tanh],
    "sigmoid": statistics.SATURATION_EDGES[nn.Sigmoid],
}


Samples = defaultdict[int, list[Tensor]]
"""By weight, one for each call."""


@dataclass
class Forward:
    """What one forward pass showed. is_trained: backward has come to it."""

    outputs: Samples = field(default_factory=lambda: defaultdict(list))
    activations: Samples = field(default_factory=lambda: defaultdict(list))
    before: dict[str, Samples] = field(default_factory=lambda: {kind: defaultdict(list) for kind in EDGES})
    sums: Samples = field(default_factory=lambda: defaultdict(list))
    gradients: Samples = field(default_factory=lambda: defaultdict(list))
    entries: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    channels: dict[int, int] = field(default_factory=dict)
    is_trained: bool = False

    def add(self, other: Forward) -> None:
        """Joins what another pass showed."""
        for mine, theirs in (
            (self.outputs, other.outputs),
            (self.activations, other.activations),
            (self.gradients, other.gradients),
            (self.sums, other.sums),
            *((self.before[kind], other.before[kind]) for kind in EDGES),
        ):
            for weight, samples in theirs.items():
                mine[weight] += samples
        for weight, entries in other.entries.items():
            self.entries[weight] += entries


class Signals:
    """Collects, from `open` to `read`, what the probes of outputs, activations and output gradients ask for.

    weights: parameters that may be those of weight layers; results are given by their positions.
    examples: how many of a batch are sampled (the first); None: all examples, at all places.
    wanted: positions that are read; None: all. The order in which data flows is noted of all.

    A layer that is called several times, or in several micro-batches, has one number for all of its calls: samples are
    joined (calls of another output shape are left out), norms of gradients are those of all calls together. Passes to
    which no backward pass has come are left out, and those whose gradients were thrown away.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Sequence[Tensor],
        probes: Iterable[str],
        *,
        examples: int | None,
        wanted: Container[int] | None = None,
    ) -> None:
        self._probes = [name for name in probes if PROBES[name].site in ("output", "activation", "output_gradient")]
        sites = {PROBES[name].site for name in self._probes}
        self._weights = weights
        self._wanted = range(len(weights)) if wanted is None else wanted
        self._examples = examples
        self._samples_outputs = "output" in sites
        self._samples_activations = any(
            PROBES[name].site == "activation" and PROBES[name].statistic for name in self._probes
        )
        self._activated: set[int] = set()
        self._is_alone = False
        self._trace = Trace(model, weights, self, gradients="output_gradient" in sites)
        self.order: dict[int, None] = {}
        """Weights of layers in the order in which data first came to them, over all passes so far."""
        self.inner: set[int] = set()
        """Those of them that have no output of their own to be seen."""
        self.forget()

    def forget(self) -> None:
        """Drops what was collected."""
        self._forwards: list[Forward] = []
        self._now = Forward()

    def open(self, *, alone: bool = False) -> None:
        """Begins to look; alone: nobody else sees anything meanwhile."""
        self._is_alone = alone
        self._trace.open(alone=alone)

    @property
    def parts(self) -> set[int]:
        """Weights that were seen only as parts of others, and make no layer."""
        return self._trace.parts - self.order.keys()

    @property
    def seconds(self) -> float:
        """What looking has cost the passes so far."""
        return self._trace.seconds

    def close(self) -> None:
        """Stops, and drops what was not read."""
        self._trace.close()
        self.forget()

    def begin(self) -> Forward:
        """Called by the trace."""
        # `measure` asks for gradients without storing them
        if not self._is_alone and any(forward.is_trained for forward in self._forwards) and self._has_no_gradient():
            self.forget()  # they were set to None and led to no update: a batch was skipped, another network trained
        self._now = Forward()
        self._forwards.append(self._now)
        return self._now

    def reached(self, forward: Forward) -> None:
        """Called by the trace."""
        forward.is_trained = True

    def output(self, weight: int, tensor: Tensor, *, channels: int, inner: Sequence[int]) -> None:
        """Called by the trace."""
        if weight not in self.order or weight in self.inner or inner:
            self._note_order(weight, inner)
        self._now.channels[weight] = channels
        is_sampled = self._samples_outputs or (self._samples_activations and weight not in self._activated)
        if is_sampled and weight in self._wanted and not tensor.is_complex():
            self._now.outputs[weight].append(self._sample(tensor, channels))

    def activation(self, weight: int, kind: str, before: Tensor, apply: Callable[[], Any]) -> Any:
        """Called by the trace. In place or not, `before` is read before, and the activation after it."""
        if weight not in self._wanted:
            return apply()
        channels = self._now.channels[weight]
        if kind in EDGES and "saturation" in self._probes:
            self._now.before[kind][weight].append(self._sample(before, channels))
        result = apply()
        if isinstance(result, Tensor):
            after = result.detach()
            if self._samples_activations:
                self._activated.add(weight)
                self._now.activations[weight].append(self._sample(after, channels))
            if kind == "relu" and "dead_fraction" in self._probes and after.ndim > 1:
                units = _units(after, channels)
                # none is below 0; of channels last torch takes ten times as long to find the largest
                sums = after.sum([dim for dim in range(after.ndim) if dim != units])
                self._now.sums[weight].append(sums[None])
        return result

    def output_gradient(self, forward: Forward | None, weight: int, gradient: Tensor) -> None:
        """Called by the trace, during backward."""
        forward = forward or self._now
        if weight in self._wanted:
            forward.gradients[weight].append(statistics.norm(gradient))
            forward.entries[weight] += gradient.numel()

    @torch.no_grad()
    def read(self, unscale: Tensor | float = 1.0) -> list[Readout]:
        """The numbers of all weights that have one; then all is forgotten.

        unscale: factor that takes the gradients back to those of the loss, for losses that were scaled.
        """
        shown = Forward()
        for forward in self._forwards:
            if forward.is_trained:
                shown.add(forward)
        stacks = {
            "output": _stacked(shown.outputs) if self._samples_outputs else [],
            "activation": _stacked({**shown.outputs, **shown.activations}) if self._samples_activations else [],
        }
        found = [
            Readout(name, weights, statistic(stack))
            for name in self._probes
            if (statistic := PROBES[name].statistic) is not None
            for weights, stack in stacks[PROBES[name].site]
        ]
        for kind, edge in EDGES.items():
            for weights, before in _stacked(shown.before[kind]):
                found.append(Readout("saturation", weights, statistics.saturation(before, edge, dim=(-3, -2, -1))))
        # the sum of a unit's activations over all examples and places is 0 where the unit never was active
        for weights, sums in _stacked(shown.sums):
            found.append(Readout("dead_fraction", weights, _dead(sums.sum(dim=1))))
        found += self._backward(shown, unscale)
        # what had an activation before, and now has none, gets its own output sampled next time
        self._activated &= shown.activations.keys()
        self.forget()
        return found

    def _has_no_gradient(self) -> bool:
        return all(weight.grad is None for weight in self._weights)

    def _backward(self, shown: Forward, unscale: Tensor | float) -> list[Readout]:
        if not shown.gradients:
            return []
        weights = list(shown.gradients)
        device = shown.gradients[weights[0]][0].device
        norms = torch.stack([_root_of_squares(shown.gradients[weight]).to(device) for weight in weights]) * unscale
        found = [Readout("backward_norm", weights, norms)] if "backward_norm" in self._probes else []
        if "backward_rms" in self._probes:
            entries = torch.tensor([shown.entries[weight] for weight in weights], dtype=torch.float64, device=device)
            found.append(Readout("backward_rms", weights, norms / entries.sqrt()))
        return found

    def _note_order(self, weight: int, inner: Sequence[int]) -> None:
        for position in inner:
            if position not in self.order:
                self.inner.add(position)
            self.order.setdefault(position)
        self.order.setdefault(weight)
        self.inner.discard(weight)

    def _sample(self, tensor: Tensor, channels: int) -> Tensor:
        """A copy (examples, places, units) of part of an output."""
        if tensor.ndim == 2:
            return tensor[: self._examples].clone(memory_format=torch.contiguous_format).unsqueeze(1)
        tensor = tensor[None] if tensor.ndim < 2 else tensor
        tensor = tensor.movedim(_units(tensor, channels), -1)
        if self._examples is not None:
            tensor = tensor[: self._examples]
            excess = tensor.numel() / SAMPLE_ENTRIES
            places = tensor.ndim - 2
            if places and excess > 1:
                stride = math.ceil(excess ** (1 / places))
                tensor = tensor[(slice(None), *(slice(None, None, stride),) * places)]
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
        return copy.view(copy.shape[0], -1, copy.shape[-1])


def _stacked(samples: Mapping[int, list[Tensor]]) -> list[tuple[list[int], Tensor]]:
    """Samples of equal shape, type and device together in one tensor, with their weights."""
    groups: defaultdict[tuple[Any, ...], dict[int, Tensor]] = defaultdict(dict)
    for weight, parts in samples.items():
        sample = _joined(parts)
        groups[sample.shape, sample.dtype, sample.device][weight] = sample
    return [(list(group), torch.stack(list(group.values()))) for group in groups.values()]


def _joined(parts: list[Tensor]) -> Tensor:
    if len(parts) == 1:
        return parts[0]
    return torch.cat([part for part in parts if part.shape[1:] == parts[0].shape[1:]])


def _root_of_squares(norms: list[Tensor]) -> Tensor:
    return norms[0] if len(norms) == 1 else torch.stack(norms).square().sum().sqrt()


def _units(tensor: Tensor, channels: int) -> int:
    """The dimension of the units, from the left; the last where what came of an output has fewer dimensions."""
    return tensor.ndim + (channels if tensor.ndim >= -channels else -1)


def _dead(sums: Tensor) -> Tensor:
    """Share of units (layers, units) that never rose from 0; nan where one is no number."""
    dead = (sums == 0).to(torch.float64)
    return torch.where(sums.isnan(), math.nan, dead).mean(dim=-1)
