"""A first look: gradients die towards the input at torch's default initialization, and live with relu and He's.

Left: the backward signal of 20-layer nets at initialization, with the mean-field prediction drawn over it. Right: what
that does to the test error after training.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from depthlab import figures
from depthlab.figures import Claim

PROBES = ("backward_norm", "grad_norm", "test_error")

NETS = {
    ("sigmoid", "torch_default"): "sigmoid, torch default",
    ("relu", "torch_default"): "relu, torch default",
    ("relu", "he"): "relu, He",
}
LABELS = {name: name for name in NETS.values()}


def named(readings: pd.DataFrame) -> pd.DataFrame:
    pairs = list(readings[["model.activation", "model.init"]].itertuples(index=False, name=None))
    return readings.assign(net=pd.Series(pairs, index=readings.index).map(NETS))


def slopes(readings: pd.DataFrame) -> pd.DataFrame:
    """Measured and predicted slopes of the backward signal at initialization, per seed."""
    return figures.backward_slopes(
        named(figures.select(readings, "backward_norm", step="first")), ["net", "model.depth"]
    )


def table(readings: pd.DataFrame) -> pd.DataFrame:
    errors, found = named(figures.outcomes(readings, "test_error")), slopes(readings)
    rows = []
    for (net, depth), part in errors.groupby(["net", "model.depth"], sort=True):
        slope = found[(found["net"] == net) & (found["model.depth"] == depth)]
        rows.append(
            {
                "net": net,
                "depth": depth,
                "slope measured": figures.interval(slope["value"]),
                "slope predicted": f"{round(slope['predicted'].mean(), 4) + 0.0:.4f}",
                "test error, %": figures.interval(100 * part["value"]),
            }
        )
    return pd.DataFrame(rows)


def claims(readings: pd.DataFrame) -> list[Claim]:
    found = slopes(readings)
    deep = found[found["model.depth"] == found["model.depth"].max()]
    errors = named(figures.outcomes(readings, "test_error"))
    errors = errors[errors["model.depth"] == errors["model.depth"].max()]
    deviation = (
        deep.assign(value=(deep["value"] - deep["predicted"]).abs())
        .groupby("seed")["value"]
        .agg(lambda each: each.max(skipna=False))
    )
    return [
        Claim(
            statement="In a 20-layer sigmoid net at torch's default init the gradient shrinks layer by layer.",
            effect="factor per layer towards the input",
            values=np.exp(-deep[deep["net"] == "sigmoid, torch default"]["value"]),
            at_most=0.25,
            log=True,
        ),
        Claim(
            statement="Mean-field theory predicts that rate for all three nets.",
            effect="largest |slope measured - slope predicted|, nepers per layer",
            values=deviation,
            at_most=0.1,
        ),
        Claim(
            statement="Where the gradient lives, the deep net learns; where it has died, it does not.",
            effect="test error, 20 layers, sigmoid at torch's default - relu with He's init, points",
            values=100 * figures.paired(errors, "net", "sigmoid, torch default", "relu, He"),
            at_least=40,
        ),
    ]


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(2, 1, height=2.6)
    signal = figures.select(readings, "backward_norm", step="first")
    signal = named(
        signal[(signal["model.depth"] == signal["model.depth"].max()) & (signal["depth"] < signal["model.depth"])]
    )
    figures.draw(axes[0], signal, "depth", "net", labels=LABELS)
    for _, condition in signal.groupby("net"):
        figures.theory(axes[0], *figures.predicted_backward(condition))
    axes[0].set_title("backward signal at initialization")
    errors = named(figures.outcomes(readings, "test_error"))
    figures.draw(axes[1], errors.assign(value=100 * errors["value"]), "model.depth", "net", labels=LABELS)
    axes[1].set_ylabel("test error, %")
    axes[1].set_xticks(sorted(readings["model.depth"].unique()))
    axes[1].set_title(f"after {readings['train.steps'].max()} updates")
    figures.legend(drawing)
    return drawing
