"""What passes a network's weight layers in one update: outputs, activations and their gradients, kept as samples."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
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


class Signals:
    """Collects, from `open` to `read`, what the probes of outputs, activations and output gradients ask for.

    weights: parameters that may be those of weight layers; results are given by their positions.
    examples: how many of a batch are sampled (the first); None: all examples, at all places.

    A layer that is called several times, or in several micro-batches, has one number for all of its calls: samples are
    joined (calls of another output shape are left out), norms of gradients are those of all calls together.
    """

    def __init__(
        self, model: nn.Module, weights: Sequence[Tensor], probes: Iterable[str], *, examples: int | None
    ) -> None:
        self._probes = [name for name in probes if PROBES[name].site in ("output", "activation", "output_gradient")]
        sites = {PROBES[name].site for name in self._probes}
        self._examples = examples
        self._samples_outputs = not sites.isdisjoint(("output", "activation"))
        self._samples_activations = any(
            PROBES[name].site == "activation" and PROBES[name].statistic for name in self._probes
        )
        self._trace = Trace(model, weights, self)
        self.order: dict[int, None] = {}
        """Weights of layers in the order in which data first came to them, over all passes so far."""
        self.inner: set[int] = set()
        """Those of them that have no output of their own to be seen."""
        self.forget()

    def forget(self) -> None:
        """Drops what was collected."""
        self._outputs: defaultdict[int, list[Tensor]] = defaultdict(list)
        self._activations: defaultdict[int, list[Tensor]] = defaultdict(list)
        self._before: defaultdict[tuple[int, str], list[Tensor]] = defaultdict(list)
        self._active: dict[int, Tensor] = {}
        self._gradients: defaultdict[int, list[Tensor]] = defaultdict(list)
        self._entries: defaultdict[int, int] = defaultdict(int)
        self._channels: dict[int, int] = {}

    def open(self) -> None:
        """Begins to look."""
        self._trace.open()

    @property
    def seconds(self) -> float:
        """What looking has cost the passes so far."""
        return self._trace.seconds

    def close(self) -> None:
        """Stops, and drops what was not read."""
        self._trace.close()
        self.forget()

    def output(self, weight: int, tensor: Tensor, *, channels: int, inner: Sequence[int]) -> None:
        """Called by the trace."""
        for position in inner:
            if position not in self.order:
                self.inner.add(position)
            self.order.setdefault(position)
        self.order.setdefault(weight)
        self.inner.discard(weight)
        self._channels[weight] = channels
        if self._samples_outputs and not tensor.is_complex():
            self._outputs[weight].append(self._sample(tensor, channels))

    def activation(self, weight: int, kind: str, before: Tensor, apply: Callable[[], Any]) -> Any:
        """Called by the trace. In place or not, `before` is read before, and the activation after it."""
        channels = self._channels[weight]
        if kind in EDGES and "saturation" in self._probes:
            self._before[weight, kind].append(self._sample(before, channels))
        result = apply()
        if isinstance(result, Tensor):
            after = result.detach()
            if self._samples_activations:
                self._activations[weight].append(self._sample(after, channels))
            if kind == "relu" and "dead_fraction" in self._probes and after.ndim > 1:
                self._note_active(weight, after, channels)
        return result

    def output_gradient(self, weight: int, gradient: Tensor) -> None:
        """Called by the trace, during backward."""
        if "backward_norm" in self._probes or "backward_rms" in self._probes:
            self._gradients[weight].append(statistics.norm(gradient))
            self._entries[weight] += gradient.numel()

    @torch.no_grad()
    def read(self, unscale: Tensor | float = 1.0) -> list[Readout]:
        """The numbers of all weights that have one; then all is forgotten.

        unscale: factor that takes the gradients back to those of the loss, for losses that were scaled.
        """
        read = {name: self._of_probe(name) for name in self._probes}
        found = [_readout(name, values) for name, values in read.items() if values]
        if self._gradients:
            norms = torch.stack([torch.stack(parts).square().sum().sqrt() for parts in self._gradients.values()])
            entries = [self._entries[weight] for weight in self._gradients]
            roots = torch.tensor(entries, dtype=torch.float64, device=norms.device).sqrt()
            of_all = {"backward_norm": norms * unscale, "backward_rms": norms * unscale / roots}
            found += [Readout(name, list(self._gradients), of_all[name]) for name in self._probes if name in of_all]
        self.forget()
        return found

    def _of_probe(self, name: str) -> dict[int, Tensor]:
        probe = PROBES[name]
        if name == "dead_fraction":
            return {weight: 1 - active.to(torch.float64).mean() for weight, active in self._active.items()}
        if name == "saturation":
            return {weight: value for kind in EDGES for weight, value in self._saturated(kind).items()}
        if probe.statistic is None:
            return {}
        samples = self._outputs if probe.site == "output" else {**self._outputs, **self._activations}
        return by_shape(probe.statistic, {weight: _join(parts) for weight, parts in samples.items()})

    def _saturated(self, kind: str) -> dict[int, Tensor]:
        before = {weight: _join(parts) for (weight, of), parts in self._before.items() if of == kind}
        return by_shape(partial(statistics.saturation, edge=EDGES[kind], dim=(-3, -2, -1)), before)

    def _note_active(self, weight: int, after: Tensor, channels: int) -> None:
        units = _units(after, channels)
        active = after.amax([dim for dim in range(after.ndim) if dim != units]) != 0
        known = self._active.get(weight)
        self._active[weight] = active if known is None or known.shape != active.shape else active | known

    def _sample(self, tensor: Tensor, channels: int) -> Tensor:
        """A copy (examples, places, units) of part of an output."""
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


def by_shape(statistic: Callable[[Tensor], Tensor], samples: dict[int, Tensor]) -> dict[int, Tensor]:
    """A statistic of each sample, computed for all samples of a shape at once."""
    groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for weight, sample in samples.items():
        groups[sample.shape, sample.dtype, sample.device].append(weight)
    found: dict[int, Tensor] = {}
    for members in groups.values():
        found.update(zip(members, statistic(torch.stack([samples[w] for w in members])).unbind(), strict=True))
    return found


def _readout(name: str, values: dict[int, Tensor]) -> Readout:
    return Readout(name, list(values), torch.stack(list(values.values())))


def _join(samples: list[Tensor]) -> Tensor:
    if len(samples) == 1:
        return samples[0]
    return torch.cat([sample for sample in samples if sample.shape[1:] == samples[0].shape[1:]])


def _units(tensor: Tensor, channels: int) -> int:
    return channels if channels >= 0 and tensor.ndim > 2 else tensor.ndim - 1
