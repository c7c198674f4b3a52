"""Linear regions of a relu net on a plane of inputs: counted by cutting the plane, one neuron after the other."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ROUNDING = 1e-9
"""Of the largest output: what two ways to compute a net in float64 may differ by."""

Points = NDArray[np.float64]

THINNEST = 1e-11
"""Of the reach of a neuron's input: a piece of the plane on which it stays this close to 0 is rounding."""

PASSED_OVER = (nn.Flatten, nn.Identity, nn.Dropout)
"""What a net in evaluation mode passes unchanged through, once images are vectors."""


def linear_regions(model: nn.Module, low: Sequence[float], high: Sequence[float]) -> list[Points]:
    """The parts of a rectangle of inputs in each of which every hidden unit stays on one side of its kink.

    >>> model = nn.Sequential(nn.Linear(2, 1), nn.ReLU(), nn.Linear(1, 1))
    >>> _ = nn.init.ones_(model[0].weight), nn.init.zeros_(model[0].bias)
    >>> len(linear_regions(model, (-1, -1), (1, 1)))
    2

    model: a net of two inputs, a chain of nn.Linear with an nn.ReLU or nn.LeakyReLU after each but the last; dropout
        counts as in evaluation mode, and the plain MLPs of depthlab.nets are such nets.
    low, high: two corners of the rectangle, (x, y) each.
    Returned are convex polygons, (corners, 2) each, in float64, which fill the rectangle; len() counts them. Where all
    hidden units before a neuron keep their sides, its input is A x + b, so that it cuts a polygon along a straight
    line or not at all: starting with the rectangle, each layer cuts the polygons that the layers before it have left.
    It is exact but for pieces that are thinner than float64 can tell, `THINNEST` of a neuron's input, and takes some
    30 microseconds a region and layer.

    They are the *activation regions* of Hanin & Rolnick 2019 ("Deep ReLU networks have surprisingly few activation
    patterns"); on each the net is linear. Montufar et al. 2014 count the largest sets on
    which it is, which are fewer where a line bends nothing that reaches the output, as behind a layer of dead units.
    Raises ValueError for another net, or corners that span no area.
    """
    layers = _chain(model)
    lower, upper = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    if lower.shape != (2,) or upper.shape != (2,) or not (lower < upper).all():
        raise ValueError(f"low and high must be two corners (x, y), low below high; given {low} and {high}")
    _require_equal(model, layers, lower, upper)
    corners = np.array([lower, (upper[0], lower[1]), upper, (lower[0], upper[1])])
    regions = [(corners, np.eye(2), np.zeros(2))]
    for weight, bias, slope in layers[:-1]:
        regions = [
            piece
            for polygon, matrix, offset in regions
            for piece in _pieces(polygon, weight @ matrix, weight @ offset + bias, slope)
        ]
    return [polygon for polygon, _, _ in regions]


def _pieces(polygon: Points, matrix: Points, offset: Points, slope: float) -> Iterator[tuple[Points, Points, Points]]:
    """What neurons of input `matrix` x + `offset` cut a polygon into, each with the outputs of all of them there."""
    inputs = polygon @ matrix.T + offset
    reach = np.abs(matrix) @ np.abs(polygon).max(axis=0) + np.abs(offset)
    edge = THINNEST * reach
    pieces = [polygon]
    for neuron in np.flatnonzero((inputs.max(axis=0) > edge) & (inputs.min(axis=0) < -edge)):
        pieces = [half for each in pieces for half in _halves(each, matrix[neuron], offset[neuron], edge[neuron])]
    for piece in pieces:
        gain = np.where(piece.mean(axis=0) @ matrix.T + offset > 0, 1.0, slope)
        yield piece, gain[:, None] * matrix, gain * offset


def _halves(polygon: Points, normal: Points, offset: float, edge: float) -> tuple[Points, ...]:
    """The polygon on both sides of the line normal . x + offset = 0, or the polygon where the line passes it by."""
    side = polygon @ normal + offset
    if side.max() <= edge or side.min() >= -edge:
        return (polygon,)
    above = side > 0
    # Corners above the line lie together: turned so that they come first.
    first = int(np.flatnonzero(above & ~np.roll(above, 1))[0])
    polygon, side = np.roll(polygon, -first, axis=0), np.roll(side, -first)
    count = int(above.sum())
    leaving = _crossing(polygon, side, count - 1, count)
    entering = _crossing(polygon, side, -1, 0)
    return (
        np.concatenate([polygon[:count], [leaving, entering]]),
        np.concatenate([polygon[count:], [entering, leaving]]),
    )


def _crossing(polygon: Points, side: Points, one: int, other: int) -> Points:
    share = side[one] / (side[one] - side[other])
    crossing: Points = polygon[one] + share * (polygon[other] - polygon[one])
    return crossing


def _chain(model: nn.Module) -> list[tuple[Points, Points, float]]:
    """Weight, bias and slope below 0 of the activation that follows, for each layer in order; 1 after the last."""
    found: list[tuple[Points, Points, float]] = []
    open_layer = False
    for module in model.modules():
        if next(module.children(), None) is not None or isinstance(module, PASSED_OVER):
            continue
        if isinstance(module, nn.Linear) and not open_layer:
            bias = torch.zeros(module.out_features) if module.bias is None else module.bias
            found.append((_numbers(module.weight), _numbers(bias), 1.0))
        elif isinstance(module, nn.ReLU | nn.LeakyReLU) and open_layer:
            slope = module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0
            found[-1] = (*found[-1][:2], slope)
        elif not (isinstance(module, nn.Sequential) and len(module) == 0):
            raise _refusal(f"it has {type(module).__name__} where {'an activation' if open_layer else 'Linear'} is due")
        else:
            continue
        open_layer = isinstance(module, nn.Linear)
    if not found or not open_layer:
        raise _refusal("it does not end in Linear")
    if found[0][0].shape[1] != 2:
        raise _refusal(f"it has {found[0][0].shape[1]} inputs")
    return found


def _require_equal(model: nn.Module, layers: list[tuple[Points, Points, float]], low: Points, high: Points) -> None:
    """Raises ValueError unless the layers, one after the other, give what the model gives; some nets add bypasses."""
    points = low + (high - low) * np.random.default_rng(0).uniform(size=(64, 2))
    values = points
    for weight, bias, slope in layers:
        values = values @ weight.T + bias
        values = np.where(values > 0, values, slope * values)
    twin = copy.deepcopy(model).cpu().double().eval()
    inputs = torch.from_numpy(points)
    images = any(isinstance(module, nn.Flatten) for module in model.modules())
    with torch.no_grad():
        given = twin(inputs[:, :, None, None] if images else inputs).numpy()
    error = np.abs(given - values).max()
    if not error <= ROUNDING * (1 + np.abs(values).max()):
        raise _refusal(f"its layers, run one after the other, differ from it by {error:.2g}")


def _numbers(tensor: Tensor) -> Points:
    return tensor.detach().cpu().double().numpy()


def _refusal(reason: str) -> ValueError:
    return ValueError(
        f"linear regions are counted of plain nets of two inputs, with ReLU or LeakyReLU after each Linear but the "
        f"last; this net is none, as {reason}"
    )
