"""A first look: gradients die towards the input at torch's default initialization, and live with relu and He's.

Left: the backward signal of 20-layer nets at initialization, with the mean-field prediction drawn over it. Right: what
that does to the test error after training.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from depthlab import figures
from depthlab.figures import Claim, deepest, paired, where

PROBES = ("backward_norm", "grad_norm", "test_error")

NETS = {
    ("sigmoid", "torch_default"): "sigmoid, torch default",
    ("relu", "torch_default"): "relu, torch default",
    ("relu", "he"): "relu, He",
}
LABELS = list(NETS.values())


def named(readings: pd.DataFrame) -> pd.DataFrame:
    return figures.named(readings, ["model.activation", "model.init"], NETS)


def signal(readings: pd.DataFrame) -> pd.DataFrame:
    """The backward signal at initialization."""
    return named(figures.select(readings, "backward_norm", step="first"))


def slopes(readings: pd.DataFrame) -> pd.DataFrame:
    """Measured and predicted slopes of the backward signal at initialization, per seed."""
    return figures.backward_slopes(signal(readings), ["net", "model.depth"])


def table(readings: pd.DataFrame) -> pd.DataFrame:
    errors, found = named(figures.errors(readings)), slopes(readings)
    by = {"net": "net", "model.depth": "depth"}
    predicted = {group: figures.predicted_text(part) for group, part in found.groupby(list(by))}
    return figures.table(errors, by, {"slope measured": found, "slope predicted": predicted, "test error, %": errors})


def claims(readings: pd.DataFrame) -> list[Claim]:
    deep, errors = deepest(slopes(readings)), deepest(named(figures.errors(readings)))
    return [
        Claim(
            statement="In a 20-layer sigmoid net at torch's default init the gradient shrinks layer by layer.",
            effect="factor per layer towards the input",
            values=np.exp(-where(deep, net="sigmoid, torch default")["value"]),
            at_most=0.25,
            log=True,
        ),
        Claim(
            statement="Mean-field theory predicts that rate for all three nets.",
            effect="largest |slope measured - slope predicted|, nepers per layer",
            values=figures.largest_gap(deep),
            at_most=0.1,
        ),
        Claim(
            statement="Where the gradient lives, the deep net learns; where it has died, it does not.",
            effect="test error, 20 layers, sigmoid at torch's default - relu with He's init, points",
            values=paired(errors, "net", "sigmoid, torch default", "relu, He"),
            at_least=40,
        ),
    ]


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(2, 1, height=2.6)
    hidden = figures.hidden(deepest(signal(readings)))
    figures.draw(axes[0], hidden, "depth", "net", labels=LABELS, title="backward signal at initialization")
    for _, condition in hidden.groupby("net"):
        figures.theory(axes[0], *figures.predicted_backward(condition))
    errors = named(figures.errors(readings))
    figures.draw(axes[1], errors, "model.depth", "net", labels=LABELS, ylabel="test error, %")
    axes[1].set_xticks(sorted(readings["model.depth"].unique()))
    axes[1].set_title(f"after {readings['train.steps'].max()} updates")
    figures.legend(drawing)
    return drawing
