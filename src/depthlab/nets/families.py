"""Whole networks: stem, blocks and head of the families that are made here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from depthlab.config import ModelConfig, stream_seed
from depthlab.nets.blocks import BLOCKS, plain
from depthlab.nets.initialization import initialize
from depthlab.nets.layers import STOCHASTIC, Hop, Parts, chain
from depthlab.nets.network import Network
from depthlab.nets.recomputation import apply_in_segments
from depthlab.nets.recurrence import Rows, recurrence
from depthlab.nets.torchvision_models import torchvision_net


class Net(Network):
    """Images (b, channels, size, size) -> logits (b, classes), through `stem`, `blocks` and `head`.

    Modules are registered in the order in which data flows. Weight layers are named stem.linear,
    blocks.3.linear (plain), blocks.3.first.linear and blocks.3.second.linear (with a skip), blocks.3.gate (highway)
    and head.linear; in a CNN `conv` stands for `linear` before the head. A recurrent net has blocks.0.cell and
    head.linear. A head of two layers has head.hidden as well.
    """

    def __init__(self, stem: nn.Sequential, blocks: nn.Sequential, head: nn.Sequential) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, blocks, head
        self._have_buffers = next(blocks.buffers(), None) is not None
        self._draw = any(isinstance(module, STOCHASTIC) for module in blocks.modules())

    def block_names(self) -> list[tuple[str, ...]]:
        """The stem, then each of `blocks`."""
        return [("stem",), *((f"blocks.{index}",) for index in range(len(self.blocks)))]

    def forward(self, images: Tensor, *, activation_checkpointing: bool = False) -> Tensor:
        """Logits (b, classes) of images (b, channels, size, size).

        activation_checkpointing: whether a backward pass is to compute activations again that would take much memory.
        """
        x = self.stem(images)
        if activation_checkpointing:
            x = apply_in_segments(self.blocks, x, have_buffers=self._have_buffers, draw=self._draw)
        else:
            x = self.blocks(x)
        logits: Tensor = self.head(x)
        return logits


def build(config: ModelConfig, *, channels: int, size: int, classes: int, seed: int, head: str = "linear") -> Network:
    """The network of a configuration, for float images (b, channels, size, size), in float32 on the CPU.

    mlp: images are flattened. cnn: the CIFAR family of He et al. 2015, section 4.2, with parameter-free shortcuts:
    3x3 convolutions, `stages` stages of which each but the first halves the resolution and doubles the channels,
    global average pooling. Its published nets are those with bias=false, norm=batch and width=16. rnn: a cell reads
    rows from top to bottom, all channels of one at a time, and the head its last state. torchvision: a classification
    model of torchvision's, whole but for its head (see `TorchvisionNet`), with weights as torchvision draws them.

    Weights are drawn from the stream "init" of the seed, from stem to head: nets of equal seed that differ in depth or
    skip share the weights of their first layers. torch's random state is left as it was.

    head: linear, one weight layer; mlp, two of them, of which the first is as wide as the features.
    """
    begin = partial(torch.default_generator.manual_seed, stream_seed(seed, "init"))  # torch's own would reseed GPUs too
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        begin()
        net = FAMILIES[config.family](Parts(config), channels, size, classes, head)
        if config.family != "torchvision":  # whose weights are drawn as it is made
            begin()
            initialize(net, config)
    return net


def _mlp(parts: Parts, channels: int, size: int, classes: int, head: str) -> Net:
    config = parts.config
    hops = [Hop(config.width, config.width)] * (config.depth - 2)
    stem = _stem(parts, Hop(channels * size * size, config.width), flatten=nn.Flatten())
    return Net(stem, _blocks(parts, hops), _head(parts, config.width, classes, head))


def _cnn(parts: Parts, channels: int, _size: int, classes: int, head: str) -> Net:
    config = parts.config
    widths = [config.width * 2**stage for stage in range(config.stages)]
    layers_a_stage = (config.depth - 2) // config.stages
    hops = list(_cnn_hops(widths, layers_a_stage))
    last = _head(parts, widths[-1], classes, head, pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten())
    return Net(_stem(parts, Hop(channels, config.width)), _blocks(parts, hops), last)


def _rnn(parts: Parts, channels: int, size: int, classes: int, head: str) -> Net:
    config = parts.config
    block = recurrence(config, inputs=channels * size, steps=size)
    return Net(chain(rows=Rows()), nn.Sequential(block), _head(parts, config.width, classes, head))


def _torchvision(parts: Parts, channels: int, size: int, classes: int, head: str) -> Network:
    return torchvision_net(parts.config, channels=channels, size=size, classes=classes, head=head)


FAMILIES: dict[str, Callable[[Parts, int, int, int, str], Network]] = {
    "mlp": _mlp,
    "cnn": _cnn,
    "rnn": _rnn,
    "torchvision": _torchvision,
}


def _cnn_hops(widths: list[int], layers_a_stage: int) -> Iterator[Hop]:
    before = widths[0]
    for width in widths:
        yield Hop(before, width, stride=1 if width == before else 2)
        yield from [Hop(width, width)] * (layers_a_stage - 1)
        before = width


def _stem(parts: Parts, hop: Hop, **first: nn.Module) -> nn.Sequential:
    """The first weight layer; bare before pre-activation blocks, which begin with their own norm and activation."""
    if parts.config.skip == "preactivation":
        return chain(**first, **parts.weight(hop))
    dropout = parts.dropout() if parts.config.skip == "none" else None
    return chain(
        **first,
        **parts.weight(hop),
        norm=parts.norm(hop.outputs),
        bias=parts.scalar_bias(),
        activation=parts.activation(),
        dropout=dropout,
    )


def _blocks(parts: Parts, hops: list[Hop]) -> nn.Sequential:
    if parts.config.skip == "none":
        return nn.Sequential(*(plain(parts, hop) for hop in hops))
    block = BLOCKS[parts.config.skip]
    return nn.Sequential(*(block(parts, first) for first in hops[::2]))


def _head(parts: Parts, width: int, classes: int, kind: str, **pool: nn.Module) -> nn.Sequential:
    """The last weight layer, or two, after the norm and activation that pre-activation blocks still owe."""
    owed = {}
    if parts.config.skip == "preactivation":
        owed = {"norm": parts.norm(width), "bias": parts.scalar_bias(), "activation": parts.activation()}
    hidden: dict[str, nn.Module] = {}
    if kind == "mlp":
        hidden = {"hidden": nn.Linear(width, width), "hidden_activation": parts.activation()}
    return chain(**owed, **pool, bias_in=parts.scalar_bias(), **hidden, linear=nn.Linear(width, classes))
