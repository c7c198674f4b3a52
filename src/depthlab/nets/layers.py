"""What networks are made of: weight layers, normalization, activations, dropout; the same calls for both families."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from depthlab.config import ModelConfig
from depthlab.nets.dropconnect import DropConnectConv2d, DropConnectLinear

WeightLayer = nn.Linear | nn.Conv2d

GATE = "gate"
"""Name of the weight layers that open and close highways. They are no part of depth."""

EPS = 1e-5
"""What every norm adds to the variance or mean square. torch's own defaults differ from norm to norm."""

LEAKY_SLOPE = 0.01
VERY_LEAKY_SLOPE = 1 / 5.5
"""Xu et al. 2015, who found it to do better than 0.01."""


class RMSNorm2d(nn.Module):
    """Each example of (b, c, h, w) over its root mean square, times one learned scale per channel; same shape.

    y = g_c x / sqrt(mean over c, h, w of x^2 + eps)         (Zhang & Sennrich 2019, eq. 4, on feature maps)

    The statistic spans channels and positions, as that of GroupNorm(1, c) does; torch.nn.RMSNorm would want a
    scale for every position. affine: whether there is a scale.
    """

    weight: nn.Parameter | None

    def __init__(self, channels: int, affine: bool = True) -> None:
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.ones(channels)) if affine else None)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as x, (b, c, h, w)."""
        mean_square = x.square().mean(dim=(1, 2, 3), keepdim=True)
        normalized = x * torch.rsqrt(mean_square + EPS)
        return normalized if self.weight is None else normalized * self.weight[:, None, None]


class NormNoise(nn.Module):
    """Noise that makes the distribution of every unit jump from one update to the next; in training only.

    y = (s_j + u e) x + (m_j + u d),   s_j ~ U(1, 1 + strength / 2), m_j ~ U(-strength, strength), u = strength / 5

    s_j and m_j are drawn for each unit (of a feature map: channel), e ~ N(0, 1) and d ~ U(-1, 1) for each entry, all
    anew at every forward pass: after batch norm, the "noisy" batch norm of Santurkar et al. 2018. It undoes what a norm
    does for the stability of distributions and leaves what it does for the optimization. Draws from torch's global
    generator, which the training loop seeds at every update.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, x: Tensor) -> Tensor:
        """(b, units) or (b, channels, h, w) -> the same shape; x itself in evaluation."""
        if not self.training:
            return x
        of_unit = x.new_empty(1, x.shape[1], *[1] * (x.dim() - 2))
        scale = torch.empty_like(of_unit).uniform_(1, 1 + self.strength / 2)
        shift = torch.empty_like(of_unit).uniform_(-self.strength, self.strength)
        spread = self.strength / 5
        scale = scale + spread * torch.randn_like(x)
        shift = shift + torch.empty_like(x).uniform_(-spread, spread)
        return scale * x + shift

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"strength={self.strength}"


STOCHASTIC = (nn.Dropout, NormNoise, DropConnectLinear, DropConnectConv2d)
"""Modules whose training mode draws random numbers at every forward pass."""


class Multiplier(nn.Module):
    """a x with one learned number a, on a residual branch; same shape.

    start: a before training. 0 in ReZero (Bachlechner et al. 2020, eq. 2), 1 in Fixup (Zhang et al. 2019, section 3).
    """

    def __init__(self, start: float) -> None:
        super().__init__()
        self.start = start
        self.factor = nn.Parameter(torch.full((), start))

    def forward(self, x: Tensor) -> Tensor:
        """Features of any shape -> the same shape."""
        return self.factor * x

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"start={self.start:g}"


class ScalarBias(nn.Module):
    """x + b with one learned number b, at first 0; same shape (Zhang et al. 2019, section 3, rule 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """Features of any shape -> the same shape."""
        return x + self.offset


MULTIPLIERS = {"standard": None, "rezero": 0.0, "fixup": 1.0}
"""By config.branch: where the multiplier of each residual branch starts; None where there is none."""

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": lambda: nn.LeakyReLU(LEAKY_SLOPE),
    "very_leaky_relu": lambda: nn.LeakyReLU(VERY_LEAKY_SLOPE),
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "identity": nn.Identity,
}

NORMS: dict[str, dict[str, Callable[[int, int, bool], nn.Module | None]]] = {
    "none": {"mlp": lambda *_: None, "cnn": lambda *_: None},
    "batch": {
        "mlp": lambda c, _, affine: nn.BatchNorm1d(c, EPS, affine=affine),
        "cnn": lambda c, _, affine: nn.BatchNorm2d(c, EPS, affine=affine),
    },
    "layer": {
        "mlp": lambda c, _, affine: nn.LayerNorm(c, EPS, elementwise_affine=affine),
        "cnn": lambda c, _, affine: nn.GroupNorm(1, c, EPS, affine=affine),
    },
    "group": {
        "mlp": lambda c, groups, affine: nn.GroupNorm(groups, c, EPS, affine=affine),
        "cnn": lambda c, groups, affine: nn.GroupNorm(groups, c, EPS, affine=affine),
    },
    "rms": {
        "mlp": lambda c, _, affine: nn.RMSNorm(c, EPS, elementwise_affine=affine),
        "cnn": lambda c, _, affine: RMSNorm2d(c, affine),
    },
}
"""By config.norm and config.family: from channels, groups, and whether scale and shift are learned."""


@dataclass(frozen=True)
class Hop:
    """From how many channels (an MLP: units) to how many, at which stride."""

    inputs: int
    outputs: int
    stride: int = 1


@dataclass(frozen=True)
class Parts:
    """Makes the parts that a configuration asks for: a new instance at every call, None where it asks for none."""

    config: ModelConfig

    def weight(self, hop: Hop) -> dict[str, nn.Module]:
        """A weight layer under the name of its kind."""
        return {"linear" if self.config.family == "mlp" else "conv": self._hidden(hop)}

    def gate(self, hop: Hop) -> WeightLayer:
        """A weight layer that always has a bias."""
        return self._weight(hop, bias=True)

    def norm(self, channels: int) -> nn.Module | None:
        """What normalizes (b, channels) or (b, channels, h, w)."""
        config = self.config
        norm = NORMS[config.norm][config.family](channels, config.norm_groups, config.norm_affine)
        if norm is None or config.norm_noise == 0:
            return norm
        return nn.Sequential(norm, NormNoise(config.norm_noise))

    def multiplier(self) -> nn.Module | None:
        """What scales a residual branch."""
        start = MULTIPLIERS[self.config.branch]
        return None if start is None else Multiplier(start)

    def scalar_bias(self) -> nn.Module | None:
        """What Fixup has before each activation, and before each weight layer but the first."""
        return ScalarBias() if self.config.branch == "fixup" else None

    def activation(self) -> nn.Module:
        """The nonlinearity: a module at each place, so that each can be watched."""
        return ACTIVATIONS[self.config.activation]()

    def dropout(self) -> nn.Module | None:
        """Dropout of single values."""
        return nn.Dropout(self.config.dropout) if self.config.dropout > 0 else None

    def _hidden(self, hop: Hop) -> WeightLayer:
        """A weight layer before the head, with the DropConnect that is asked for."""
        p, bias = self.config.dropconnect, self.config.bias
        if p == 0:
            return self._weight(hop, bias=bias)
        if self.config.family == "mlp":
            return DropConnectLinear(hop.inputs, hop.outputs, p=p, bias=bias)
        return DropConnectConv2d(hop.inputs, hop.outputs, p=p, stride=hop.stride, bias=bias)

    def _weight(self, hop: Hop, *, bias: bool) -> WeightLayer:
        """A fully connected layer, or a 3x3 convolution that keeps the resolution at stride 1."""
        if self.config.family == "mlp":
            return nn.Linear(hop.inputs, hop.outputs, bias=bias)
        return nn.Conv2d(hop.inputs, hop.outputs, 3, stride=hop.stride, padding=1, bias=bias)


def chain(**modules: nn.Module | None) -> nn.Sequential:
    """The modules that are there, one after the other, under their names."""
    return nn.Sequential(OrderedDict((name, module) for name, module in modules.items() if module is not None))


def weight_layers(model: nn.Module) -> list[tuple[str, WeightLayer | nn.RNNCellBase]]:
    """Every weight layer of a net of this package with its name, from input to logits, gates of highways left out.

    There are config.depth of them. A recurrent net's cell is one.

    >>> from depthlab.config import ModelConfig
    >>> from depthlab.nets import build
    >>> model = build(ModelConfig(depth=4), channels=1, size=8, classes=10, seed=0)
    >>> [name for name, layer in weight_layers(model)]
    ['stem.linear', 'blocks.0.linear', 'blocks.1.linear', 'head.linear']
    """
    kinds = WeightLayer | nn.RNNCellBase
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, kinds) and name.rpartition(".")[2] != GATE
    ]


def gates(model: nn.Module) -> list[tuple[str, WeightLayer]]:
    """The gates of a highway net with their names, from input to logits."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, WeightLayer) and name.rpartition(".")[2] == GATE
    ]
