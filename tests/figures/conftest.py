"""Readings with known effects: gradients that vanish at a known rate, errors that differ by a known amount."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from depthlab.figures import Claim, paired, pivot, select, slopes

RATES = {"sigmoid": 1.4, "tanh": 0.1, "relu": 0.0}
ERRORS = {"sigmoid": 0.9, "tanh": 0.2, "relu": 0.1}


@pytest.fixture
def readings() -> pd.DataFrame:
    """Three activations, four seeds, ten layers; ln grad_norm rises by RATES a layer, test_error is about ERRORS."""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for activation, rate in RATES.items():
        for seed in range(4):
            run = {
                "key": f"{len(rows):04x}e4",
                "status": "done",
                "model.depth": 10,
                "model.activation": activation,
                "model.skip": "none",
                "seed": seed,
            }
            level = random.normal(0, 0.1)
            for depth in range(1, 11):
                value = math.exp(rate * (depth - 10) + level + random.normal(0, 0.01))
                for step, probe in ((0, "grad_norm"), (100, "grad_norm"), (100, "saturation")):
                    layer = {"layer": f"blocks.{depth}", "depth": depth}
                    rows.append({**run, "step": step, **layer, "probe": probe, "value": value})
            error = {"step": 100, "layer": "network", "depth": 0, "probe": "test_error"}
            rows.append({**run, **error, "value": ERRORS[activation] + random.normal(0, 0.005)})
    return pd.DataFrame(rows)


def _table(readings: pd.DataFrame) -> pd.DataFrame:
    return pivot(select(readings, "test_error", step="last"), ["model.activation"], "model.depth")


def _claims(readings: pd.DataFrame) -> list[Claim]:
    rates = slopes(select(readings, "grad_norm", step=0), ["model.activation"])
    return [
        Claim(
            statement="Gradients of sigmoid nets vanish.",
            effect="slope of ln |dL/dW| per layer",
            values=rates[rates["model.activation"] == "sigmoid"]["value"],
            at_least=1,
        ),
        Claim(
            statement="ReLU nets err less than sigmoid nets.",
            effect="difference of test error",
            values=paired(select(readings, "test_error"), "model.activation", "sigmoid", "relu"),
            at_least=0.5,
        ),
    ]


def _small_figure(readings: pd.DataFrame) -> Any:
    figure = Figure(figsize=(1, 1))
    figure.add_axes((0, 0, 1, 1)).scatter(readings["depth"], readings["value"], s=1)
    return figure


@pytest.fixture
def experiment() -> Any:
    """What a script of experiments/ holds, with a figure that is quickly drawn."""
    return SimpleNamespace(
        __doc__="Gradients of sigmoid nets vanish.\n\nMore.",
        PROBES=("grad_norm", "test_error"),
        table=_table,
        claims=_claims,
        figure=_small_figure,
    )
