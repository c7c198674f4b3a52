"""Copies of weights as they were before an update, and the norms of both, while they pass through the processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor

from depthlab.probes.norms import PIECE, joined, norms, owners_of_lines

BLOCK = 2**17
"""Entries that are copied, or subtracted, before their norms are taken: half a megabyte, which a core's cache holds."""


class Block(NamedTuple):
    """Copies that follow one another in memory, and all of it as lines (pieces, entries)."""

    members: slice
    lines: Tensor


class Copies:
    """Room for copies of weights, and for what an update changes in them.

    Copies of weights of the CPU that float32 holds lie one behind the other, each filled up with zeros to whole pieces
    of `norms.PIECE` entries: norms of many are then one operation, on entries that the processor's cache still
    holds. All others are tensors of their own.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._kinds = _kinds(weights)
        self._blocks: list[Block] = []
        if all(w.is_cpu and w.layout is torch.strided and _exact(w.dtype) is torch.float32 for w in weights):
            self._copies = self._in_one_piece(weights)
        else:
            self._copies = [torch.empty_like(weight, dtype=_exact(weight.dtype)) for weight in weights]

    def fit(self, weights: Sequence[Tensor]) -> bool:
        """Whether these weights have the shapes, types and devices of those that the room was made for."""
        return _kinds(weights) == self._kinds

    def take(self, weights: Sequence[Tensor]) -> Tensor:
        """Copies weights; gives their norms, as `norms` does."""
        return self._apply(torch._foreach_copy_, weights)

    def subtract(self, weights: Sequence[Tensor]) -> Tensor:
        """Norms of the differences between copies and weights, which stand in the place of the copies then."""
        return self._apply(torch._foreach_sub_, weights)

    def _apply(self, operation: Callable[[Any, Any], object], weights: Sequence[Tensor]) -> Tensor:
        if not self._blocks:
            operation(self._copies, weights)
            return norms(self._copies)
        found = []
        for members, lines in self._blocks:
            operation(self._copies[members], weights[members])
            found.append(torch.linalg.vector_norm(lines, dim=1))
        return joined(torch.cat(found), self._owners, self._copies)

    def _in_one_piece(self, weights: Sequence[Tensor]) -> list[Tensor]:
        pieces = [-(-weight.numel() // PIECE) for weight in weights]
        self._owners = owners_of_lines(tuple(range(len(weights))), tuple(pieces))
        room = torch.zeros(sum(pieces), PIECE, dtype=torch.float32, device="cpu")
        starts = list(accumulate(pieces, initial=0))
        first = 0
        for last, end in enumerate(starts[1:], 1):
            if (end - starts[first]) * PIECE >= BLOCK or last == len(weights):
                self._blocks.append(Block(slice(first, last), room[starts[first] : end]))
                first = last
        # in the order of memory that the weight has (channels last): to copy is to read and write in one sweep
        return [
            room.as_strided(weight.shape, torch.empty_like(weight, device="meta").stride(), start * PIECE)
            for weight, start in zip(weights, starts, strict=False)
        ]


def _kinds(weights: Sequence[Tensor]) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    return [(weight.shape, weight.dtype, weight.device) for weight in weights]


def _exact(dtype: torch.dtype) -> torch.dtype:
    """A type in which the difference of two weights is not rounded away."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
