"""How a layer's weights are distributed: a histogram of their sizes as numbers of a long table."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from depthlab.probes.reading import Row

DISTRIBUTION = {"weight_share_up_to_0": 0.0} | {
    f"weight_share_up_to_1e{half / 2:g}": 10 ** (half / 2) for half in range(-16, 3)
}
"""Names of the shares and the size that each reaches to: 0, and half decades from 1e-8 to 10."""


@torch.no_grad()
def weight_distribution(layers: Sequence[tuple[str, nn.Module]]) -> list[Row]:
    """Share of each layer's weights with |w| <= edge, in [0, 1], for the edges of `DISTRIBUTION`; in depth order.

    A cumulative histogram of |w|: the difference of two neighbours is the share between their edges, and the first
    number is the share of weights that are exactly 0. Sizes are on a logarithmic scale, as a penalty may leave a weight
    at a millionth of another, and the edges are fixed, so that layers, steps and runs can be averaged bin by bin. NaN
    counts as beyond every edge.

    >>> layer = nn.Linear(4, 1)
    >>> layer.weight.data = torch.tensor([[0.0, -0.002, 0.5, 20.0]])
    >>> shares = {row.probe: row.value for row in weight_distribution([("0", layer)])}
    >>> [shares[f"weight_share_up_to_{edge}"] for edge in ("0", "1e-3", "1e-2.5", "1e1")]
    [0.25, 0.25, 0.5, 0.75]
    """
    found = []
    for depth, (name, layer) in enumerate(layers, start=1):
        sizes = layer.get_parameter("weight").abs().double().flatten()
        edges = torch.tensor(list(DISTRIBUTION.values()), dtype=torch.float64, device=sizes.device)
        counts = torch.stack([(sizes <= edge).sum() for edge in edges])
        shares = (counts.double() / sizes.numel()).tolist()
        found += [Row(name, depth, probe, share) for probe, share in zip(DISTRIBUTION, shares, strict=True)]
    return found
