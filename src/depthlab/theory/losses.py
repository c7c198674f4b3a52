"""What a loss sends back into the logits, in closed form."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy
from numpy.typing import NDArray

from depthlab.theory.activations import Array


def logit_gradient(logits: Array, labels: NDArray[np.int_], *, loss: str) -> Array:
    """dL/dz of single examples, (n, classes), of logits z (n, classes) and labels y (n,), one-hot in the formulas.

    With p = softmax(z) and K classes,

        cross_entropy  -ln p_y                 dL/dz_j = p_j - y_j
        mse            1/K sum_k (z_k - y_k)^2           2 (z_j - y_j) / K
        brier          sum_k (p_k - y_k)^2               2 p_j ((p_j - y_j) - sum_k p_k (p_k - y_k))

    The softmax's own derivative, p_j (delta_jk - p_k), cancels in the first. In the last it stays: where the output is
    sure, all p_k near 0 or 1, it takes the gradient away, whether the answer is right or wrong. For two classes brier's
    is +-4 (1 - p_y) p (1 - p), the error times the sigmoid's derivative (Solla et al. 1988; Glorot & Bengio
    2010, section 4.1). In a mean over a batch every example's gradient carries the mean's 1/n.

    Raises ValueError on an unknown loss.

    >>> logit_gradient(np.zeros((1, 2)), np.array([0]), loss="cross_entropy").tolist()
    [[-0.5, 0.5]]
    """
    if loss not in GRADIENTS:
        raise ValueError(f"loss={loss!r} must be one of {', '.join(GRADIENTS)}")
    return GRADIENTS[loss](logits, np.eye(logits.shape[1])[labels])


def _softmax(logits: Array) -> Array:
    return np.asarray(scipy.special.softmax(logits, axis=1), dtype=np.float64)


def _cross_entropy(logits: Array, targets: Array) -> Array:
    return _softmax(logits) - targets


def _mse(logits: Array, targets: Array) -> Array:
    return np.asarray(2 * (logits - targets) / logits.shape[1], dtype=np.float64)


def _brier(logits: Array, targets: Array) -> Array:
    p = _softmax(logits)
    error = p - targets
    return np.asarray(2 * p * (error - (p * error).sum(axis=1, keepdims=True)), dtype=np.float64)


GRADIENTS: dict[str, Callable[[Array, Array], Array]] = {"cross_entropy": _cross_entropy, "mse": _mse, "brier": _brier}
