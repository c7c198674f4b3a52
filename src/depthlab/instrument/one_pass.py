"""One pass through anybody's model, as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import pandas as pd
from torch import Tensor, nn

from depthlab import probes as reading
from depthlab.probes import Measured


def measure(
    model: nn.Module,
    closure: Callable[[], Tensor] | Sequence[Callable[[], Tensor]],
    probes: Iterable[str] = ("grad_norm", "weight_norm", "backward_norm", "activation_mean", "activation_std"),
    *,
    examples: int | None = None,
) -> pd.DataFrame:
    """What `depthlab.probes.measure` reads, as a table: columns layer, depth, probe, value, at_floor.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    >>> measure(model, lambda: model(torch.ones(5, 3)).square().mean(), probes=["grad_norm"]).columns.tolist()
    ['layer', 'depth', 'probe', 'value', 'at_floor']
    """
    columns = [field.name for field in dataclasses.fields(Measured)]
    return pd.DataFrame(reading.measure(model, closure, probes, examples=examples), columns=columns)
