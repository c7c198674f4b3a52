"""The weight layers of a network that is watched: which there are, where they stand, and what of them is out of sight.

A *position* counts the weights that may be those of layers, as they are registered; a *place* counts the layers, in
the order in which data flows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Container, Iterator, Sequence

from torch import Tensor, nn
from torch.optim import Optimizer

from depthlab.probes import Readout, Signals, candidate_weights, in_order_of_data


class Layers:
    """The weight layers, as the passes so far have shown them.

    chosen: which to watch: names, or a function that says so of a name; None: all. Raises ValueError if that is none.
    """

    def __init__(self, model: nn.Module, chosen: Callable[[str], bool] | Container[str] | None) -> None:
        self._weights = candidate_weights(model)
        is_chosen = chosen if callable(chosen) or chosen is None else chosen.__contains__
        self.watched = [p for p, weight in enumerate(self._weights) if is_chosen is None or is_chosen(weight.layer)]
        """Positions that may turn out to be layers to watch."""
        if not self.watched:
            of_name = "" if chosen is None else " and a name that `layers` has"
            raise ValueError(f"there is no weight to watch: no parameter of two dimensions or more{of_name}")
        self._order: Sequence[int] = ()
        self._places: dict[int, int] = {}
        self._all_places: Sequence[int] = ()
        self._unseen: list[int] = []

    @property
    def parameters(self) -> list[nn.Parameter]:
        """By position."""
        return [weight.parameter for weight in self._weights]

    @property
    def names(self) -> list[str]:
        """By place."""
        return [self._weights[position].layer for position in self._order]

    @property
    def targets(self) -> Sequence[int]:
        """Positions to read: those of layers, or, before a first pass has shown which these are, all."""
        return self._order or self.watched

    def settle(self, signals: Signals) -> bool:
        """Takes up the layers that passes have newly shown; whether there are any.

        A layer that comes into play later than others stands behind them, so that no depth ever changes.
        """
        if len(self._places) == len(self.watched):
            return False
        if self._order:
            new = [position for position in signals.order if position not in self._places]
            new += [p for p in self.watched if p not in new and self._is_trained_unseen(p, signals.parts)]
        else:
            new, self._unseen = in_order_of_data(self._weights, signals.order, signals.parts)
        new = [position for position in new if position in self.watched]
        if new:
            self._order = [*self._order, *new]
            self._places = {position: place for place, position in enumerate(self._order)}
            self._all_places = range(len(self._order))
        return bool(new)

    def placed(self, readout: Readout) -> tuple[Sequence[int], Tensor]:
        """Places and values of what was read; what turned out to be no layer is dropped."""
        _, positions, values = readout
        if positions is self._order:
            return self._all_places, values
        known = [index for index, position in enumerate(positions) if position in self._places]
        places = [self._places[positions[index]] for index in known]
        return places, values[known] if len(known) < len(positions) else values

    def warn(self, signals: Signals, optimizer: Optimizer, *, reads_outputs: bool) -> None:
        """One warning of all that cannot be read, after the first step."""
        missing = [*self._without_gradients(), *self._without_updates(optimizer)]
        if reads_outputs:
            missing = [*self._without_outputs(signals), *missing]
        if missing:
            warnings.warn("depthlab cannot read " + "; ".join(missing), stacklevel=2)

    def _is_trained_unseen(self, position: int, parts: Container[int]) -> bool:
        """Of a layer that is used now and then, and was not while passes were looked at."""
        weight = self._weights[position]
        is_new = position not in self._places and position not in parts
        return is_new and weight.is_named_so and weight.parameter.grad is not None

    def _without_outputs(self, signals: Signals) -> Iterator[str]:
        if self._unseen:
            yield (
                f"outputs of {self._listed(self._unseen)}: no forward pass through them was seen (it may be inside "
                f"torch.compile or TorchScript); weights and gradients are read"
            )
        if signals.inner:
            yield (
                f"outputs of {self._listed(sorted(signals.inner))}: computed inside one operation together with "
                f"others; weights and gradients are read"
            )

    def _without_gradients(self) -> Iterator[str]:
        idle = [position for position in self._trained() if self._weights[position].parameter.grad is None]
        if idle:
            yield f"gradients of {self._listed(idle)}: none has reached them in the first step"

    def _without_updates(self, optimizer: Optimizer) -> Iterator[str]:
        owned = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        foreign = [position for position in self._trained() if id(self._weights[position].parameter) not in owned]
        if foreign:
            yield f"updates of {self._listed(foreign)}: the optimizer does not have them, nor resets their gradients"

    def _trained(self) -> list[int]:
        return [position for position in self.watched if self._weights[position].parameter.requires_grad]

    def _listed(self, positions: Sequence[int]) -> str:
        names = [self._weights[position].layer for position in positions]
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
