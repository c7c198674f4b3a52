"""Where the theory of plain nets ends, and what is known of batch norm beyond it."""

from __future__ import annotations

import math

from depthlab.theory.activations import find_activation
from depthlab.theory.expectation import mean_square, mean_value


def check_applies(*, norm: str, skip: str, dropout: float = 0.0, family: str = "mlp") -> None:
    """Raises ValueError unless the formulas for plain nets hold: norm "none", skip "none", no dropout, no recurrence.

    No net of torchvision's is plain. The weights must also be independent with variance sigma_w^2 / fan_in; of
    orthogonal weights the same means hold.
    """
    if family == "rnn":
        raise ValueError(
            "family='rnn' is deep in time, not in layers; predict plain cells with time_profile(drive, activation=..., "
            "sigma_w=...), or measure without a predicted line"
        )
    if family == "torchvision":
        raise ValueError(
            "family='torchvision' has no prediction here: its nets are not plain; measure without a predicted line"
        )
    if skip != "none":
        raise ValueError(
            f"skip={skip!r} has no prediction here: the variance map is that of plain nets; predict with skip='none', "
            f"or measure without a predicted line"
        )
    if norm == "batch":
        raise ValueError(
            "norm='batch' rescales every layer by its batch, so sigma_w and sigma_b have no effect; "
            "predict its gradients with batch_norm_backward_slope(activation=...)"
        )
    if norm != "none":
        raise ValueError(
            f"norm={norm!r} has no prediction here: the variance map is that of plain nets; predict with norm='none', "
            f"or measure without a predicted line"
        )
    if dropout != 0.0:
        raise ValueError(f"dropout={dropout} has no prediction here; predict with dropout=0, or without a line")


def batch_norm_backward_slope(*, activation: str) -> float:
    """Slope d ln|dL/dz_l| / d l, l counted from the input, of plain layers linear -> batch norm -> phi: never positive.

    -1/2 ln(E[phi'(z)^2] / Var[phi(z)]),  z ~ N(0, 1);   relu: -1/2 ln(pi / (pi - 1)) = -0.1917 (a factor of 1.2113)

    Batch norm's own gain is 1 / (sigma_w sd[phi]), which cancels sigma_w; what is left is at least 1 by Poincare's
    inequality, with equality for linear phi alone: gradients explode towards the input whatever the weights. Yang et
    al. 2019 ("A mean field theory of batch normalization") derive it for relu. Conditions: at initialization, batch
    statistics of a large batch of distinct inputs, layers several times wider than the batch, no skips. A batch of B
    explodes faster by about 1 / (2 B) per layer, and finite width adds as much again where phi is nearly linear.
    """
    found = find_activation(activation)
    variance = mean_square(found, 1.0) - mean_value(found, 1.0) ** 2
    return 0.5 * math.log(variance / mean_square(found, 1.0, of_derivative=True))
