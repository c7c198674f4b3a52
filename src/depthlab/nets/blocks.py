"""The block: two weight layers and what bypasses them; or, in a plain net, one weight layer and nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthlab.nets.layers import Hop, Parts, WeightLayer, chain


class Shortcut(nn.Module):
    """The parameter-free bypass from (b, c, h, w) to what a block of two layers gives; or (b, units) unchanged.

    Option A of He et al. 2015, section 4.2: where a stage begins, every stride-th pixel of every stride-th row, and
    zeros for the new channels, which come after the old ones. Everywhere else the identity.
    """

    def __init__(self, hop: Hop) -> None:
        super().__init__()
        self.stride, self.new_channels = hop.stride, hop.outputs - hop.inputs

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, c + new_channels, ceil(h / stride), ceil(w / stride)); x itself where nothing changes."""
        if self.stride == 1 and self.new_channels == 0:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"stride={self.stride}, new_channels={self.new_channels}"


class Block(nn.Module):
    """A branch of two weight layers, `first` and `second`, beside a shortcut.

    y = f(shortcut(x) + second(first(x)))                f: `activation`, or nothing
    y = t second(first(x)) + (1 - t) shortcut(x)         with a gate, t = sigmoid(gate(x))
    """

    def __init__(
        self,
        first: nn.Sequential,
        second: nn.Sequential,
        shortcut: Shortcut,
        *,
        gate: WeightLayer | None = None,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = first, second, shortcut
        self.gate, self.activation = gate, activation

    def forward(self, x: Tensor) -> Tensor:
        """Features (b, inputs, ...) -> (b, outputs, ...)."""
        bypass, branch = self.shortcut(x), self.second(self.first(x))
        y: Tensor
        if self.gate is None:
            y = bypass + branch
        else:
            # A function, not a module: a probe of activations should not take a gate for one.
            t = torch.sigmoid(self.gate(x))
            y = t * branch + (1 - t) * bypass
        if self.activation is not None:
            y = self.activation(y)
        return y


def plain(parts: Parts, hop: Hop) -> nn.Sequential:
    """dropout(act(norm(W x))): one weight layer that nothing bypasses."""
    return chain(
        **parts.weight(hop), norm=parts.norm(hop.outputs), activation=parts.activation(), dropout=parts.dropout()
    )


def residual(parts: Parts, hop: Hop) -> Block:
    """act(shortcut(x) + norm(W2 act(norm(W1 x)))), the original block: He et al. 2015, figure 2 and section 4.2.

    Not config.branch=standard: act(shortcut(x) + a W2 act(W1 x)), a starting at 0 (ReZero); or, with scalar biases,
    act(shortcut(x) + a W2 (act(W1 (x + b1) + b2) + b3) + b4), a starting at 1 (Fixup: Zhang et al. 2019, figure 1).
    """
    second = _second(hop)
    return Block(
        chain(
            bias_in=parts.scalar_bias(),
            **parts.weight(hop),
            norm=parts.norm(hop.outputs),
            bias=parts.scalar_bias(),
            activation=parts.activation(),
            dropout=parts.dropout(),
        ),
        chain(
            bias_in=parts.scalar_bias(),
            **parts.weight(second),
            norm=parts.norm(second.outputs),
            multiplier=parts.multiplier(),
            bias=parts.scalar_bias(),
        ),
        Shortcut(hop),
        activation=parts.activation(),
    )


def preactivation(parts: Parts, hop: Hop) -> Block:
    """shortcut(x) + W2 act(norm(W1 act(norm(x)))): He et al. 2016, figure 4e.

    What enters and what leaves it has not been through norm and activation: the stem ends and the head begins so.
    Branches that start from 0 have what those of `residual` have: shortcut(x) + a W2 act(W1 act(x)).
    """
    second = _second(hop)
    return Block(
        chain(
            norm=parts.norm(hop.inputs),
            bias=parts.scalar_bias(),
            activation=parts.activation(),
            bias_in=parts.scalar_bias(),
            **parts.weight(hop),
        ),
        chain(
            norm=parts.norm(second.inputs),
            bias=parts.scalar_bias(),
            activation=parts.activation(),
            dropout=parts.dropout(),
            bias_in=parts.scalar_bias(),
            **parts.weight(second),
            multiplier=parts.multiplier(),
        ),
        Shortcut(hop),
    )


def highway(parts: Parts, hop: Hop) -> Block:
    """Y = t H(x) + (1 - t) shortcut(x), t = sigmoid(W_t x + b_t): Srivastava et al. 2015, eq. 3; H two plain layers.

    The gate is a layer like the first of H, with a bias always: it starts at config.gate_bias, which below 0 lets most
    of x pass.
    """
    second = _second(hop)
    last = chain(**parts.weight(second), norm=parts.norm(second.outputs), activation=parts.activation())
    return Block(plain(parts, hop), last, Shortcut(hop), gate=parts.gate(hop))


def _second(hop: Hop) -> Hop:
    return Hop(hop.outputs, hop.outputs)


BLOCKS: dict[str, Callable[[Parts, Hop], Block]] = {
    "residual": residual,
    "preactivation": preactivation,
    "highway": highway,
}
"""By config.skip; skip=none has `plain`, which holds one weight layer instead of two."""
