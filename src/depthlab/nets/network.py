"""What all networks have in common: blocks that can be counted from the input, copied and frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn


class WeightsError(ValueError):
    """Weights that do not fit a network: names the layer and both shapes, and says what to change."""


class Network(nn.Module, ABC):
    """Images (b, channels, size, size) -> logits (b, classes), through blocks and a head; the stem is the first block.

    frozen: how many blocks, counted from the input, stay in evaluation mode (see `freeze`).
    has_shapes_of: what the shapes of its weights depend on, as an error says it.
    """

    frozen: int = 0
    has_shapes_of: str = "the same model.width and images of the same size and channels"

    @abstractmethod
    def block_names(self) -> list[tuple[str, ...]]:
        """The blocks before the head, from the input: the names of each one's modules and loose parameters."""

    def blocks_before(self, count: int) -> list[nn.Module | nn.Parameter]:
        """The modules and loose parameters of the first `count` blocks."""
        return [_found(self, name) for names in self.block_names()[:count] for name in names]

    def adapted(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A state dict of such a network, so changed that it fits this one; WeightsError if it is of another kind."""
        return weights

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; blocks that are frozen are always in the latter."""
        super().train(mode)
        for part in self.blocks_before(self.frozen):
            if isinstance(part, nn.Module):
                part.eval()
        return self


def _found(net: nn.Module, name: str) -> nn.Module | nn.Parameter:
    owner, _, last = name.rpartition(".")
    found: nn.Module | nn.Parameter = getattr(net.get_submodule(owner), last)
    return found
