"""Norms of many tensors at once, as of all weights of a net, for the price of few operations.

On the CPU squares are summed in float32, and in float64 only where float32 does not hold them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

LEAST_FLOAT32_NORM = 1e-14
"""A float32 norm below this is computed again in float64, since entries of norm / sqrt(n) have squares that leave
float32's normal range, 1e-38, when norm / sqrt(n) falls below 1e-19. Above it they stay inside up to n = 1e8 entries,
and a square that is smaller than its neighbours' and rounded to a subnormal changes the norm by less than 1e-17 n."""

LONGEST_FLOAT32_SUM = 10_000
"""Most entries whose squares are summed in float32 in one go. torch keeps 16 partial sums, each off by up to half a
unit in the last place per addition: equal entries, whose roundings all go one way, are off by n 2^-30, or 1e-5 here
(independent normal ones by 3e-7); 1e7 equal entries would be off by 0.6 %."""

PIECE = 1024
"""Entries of a longer tensor whose squares are summed in float32; the norms of the pieces are joined in float64."""

LEAST_IN_PIECES = 16 * PIECE
"""From this many entries on pieces are faster than float64, up to four times; below it their bookkeeping is dearer."""


def norms(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norms of tensors of any shapes, (len(tensors),), for the price of few operations; no gradient flows.

    Equal to `norm` of each, up to 1e-5 relative for contiguous float32 tensors when all lie on the CPU. Those
    are summed in float32, which is three to five times faster, and computed again in float64 where float32 does not
    hold the squares. Tensors of a GPU are all summed in float64: looking at the values would wait for it. With
    tensors on several devices the result lies on the first one's. A sparse gradient, as of
    `nn.Embedding(sparse=True)`, has the norm of its coalesced values; coalescing does wait for a GPU.

    >>> norms([torch.tensor([3.0, 4.0]), torch.full((4, 1), 1e-30)]).tolist()  # doctest: +ELLIPSIS
    [5.0, 2.0000...e-30]
    """
    with torch.no_grad():
        reals = [_real_entries(t) if t.is_complex() or t.layout is not torch.strided else t for t in tensors]
        if all(real.is_cpu for real in reals):
            return _norms_on_cpu(reals) if reals else torch.empty(0, dtype=torch.float64)
        found = torch._foreach_norm(reals, 2, dtype=torch.float64)
        return torch.stack([each.to(reals[0].device) for each in found])


def _real_entries(tensor: Tensor) -> Tensor:
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce().values()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _norms_on_cpu(tensors: Sequence[Tensor]) -> Tensor:
    """Every tensor is cut into lines, whose norms are taken in float32 and joined in float64."""
    short: list[Tensor] = []
    pieces: list[Tensor] = []
    of_short: list[int] = []
    of_pieces: list[int] = []
    for position, tensor in enumerate(tensors):
        entries = tensor.numel()
        if not _is_summed_in_float32(tensor, entries):
            continue  # its norm stays 0, so that it is computed in float64
        if entries <= LONGEST_FLOAT32_SUM:
            short.append(tensor)
            of_short.append(position)
        else:
            whole, rest = divmod(entries, PIECE)
            pieces.append(torch.linalg.vector_norm(tensor.as_strided((whole, PIECE), (PIECE, 1)), dim=1))
            of_pieces.append(position)
            if rest:
                short.append(tensor.as_strided((rest,), (1,), tensor.storage_offset() + whole * PIECE))
                of_short.append(position)
    lines = [torch.stack(torch._foreach_norm(short)), *pieces] if short else pieces
    if len(of_short) == len(tensors) and not pieces:
        return _checked_in_float64(lines[0].to(torch.float64), tensors)
    owners = owners_of_lines((*of_short, *of_pieces), (*[1] * len(of_short), *map(len, pieces)))
    return joined(torch.cat(lines) if lines else torch.empty(0, device="cpu"), owners, tensors)


@lru_cache(maxsize=16)
def owners_of_lines(positions: tuple[int, ...], lines: tuple[int, ...]) -> Tensor:
    """The position of each line's tensor (sum of lines,): each position as often as it has lines.

    Kept, since a net's gradients are cut alike at every step, and lists are turned into tensors slowly.

    >>> owners_of_lines((0, 2), (1, 3)).tolist()
    [0, 2, 2, 2]
    """
    both = torch.tensor([positions, lines], dtype=torch.int64, device="cpu")
    return both[0].repeat_interleave(both[1])


def joined(lines: Tensor, owners: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Norms of tensors of the CPU that were cut into lines, computed again in float64 where float32 did not hold them.

    lines, owners: (lines,), float32 norms and the positions of the tensors that they are parts of.
    """
    squares = torch.zeros(len(tensors), dtype=torch.float64, device="cpu")
    found = squares.index_add_(0, owners, lines.to(torch.float64).square_()).sqrt_()
    return _checked_in_float64(found, tensors)


def _is_summed_in_float32(tensor: Tensor, entries: int) -> bool:
    """Strided sums are less exact than those of entries in the order of memory, of which channels last is one."""
    if tensor.dtype is not torch.float32 or LONGEST_FLOAT32_SUM < entries < LEAST_IN_PIECES:
        return False
    return tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


def _checked_in_float64(found: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """The norms, computed again where float32 did not hold the squares, or was not tried (0)."""
    if doubtful := [p for p, each in enumerate(found.tolist()) if not LEAST_FLOAT32_NORM <= each < math.inf]:
        again = torch._foreach_norm([tensors[position] for position in doubtful], 2, dtype=torch.float64)
        found[doubtful] = torch.stack(again)
    return found
