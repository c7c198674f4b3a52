"""Inactive units over a window of data: many forward passes, of which none may wake them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from depthlab.probes.reading import ACTIVATIONS, Row

ONE_SIDED = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU)
"""Activations that pass what is above 0 and hold back what is below; with relu's they hold back all of it."""


class InactiveUnits:
    """Share of units, in [0, 1], whose pre-activation is not above 0 on any example of the passes while it is open.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> with InactiveUnits(model, [("0", model[0]), ("2", model[2])]) as inactive:
    ...     _ = model(torch.randn(5, 3)), model(torch.randn(7, 3))
    >>> [(row.layer, row.probe) for row in inactive.rows("inactive_fraction")]
    [('0', 'inactive_fraction')]

    An inactive relu is dead: its output and its gradient are 0 on the whole window. Units of leaky relu, elu, selu,
    gelu and silu are counted by the same condition, but still pass some gradient. The longer the window, the fewer:
    a unit that wakes for one image in a thousand is inactive on most batches. Layers that none of these activations
    follows have no row. Layers and activations are paired as in `Reading`, and a unit of a convolution is a channel;
    a linear layer may have more axes than examples and units, such as the tokens of a transformer.
    """

    def __init__(self, model: nn.Module, layers: Sequence[tuple[str, nn.Module]]) -> None:
        self._model = model
        self._layers = list(layers)
        self._handles: list[RemovableHandle] = []
        self._current: int | None = None
        self._active: dict[int, Tensor] = {}

    def __enter__(self) -> Self:
        positions = {layer: position for position, (_, layer) in enumerate(self._layers)}
        for module in self._model.modules():
            if module in positions:
                self._handles.append(module.register_forward_hook(self._after_layer(positions[module])))
            elif isinstance(module, ACTIVATIONS):
                self._handles.append(module.register_forward_pre_hook(self._before_activation))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def rows(self, probe: str) -> list[Row]:
        """The shares under the name `probe`, in depth order; of layers through which no example went, none."""
        shares = {position: float((~active).double().mean()) for position, active in sorted(self._active.items())}
        return [Row(self._layers[position][0], position + 1, probe, share) for position, share in shares.items()]

    def _after_layer(self, position: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _inputs: Any, _output: Any) -> None:
            self._current = position

        return hook

    def _before_activation(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        position, self._current = self._current, None  # only the first activation after a layer is its own
        if position is None or not isinstance(module, ONE_SIDED):
            return
        preactivations = inputs[0].detach()
        units = -1 if isinstance(self._layers[position][1], nn.Linear) else 1
        active = (preactivations > 0).movedim(units, 0).flatten(1).any(dim=1)
        self._active[position] = self._active[position] | active if position in self._active else active
