"""Taking over blocks of a network that was trained on something else, and freezing them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from depthlab.nets.network import Network, WeightsError


def copy_blocks(net: Network, weights: Mapping[str, Tensor], count: int) -> None:
    """Copies weights and buffers of the first `count` blocks (the stem is the first) out of a state dict, in place.

    weights: the state of such a network, after what `Network.adapted` makes of it; entries of other blocks and of the
    head are passed over. Raises WeightsError, and leaves the net as it was, if an entry of these blocks is missing, is
    too many or has another shape.
    """
    own, weights = net.state_dict(), net.adapted(weights)
    wanted = _entries(net, own, count)
    if missing := sorted(set(wanted) ^ set(_entries(net, weights, count))):
        owner = "the network to be trained" if missing[0] in own else "the source"
        raise WeightsError(
            f"only {owner} has {missing[0]}; give both the same model, or copy less with transfer.copied"
        )
    for name in wanted:
        if own[name].shape != weights[name].shape:
            raise WeightsError(
                f"{name} is {list(weights[name].shape)} in the source and {list(own[name].shape)} here; give both "
                f"{net.has_shapes_of}"
            )
    with torch.no_grad():
        for name in wanted:
            own[name].copy_(weights[name])


def freeze(net: Network, count: int) -> None:
    """Freezes the first `count` blocks: no gradients, and evaluation mode even while the net is trained.

    Running statistics of batch norm stay as they are and normalize in training too; dropout and noise are off.
    """
    net.frozen = count
    for part in net.blocks_before(count):
        part.requires_grad_(False)
    net.train(net.training)


def copied_parameters(net: Network, count: int) -> list[nn.Parameter]:
    """The parameters of the first `count` blocks that are trained."""
    parts = net.blocks_before(count)
    parameters = [each for part in parts for each in (part.parameters() if isinstance(part, nn.Module) else [part])]
    return [parameter for parameter in parameters if parameter.requires_grad]


def _entries(net: Network, names: Iterable[str], count: int) -> list[str]:
    """Those of the names in a state dict that are of the first `count` blocks."""
    prefixes = tuple(f"{part}." for parts in net.block_names()[:count] for part in parts)
    return [name for name in names if f"{name}.".startswith(prefixes)]
