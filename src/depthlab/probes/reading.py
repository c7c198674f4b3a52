"""Reading a network during one update of its training, without touching it.

Hooks sit on the modules only while a `Reading` is open; they compute numbers from detached tensors and return
nothing, so that values, gradients and random state are those of an unmeasured update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from depthlab.config import PROBES, suggest
from depthlab.probes import statistics
from depthlab.probes.trace import in_backward

ACTIVATION_PROBES = ("activation_mean", "activation_std", "activation_sparsity", "saturation", "dead_fraction")


@dataclass(frozen=True, slots=True)
class Row:
    """One number: which probe, of which weight layer or state; depth counts these from the input, from 1."""

    layer: str
    depth: int
    probe: str
    value: float


class Reading:
    """What the probes see of one update.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with Reading(model, [("0", model[0]), ("2", model[2])], ["grad_norm", "update_ratio"]) as reading:
    ...     model(torch.ones(5, 3)).sum().backward()
    >>> reading.before_update()
    >>> optimizer.step()
    >>> [(row.layer, row.probe) for row in reading.rows()]
    [('0', 'grad_norm'), ('0', 'update_ratio'), ('2', 'grad_norm'), ('2', 'update_ratio')]

    model: any module whose forward pass runs the layers.
    layers: its weight layers (Linear, Conv, cells), with names, in the order data flows.
    probes: names out of `depthlab.config.PROBES`. Those of more data or times than one update's have other readers
        (`InactiveUnits`, `weight_distribution`, `linear_regions`) and are passed over here.
    states: modules that hand on the states of a recurrent net, one for each time step, with names; depth counts them.
    ValueError on another name, or a layer that is no part of the model; TypeError on a layer without a weight.

    `backward_norm` is the norm of dL/dz, the gradient with respect to a weight layer's own output, over the whole
    batch; for a loss that is a mean over the batch it carries the mean's 1/N. Activation statistics are of the output
    of the activation module that runs next after the layer (saturation: of its input); a layer that none follows,
    such as the head, has the mean and standard deviation of its own output, and no sparsity. What activation
    checkpointing computes again during the backward pass is not read a second time.

    Of a cell (RNNCell, LSTMCell, GRUCell) the weight is the recurrent one, weight_hh; what it gives is read of states:
    `backward_norm` there is the norm of dL/dh_t, the mean and standard deviation are those of h_t.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[tuple[str, nn.Module]],
        probes: Sequence[str],
        states: Sequence[tuple[str, nn.Module]] = (),
    ) -> None:
        self._model = model
        self._layers = [(name, layer, _weight(layer)) for name, layer in layers]
        self._probes = frozenset(probes)
        for name in self._probes.difference(PROBES):
            raise ValueError(f"probe {name!r} must be one of {', '.join(PROBES)}{suggest(name, PROBES)}")
        modules = set(model.modules())
        for name, layer in (*layers, *states):
            if layer not in modules:
                raise ValueError(f"layer {name!r} is no part of the model; give modules out of model.modules()")
        self._positions = {layer: position for position, (_, layer) in enumerate((*layers, *states))}
        self._places = [(name, depth) for sites in (layers, states) for depth, (name, _) in enumerate(sites, 1)]
        self._handles: list[RemovableHandle] = []
        self._current: int | None = None
        self._columns = {name: column for column, name in enumerate(sorted(self._probes))}
        self._table = torch.empty(
            len(self._places),
            len(self._columns),
            dtype=torch.float64,
            device=self._layers[0][2].device if self._layers else None,
        )
        self._known: dict[tuple[int, str], None] = {}
        self._weights_before: list[tuple[Tensor, Tensor]] = []

    def __enter__(self) -> Self:
        for module in self._model.modules():
            if isinstance(module, nn.RNNCellBase):
                continue  # called at every time step: `states` tell its outputs apart
            if module in self._positions:
                self._handles.append(module.register_forward_hook(self._after_layer(self._positions[module])))
            elif isinstance(module, ACTIVATIONS) and not self._probes.isdisjoint(ACTIVATION_PROBES):
                self._handles.append(module.register_forward_hook(self._after_activation))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def before_update(self) -> None:
        """Reads gradients and weights. To be called after backward, before clipping and the optimiser's step."""
        for position, (_, _, weight) in enumerate(self._layers):
            if "grad_norm" in self._probes and weight.grad is not None:
                self._keep(position, "grad_norm", statistics.norm(weight.grad))
            if self._probes.isdisjoint(("weight_norm", "update_ratio")):
                continue
            norm = statistics.norm(weight.detach())
            if "weight_norm" in self._probes:
                self._keep(position, "weight_norm", norm)
            if "update_ratio" in self._probes:
                self._weights_before.append((weight.detach().clone(), norm))

    def rows(self) -> list[Row]:
        """All numbers, layer by layer in depth order. To be called after the optimiser's step."""
        for position, (before, norm) in enumerate(self._weights_before):
            after = self._layers[position][2].detach()
            self._keep(position, "update_ratio", statistics.relative_change(after, before, norm))
        self._weights_before = []
        # one transfer from the device for all of them
        table = self._table.tolist()
        found = [
            Row(*self._places[position], probe, table[position][self._columns[probe]])
            for position, probe in self._known
        ]
        return sorted(found, key=lambda row: (row.depth, row.probe))

    def _after_layer(self, position: int) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            if not in_backward():
                self._current = position
                self._read_spread(output.detach())
            if "backward_norm" in self._probes and output.requires_grad:
                # on the tensor, not the module: a module's backward hook breaks in-place operations that follow
                output.register_hook(  # type: ignore[no-untyped-call]
                    lambda gradient: self._read_backward(position, gradient)
                )

        return hook

    def _after_activation(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._current is None or in_backward():
            return
        self._read_spread(output.detach())
        if "activation_sparsity" in self._probes:
            self._keep(self._current, "activation_sparsity", statistics.sparsity(output.detach()))
        edge = statistics.SATURATION_EDGES.get(type(module))
        if edge is not None and "saturation" in self._probes:
            self._keep(self._current, "saturation", statistics.saturation(inputs[0].detach(), edge))
        if isinstance(module, statistics.RECTIFIERS) and "dead_fraction" in self._probes:
            self._keep(self._current, "dead_fraction", statistics.dead_fraction(output.detach()))
        self._current = None  # only the first activation after a layer is its own

    def _read_spread(self, values: Tensor) -> None:
        assert self._current is not None
        if "activation_std" in self._probes:
            values = values.to(torch.float64)  # once for both
            self._keep(self._current, "activation_std", statistics.std(values))
        if "activation_mean" in self._probes:
            self._keep(self._current, "activation_mean", statistics.mean(values))

    def _keep(self, position: int, probe: str, value: Tensor) -> None:
        """Puts a number into the table.

        A tensor for each, allocated between activations, would part the room that they leave: six numbers of each
        of 10,000 layers with 16,384 activations kept 2.8 GiB of it from being used again.
        """
        self._table[position, self._columns[probe]] = value.detach()
        self._known[position, probe] = None

    def _read_backward(self, position: int, gradient: Tensor) -> None:
        self._keep(position, "backward_norm", statistics.norm(gradient))


ACTIVATIONS = (
    nn.Sigmoid,
    nn.Tanh,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
)


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = getattr(layer, "weight_hh" if isinstance(layer, nn.RNNCellBase) else "weight", None)
    if not isinstance(weight, nn.Parameter):
        raise TypeError(f"{type(layer).__name__} has no weight to read; give Linear or convolution layers, or cells")
    return weight
