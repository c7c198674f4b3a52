"""DropConnect: weight layers of which a random part of the weights is missing at each update."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class DropConnectLinear(nn.Linear):
    """A fully connected layer that drops each weight with probability p in training: z = (M o W) x / (1 - p) + b.

    M_ij is 0 with probability p, else 1, independently. Dropout drops the outputs of a layer, this its connections (Wan
    et al. 2013). Given x, the outputs have over the masks the mean W x + b and the variance

        p / (1 - p) (W o W) (x o x)

    It departs from the paper in three points. One mask serves the whole batch, where theirs is drawn for each example
    and costs a weight matrix each: the expected gradient is the same, its variance is larger. Biases stay. And what
    is evaluated is the net with the mean weights, W itself, as is done for dropout; they draw z from a Gaussian of
    the mean and variance above and average the activations of the draws.

    Draws from torch's global generator, which the training loop seeds at every update.
    """

    def __init__(self, inputs: int, outputs: int, *, p: float, bias: bool = True) -> None:
        super().__init__(inputs, outputs, bias=bias)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs) -> (b, outputs)."""
        return F.linear(x, F.dropout(self.weight, self.p, self.training), self.bias)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{super().extra_repr()}, p={self.p}"


class DropConnectConv2d(nn.Conv2d):
    """A 3x3 convolution of padding 1 that drops each weight of its kernels as `DropConnectLinear` does.

    A dropped weight is missing at all places of all images of the batch.
    """

    def __init__(self, inputs: int, outputs: int, *, p: float, stride: int = 1, bias: bool = True) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, padding=1, bias=bias)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """(b, inputs, h, w) -> (b, outputs, ceil(h / stride), ceil(w / stride))."""
        weight = F.dropout(self.weight, self.p, self.training)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    def extra_repr(self) -> str:
        """What print(model) shows."""
        return f"{super().extra_repr()}, p={self.p}"  # type: ignore[no-untyped-call]
