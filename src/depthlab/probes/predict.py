"""What theory would say of a net that it has no formula for: slopes and depths, estimated from one pass of the net."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor, nn

from depthlab.probes.measure import Measured, measure

LEAST_LAYERS = 4
SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
CONFIDENCE = 0.95
TENFOLD = 10.0
"""Gradients that change less than this from the head to the input neither vanish nor explode."""


@dataclass(frozen=True)
class Slope:
    """Change of a logarithm per layer: the median over all pairs of layers (Theil 1950, Sen 1968).

    low, high: its 95 % interval for layers that scatter independently about a line. It tells how straight the
    line is, not how far other random nets of the kind are from this one.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Prediction:
    """How signals grow from layer to layer in a net, and how deep it could be.

    layers: its weight layers, in the order in which data flows; slopes are over all of them but the head.
    forward: d ln rms(z_l) / d l, l counted from the input; negative: the signal dies on its way to the head.
    backward: d ln |dL/dz_l| / d l; positive: gradients vanish towards the input; negative: they explode.
    float32_depth: number of weight layers at which a net that goes on so would have signals or gradients outside of
        float32's normal numbers, 1.2e-38 to 3.4e38; inf where neither changes.
    """

    layers: tuple[str, ...]
    forward: Slope
    backward: Slope
    float32_depth: float

    @property
    def chi(self) -> float:
        """Growth of E|dL/dz|^2 per layer towards the input: exp(-2 backward); 1 at the edge of chaos."""
        return math.exp(-2.0 * self.backward.value)

    @property
    def depth_scale(self) -> float:
        """Number of layers xi = 1 / |ln chi| in which |dL/dz|^2 changes e-fold; inf where it does not change."""
        return math.inf if self.backward.value == 0.0 else 1.0 / abs(2.0 * self.backward.value)

    @property
    def trainable_depth(self) -> float:
        """6 xi layers: about how deep a plain random net of this depth scale still trains (Schoenholz et al. 2017).

        Of nets with skips or norms nothing of the kind is known.
        """
        return 6.0 * self.depth_scale

    def __str__(self) -> str:
        backward, forward = math.exp(-self.backward.value), math.exp(self.forward.value)
        change = math.exp(min(self.backward.value * len(self.layers), 700.0))
        is_flat = 1 / TENFOLD < change < TENFOLD
        verdict = "neither vanish nor explode" if is_flat else "vanish" if change > 1 else "explode"
        deep = f"{self.float32_depth:,.0f} layers" if math.isfinite(self.float32_depth) else "no depth"
        return (
            f"{len(self.layers)} weight layers. Gradients {verdict} towards the input: times {backward:.3g} a layer "
            f"[{math.exp(-self.backward.high):.3g}, {math.exp(-self.backward.low):.3g}]; signals: times {forward:.3g} "
            f"a layer [{math.exp(self.forward.low):.3g}, {math.exp(self.forward.high):.3g}]. chi {self.chi:.3g}, "
            f"depth scale {self.depth_scale:.3g}; out of float32's range at {deep}."
        )


def predict(model: nn.Module, batch: Any) -> Prediction:
    """Estimates growth per layer, chi and depth scale of any net from one forward and backward pass of its own.

    >>> model = nn.Sequential(*(nn.Linear(50, 50, bias=False) for _ in range(6)))
    >>> for layer in model:
    ...     layer.weight.data = torch.eye(50) / 2
    >>> print(predict(model, torch.ones(3, 50)))  # doctest: +NORMALIZE_WHITESPACE +ELLIPSIS
    6 weight layers. Gradients vanish towards the input: times 0.5 a layer [0.5, 0.5]; signals: times 0.5 a layer
    [0.5, 0.5]. chi 0.25, depth scale 0.721; out of float32's range at 12... layers.

    batch: what the model is called with: a tensor, a tuple of arguments, or a mapping of keyword arguments; targets
        are not needed, since the gradient that starts at the output is drawn at random (of norm 1, always the same).

    The model is left as it was. Unlike `depthlab.theory` this assumes nothing of architecture and weights, and says
    nothing of nets that were not built: the slope is that of this net, with these weights and this batch. Slopes
    mean most in nets whose layers are alike. Raises ValueError on fewer than four weight layers, and on outputs that
    are no numbers.
    """
    rows = measure(model, lambda: _random_loss(_call(model, batch)), ["output_rms", "backward_norm", "backward_rms"])
    layers = {row.depth: row.layer for row in rows}
    if len(layers) < LEAST_LAYERS:
        raise ValueError(f"the model has {len(layers)} weight layers; a slope over layers needs {LEAST_LAYERS} or more")
    head = max(layers)
    forward = _slope(rows, "output_rms", head)
    backward = _slope(rows, "backward_norm", head)
    depth = min(
        _depth_to_leave(_at(rows, "output_rms"), forward.value),
        _depth_to_leave(_at(rows, "backward_rms", last=True), -backward.value),
    )
    return Prediction(tuple(layers[depth] for depth in sorted(layers)), forward, backward, depth)


def _call(model: nn.Module, batch: Any) -> Any:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, (tuple, list)) else model(batch)


def _random_loss(outputs: Any) -> Tensor:
    """A loss whose gradient with respect to the first floating-point output is a random vector of norm 1."""
    output = _first(outputs)
    if output is None:
        raise ValueError(f"the model must return a tensor of numbers, alone or in a collection; given {type(outputs)}")
    generator = torch.Generator(device="cpu").manual_seed(0)
    direction = torch.randn(output.shape, generator=generator, dtype=torch.float64, device="cpu")
    loss: Tensor = (output * (direction / direction.norm()).to(output)).sum()
    return loss


def _first(outputs: Any) -> Tensor | None:
    if isinstance(outputs, Tensor):
        return outputs if outputs.is_floating_point() else None
    inner = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, (tuple, list)) else ()
    return next((found for each in inner if (found := _first(each)) is not None), None)


def _slope(rows: list[Measured], probe: str, head: int) -> Slope:
    points = [(row.depth, row.value) for row in rows if row.probe == probe and row.depth < head and not row.at_floor]
    usable = [(depth, math.log(value)) for depth, value in points if 0.0 < value < math.inf]
    if len(usable) < LEAST_LAYERS - 1:
        raise ValueError(f"{probe} is 0 or not finite in all but {len(usable)} layers; there is no slope to estimate")
    depths, logs = np.array(usable).T
    value, _, low, high = scipy.stats.theilslopes(logs, depths, alpha=CONFIDENCE)
    return Slope(float(value), float(low), float(high))


def _at(rows: list[Measured], probe: str, *, last: bool = False) -> float:
    """The value in the layer where the signal starts: the first, or, backwards, the last hidden one."""
    values = [row.value for row in rows if row.probe == probe]
    return values[-2] if last else values[0]


def _depth_to_leave(start: float, growth: float) -> float:
    """Number of layers after which start * exp(growth * layers) is no normal number of float32."""
    if growth == 0.0 or not 0.0 < start < math.inf:
        return math.inf
    end = SMALLEST if growth < 0.0 else LARGEST
    return max(0.0, (math.log(end) - math.log(start)) / growth)
