"""The weights of a model, and what an optimiser does to them: gradients, norms and updates in few operations."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from depthlab.probes.catalogue import PROBES, SCALE_WITH_LOSS, Readout
from depthlab.probes.copies import Copies
from depthlab.probes.norms import norms
from depthlab.probes.statistics import cosine

OLD_PARAMETRIZATIONS = ("weight_v", "weight_g", "weight_orig")
"""What `torch.nn.utils.weight_norm` and `spectral_norm` keep in place of a weight."""


class Weight(NamedTuple):
    """A parameter that may be that of a weight layer; `is_named_so`: its name says that it is."""

    layer: str
    parameter: nn.Parameter
    is_named_so: bool


def candidate_weights(model: nn.Module) -> list[Weight]:
    """Parameters that may be those of weight layers, in the order in which they are registered.

    Parameters of two dimensions or more that are no biases. A layer is named as its module is when the parameter is
    called `weight`, otherwise as the parameter: `features.3`, `lstm.weight_hh_l0`. Wrappers of the model
    (DistributedDataParallel, torch.compile) are no part of a name, and neither is a parametrization (weight norm).
    A parameter that several modules share has the name of the first.
    """
    found: dict[str, Weight] = {}
    for full, parameter in unwrapped(model).named_parameters():
        name, own = layer_name(full), full.rsplit(".", 1)[-1]
        # of the parts of a parametrized weight, the largest
        is_largest = name not in found or parameter.numel() > found[name].parameter.numel()
        if parameter.ndim >= 2 and "bias" not in own and is_largest:
            found[name] = Weight(name, parameter, "weight" in own or ".parametrizations.weight." in full)
    return list(found.values())


def in_order_of_data(
    weights: Sequence[Weight], seen: Iterable[int], parts: Container[int] = ()
) -> tuple[list[int], list[int]]:
    """Positions of the weights that are those of layers, in the order of data; and which of them no pass has shown.

    seen: positions in the order in which passes have shown them.
    parts: positions of those that make no layer of their own.

    A weight that is named so and has a gradient is one although it was not seen (inside compiled code); it stands
    behind the one that was registered before it.
    """
    order = list(seen)
    shown = set(order)
    unseen = [
        position
        for position, weight in enumerate(weights)
        if position not in shown and position not in parts and weight.is_named_so and weight.parameter.grad is not None
    ]
    for position in unseen:
        before = [index for index, other in enumerate(order) if other < position]
        order.insert(max(before) + 1 if before else 0, position)
    return order, unseen


def layer_name(parameter: str) -> str:
    """The name of a layer from the full name of its parameter.

    >>> layer_name("features.3.weight"), layer_name("lstm.weight_hh_l0")
    ('features.3', 'lstm.weight_hh_l0')
    >>> layer_name("head.parametrizations.weight.original1")
    'head'
    """
    parts = [part for part in parameter.split(".") if part != "_orig_mod"]  # of submodules that are compiled
    if len(parts) >= 3 and parts[-3] == "parametrizations":
        parts = [*parts[:-3], parts[-2]]
    if len(parts) > 1 and parts[-1] in ("weight", *OLD_PARAMETRIZATIONS):
        parts = parts[:-1]
    return ".".join(parts)


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own model inside DistributedDataParallel, DataParallel and torch.compile."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


class Parameters:
    """Reads weights, gradients and updates, in few operations for all of them.

    weights: those that positions in arguments and results count. probes: of other sites are left out.
    """

    def __init__(self, weights: Sequence[nn.Parameter], probes: Iterable[str]) -> None:
        self._weights = weights
        self._probes: dict[str, list[str]] = {site: [] for site in ("weight", "gradient", "update")}
        for name in probes:
            if PROBES[name].site in self._probes:
                self._probes[PROBES[name].site].append(name)
        self._norms = torch.empty(0)
        self._changed: Sequence[int] = ()
        self._copies = Copies([])
        self._last_gradients: dict[int, Tensor] = {}

    @torch.no_grad()
    def read_weights(self, positions: Sequence[int]) -> list[Readout]:
        """Reads the weights, and remembers them for `read_updates`. To be called before the update."""
        weights: list[Tensor] = [self._weights[position] for position in positions]
        if self._probes["update"] and weights:
            if not self._copies.fit(weights):
                self._copies = Copies(weights)
            self._norms = self._copies.take(weights)
            self._changed = positions
        else:
            self._norms = norms(weights)
        return [
            Readout(name, positions, self._norms if name == "weight_norm" else _each(name, weights))
            for name in self._probes["weight"]
        ]

    @torch.no_grad()
    def read_updates(self) -> list[Readout]:
        """Reads what has changed since `read_weights`."""
        if not self._changed:
            return []
        changes = self._copies.subtract([self._weights[position] for position in self._changed])
        values = {"update_norm": changes, "update_ratio": changes / self._norms}
        found = [Readout(name, self._changed, values[name]) for name in self._probes["update"]]
        self._changed = ()
        return found

    @torch.no_grad()
    def read_gradients(self, positions: Sequence[int], *, unscale: Tensor | None = None) -> list[Readout]:
        """Reads the gradients that are there. `grad_cosine` is with those that `keep_gradients` kept, if it did."""
        there = [self._weights[position].grad for position in positions]
        gradients = [gradient for gradient in there if gradient is not None]
        having = positions
        if len(gradients) < len(positions):
            having = [position for position, gradient in zip(positions, there, strict=True) if gradient is not None]
        found = []
        for name in self._probes["gradient"]:
            if name == "grad_cosine":
                found += self._cosines(having, gradients)
            elif having:
                values = norms(gradients) if name == "grad_norm" else _each(name, gradients)
                found.append(
                    Readout(
                        name, having, values * unscale if unscale is not None and name in SCALE_WITH_LOSS else values
                    )
                )
        self._last_gradients = {}
        return found

    def accumulate(self) -> bool:
        """Whether gradients of some weights are there, all of them finite and not all 0; waits for the device."""
        found = norms([weight.grad for weight in self._weights if weight.grad is not None])
        return bool(found.isfinite().all() and found.any())

    def forget(self) -> None:
        """Drops all copies."""
        self._copies, self._changed, self._last_gradients = Copies([]), (), {}

    def _cosines(self, positions: Sequence[int], gradients: Sequence[Tensor]) -> list[Readout]:
        last = self._last_gradients
        cosines = {
            position: cosine(_densed(gradient), last[position])
            for position, gradient in zip(positions, gradients, strict=True)
            if position in last
        }
        return [Readout("grad_cosine", list(cosines), torch.stack(list(cosines.values())))] if cosines else []

    @torch.no_grad()
    def keep_gradients(self, positions: Sequence[int]) -> None:
        """Keeps a copy of the gradients, for the cosine with those that `read_gradients` reads next."""
        self._last_gradients = {
            position: _densed(self._gradient(position)).clone()
            for position in positions
            if self._weights[position].grad is not None
        }

    def drop_gradients(self) -> None:
        """Drops what `keep_gradients` kept, where the next update is not read after all."""
        self._last_gradients = {}

    def _gradient(self, position: int) -> Tensor:
        gradient = self._weights[position].grad
        assert gradient is not None
        return gradient.detach()


def _each(name: str, tensors: Sequence[Tensor]) -> Tensor:
    """A probe's statistic of each tensor, as matrices (outputs, inputs)."""
    statistic = PROBES[name].statistic
    assert statistic is not None
    return torch.stack([statistic(_densed(tensor).flatten(1)[None, :, None])[0] for tensor in tensors])


def _densed(tensor: Tensor) -> Tensor:
    return tensor.to_dense() if tensor.layout != torch.strided else tensor
