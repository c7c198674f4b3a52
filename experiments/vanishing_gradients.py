"""Gradients of plain nets vanish at the rate that mean-field theory predicts; He's init, norms and skips change it.

Top: the backward signal at initialization in the deepest nets, with the prediction, for which only the value in the
last hidden layer is taken from the measurement. Bottom: the weights' gradients before and after training, and the test
error against depth, of six nets that differ in one factor each.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from depthlab import figures
from depthlab.figures import Claim, by_seed, deepest, paired, where

PROBES = ("backward_norm", "grad_norm", "test_error")

INITS = {"torch_default": "torch default", "xavier": "Xavier", "he": "He"}
NETS = {  # (activation, init, norm, skip)
    ("sigmoid", "torch_default", "none", "none"): "sigmoid, default init",
    ("tanh", "xavier", "none", "none"): "tanh, Xavier",
    ("relu", "torch_default", "none", "none"): "relu, default init",
    ("relu", "he", "none", "none"): "relu, He",
    ("relu", "he", "batch", "none"): "... and batch norm",
    ("relu", "he", "batch", "residual"): "... and skips",
}
LABELS = list(NETS.values())
FACTORS = ["model.activation", "model.init", "model.norm", "model.skip"]


def plain(readings: pd.DataFrame) -> pd.DataFrame:
    """The backward signal at initialization of what the theory speaks of."""
    return where(figures.select(readings, "backward_norm", step="first"), model__norm="none", model__skip="none")


def named(readings: pd.DataFrame) -> pd.DataFrame:
    """The six nets of the bottom row, by name."""
    return figures.named(readings, FACTORS, NETS)


def span(readings: pd.DataFrame, net: str, step: str) -> np.ndarray:
    """log10 of the gradient norm in the first layer over that in the last hidden one, per seed, in the deepest nets."""
    rows = deepest(named(figures.select(readings, "grad_norm", step=step)))
    rows = rows[(rows["net"] == net) & rows["depth"].isin([1, rows["model.depth"].max() - 1])]
    return np.log10(paired(rows, "depth", 1, rows["model.depth"].max() - 1, ratio=True))


def table(readings: pd.DataFrame) -> pd.DataFrame:
    slopes = figures.backward_slopes(plain(readings), [*FACTORS, "model.depth"])
    predicted = {group: figures.predicted_text(part) for group, part in slopes.groupby([*FACTORS, "model.depth"])}
    errors = figures.errors(readings)
    return figures.table(
        errors,
        dict(zip(FACTORS, ["activation", "init", "norm", "skip"], strict=True)) | {"model.depth": "depth"},
        {"slope measured": slopes, "slope predicted": predicted, "test error, %": errors},
    )


def claims(readings: pd.DataFrame) -> list[Claim]:
    slopes = deepest(figures.backward_slopes(plain(readings), [*FACTORS, "model.depth"]))
    return [*claims_on_signals(readings, slopes), *claims_on_errors(named(deepest(figures.errors(readings))))]


def claims_on_signals(readings: pd.DataFrame, slopes: pd.DataFrame) -> list[Claim]:
    sigmoid, _, _, _, normalized, _ = LABELS
    he = where(slopes, model__activation="relu", model__init="he")
    return [
        Claim(
            statement="Mean-field theory predicts the growth of the backward signal per layer in every plain net.",
            effect="largest |slope measured - slope predicted| of nine deep nets, nepers per layer",
            values=figures.largest_gap(slopes),
            at_most=0.05,
        ),
        Claim(
            statement="In a deep sigmoid net at torch's default init the gradient vanishes on its way to the input.",
            effect="log10 of gradient norm, first over last hidden layer, at initialization",
            values=span(readings, sigmoid, "first"),
            at_most=-6,
        ),
        Claim(
            statement="Training does not bring the vanished gradient back.",
            effect="the same after training",
            values=span(readings, sigmoid, "last"),
            at_most=-6,
        ),
        Claim(
            statement="With He's init the backward signal of a relu net neither vanishes nor explodes.",
            effect="slope, nepers per layer",
            values=by_seed(he),
            at_least=-0.05,
            at_most=0.05,
        ),
        Claim(
            statement="Batch norm without skips turns vanishing into exploding: gradients grow towards the input.",
            effect="log10 of gradient norm, first over last hidden layer, at initialization",
            values=span(readings, normalized, "first"),
            at_least=0.5,
        ),
    ]


def claims_on_errors(errors: pd.DataFrame) -> list[Claim]:
    sigmoid, _, _, healthy, _, residual = LABELS
    return [
        Claim(
            statement="Where the gradient has vanished nothing is learnt.",
            effect="test error of the deepest sigmoid net, %",
            values=by_seed(where(errors, net=sigmoid)),
            at_least=85,
        ),
        Claim(
            statement="A healthy gradient at initialization is not enough: batch norm with skips trains a deep net "
            "that He's init alone does not.",
            effect="test error of the deepest net, He's init alone - with batch norm and skips, points",
            values=paired(errors, "net", healthy, residual),
            at_least=5,
        ),
    ]


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(3, 2, height=4.6)
    for panel, (activation, rows) in zip(axes, deepest(plain(readings)).groupby("model.activation"), strict=False):
        hidden = figures.hidden(rows)
        figures.draw(panel, figures.above_floor(hidden), "depth", "model.init", labels=INITS, title=str(activation))
        for _, condition in hidden.groupby("model.init"):
            figures.theory(panel, *figures.predicted_backward(condition))
    gradients = deepest(named(figures.hidden(readings)))
    for panel, (step, when) in zip(axes[3:], {"first": "at initialization", "last": "trained"}.items(), strict=False):
        rows = figures.select(gradients, "grad_norm", step=step)
        figures.draw(panel, figures.above_floor(rows), "depth", "net", labels=LABELS, title=when)
    figures.draw_errors(axes[5], named(figures.errors(readings)), "model.depth", "net", labels=LABELS, title="trained")
    figures.log_ticks(axes[5], readings["model.depth"])
    for panel in (axes[1], axes[2], axes[4]):
        panel.set_ylabel("")
    for panel in (axes[2], axes[5]):
        figures.legend_beside(panel)
    return drawing
