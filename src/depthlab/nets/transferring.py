"""Taking over blocks of a network that was trained on something else, and freezing them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from depthlab.nets.families import Net


class WeightsError(ValueError):
    """Weights that do not fit a network: names the layer and both shapes, and says what to change."""


def copy_blocks(net: Net, weights: Mapping[str, Tensor], count: int) -> None:
    """Copies weights and buffers of the first `count` blocks (the stem is the first) out of a `Net`'s state, in place.

    weights: a state dict; entries of other blocks and of the head are passed over. Raises WeightsError, and leaves the
    net as it was, if an entry of these blocks is missing, is too many or has another shape.
    """
    own = net.state_dict()
    prefixes = [f"{prefix}." for prefix, _ in named_blocks(net)[:count]]
    wanted = [name for name in own if name.startswith(tuple(prefixes))]
    given = [name for name in weights if name.startswith(tuple(prefixes))]
    if missing := sorted(set(wanted) ^ set(given)):
        owner = "the network to be trained" if missing[0] in own else "the source"
        raise WeightsError(
            f"only {owner} has {missing[0]}; give both the same model, or copy less with transfer.copied"
        )
    for name in wanted:
        if own[name].shape != weights[name].shape:
            raise WeightsError(
                f"{name} is {list(weights[name].shape)} in the source and {list(own[name].shape)} here; give both the "
                f"same model.width and images of the same size and channels"
            )
    with torch.no_grad():
        for name in wanted:
            own[name].copy_(weights[name])


def freeze(net: Net, count: int) -> None:
    """Freezes the first `count` blocks: no gradients, and evaluation mode even while the net is trained.

    Running statistics of batch norm stay as they are and normalize in training too; dropout and noise are off.
    """
    net.frozen = count
    for _, block in named_blocks(net)[:count]:
        block.requires_grad_(False)
    net.train(net.training)


def named_blocks(net: Net) -> list[tuple[str, nn.Module]]:
    """The blocks that features pass before the head, with their names: the stem, then each of `blocks`."""
    return [("stem", net.stem), *((f"blocks.{index}", block) for index, block in enumerate(net.blocks))]


def copied_parameters(net: Net, count: int) -> list[nn.Parameter]:
    """The parameters of the first `count` blocks that are trained."""
    blocks = [block for _, block in named_blocks(net)[:count]]
    return [parameter for block in blocks for parameter in block.parameters() if parameter.requires_grad]
