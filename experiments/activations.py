"""Sigmoid and tanh saturate, relus die of large learning rates; a leak has to be large to keep units alive.

a, b: saturated share of each hidden layer against updates. c: slope per layer of the backward signal at initialization
against the size of the weights, with its prediction and the bound that the sigmoid's largest derivative, 1/4, sets.
After training, against the learning rate, in the mean over hidden layers: d: zeros of relu, and its units dead on a
batch and on the whole validation split; e: units of all rectifiers that are inactive on the split; f: test error.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from depthlab import figures
from depthlab.figures import Claim, where

PROBES = (
    *("backward_norm", "saturation", "weight_norm", "test_error"),
    *("activation_sparsity", "dead_fraction", "validation_inactive_fraction"),
)

SIGMOIDS = {"sigmoid": "sigmoid", "tanh": "tanh"}
RECTIFIERS = {
    **{"relu": "relu", "leaky_relu": "leaky relu, 0.01", "very_leaky_relu": "leaky relu, 0.18"},
    **{"elu": "elu", "selu": "selu", "gelu": "gelu"},
}
REMEDIES = {"leaky_relu": "A leak of 0.01", "very_leaky_relu": "A leak of 0.18", "elu": "Elu"}
SHARES = {
    "activation_sparsity": "zeros",
    "dead_fraction": "dead on a batch",
    "validation_inactive_fraction": "inactive on the split",
}
MODERATE, LARGE = 0.001, 0.03  # learning rates of the rectifiers, by Adam
SMALL, HUGE = 0.1, 0.5  # of sigmoid and tanh, by momentum


def slopes(readings: pd.DataFrame) -> pd.DataFrame:
    """d ln|dL/dz| / d layer at initialization, measured and predicted; and the bound, since chi <= sigma_w^2 / 16."""
    rows = figures.select(readings[readings["model.sigma_w"].notna()], "backward_norm", step="first")
    found = figures.backward_slopes(rows, ["model.activation", "model.init", "model.depth", "model.sigma_w"])
    return found.assign(probe="slope", bound=math.log(4) - np.log(found["model.sigma_w"]))


def trained(readings: pd.DataFrame, probe: str) -> pd.DataFrame:
    """A probe after training, in the mean over the layers that have it."""
    return figures.over_layers(figures.select(readings, probe, step="last"))


def errors(readings: pd.DataFrame) -> pd.DataFrame:
    rows = figures.outcomes(where(readings, train__optimizer="adam"), "test_error")
    return rows.assign(value=100 * rows["value"])


def gain(saturation: pd.DataFrame, activation: str) -> pd.Series:
    """What training adds to the saturated share of the first layer, per seed."""
    rows = where(saturation, model__activation=activation, train__lr=SMALL, depth=1)
    return figures.paired(rows, "step", rows["step"].max(), 0)


def overstated(readings: pd.DataFrame) -> pd.Series:
    """How much larger relu's dead share is on a batch than on the split, per seed, where that is most."""
    shares = [where(trained(readings, probe), model__activation="relu") for probe in list(SHARES)[1:]]
    batch, split = (rows.set_index(["seed", "train.lr"])["value"] for rows in shares)
    return (batch - split).groupby("seed").max().reindex(readings["seed"].unique())


def table(readings: pd.DataFrame) -> pd.DataFrame:
    shares = {name: trained(readings, probe) for probe, name in SHARES.items()}
    rows: list[dict[str, object]] = []
    for (activation, lr), part in errors(readings).groupby(["model.activation", "train.lr"]):
        rows.append({"activation": RECTIFIERS[str(activation)], "learning rate": lr})
        for name, each in shares.items():
            found = where(each, model__activation=activation, train__lr=lr)["value"]
            rows[-1][name] = figures.interval(found) if len(found) else None
        rows[-1]["test error, %"] = figures.interval(part["value"])
    return pd.DataFrame(rows)


def claims(readings: pd.DataFrame) -> list[Claim]:
    signal, saturation = slopes(readings), figures.select(readings, "saturation")
    sigmoid, hidden, end = (
        where(signal, model__activation="sigmoid"),
        saturation["depth"].max(),
        saturation["step"].max(),
    )
    middle = figures.over_layers(
        where(saturation[saturation["depth"].between(2, hidden - 1)], train__lr=SMALL, step=end)
    )
    top = where(saturation, train__lr=HUGE, depth=hidden)
    top_sigmoid = where(top, model__activation="sigmoid")
    zeros, inactive = trained(readings, "activation_sparsity"), trained(readings, "validation_inactive_fraction")
    moderate = where(pd.concat([zeros, inactive]), model__activation="relu", train__lr=MODERATE)
    weights = where(trained(readings, "weight_norm"), train__lr=LARGE)
    large, failed = where(inactive, train__lr=LARGE), where(errors(readings), train__lr=LARGE)
    return [
        Claim(
            statement="Mean-field theory predicts the slope of the backward signal of sigmoid and tanh nets.",
            effect="largest |slope measured - slope predicted|, nepers per layer",
            values=(signal["value"] - signal["predicted"]).abs().groupby(signal["seed"]).max(),
            at_most=0.05,
        ),
        Claim(
            statement="The sigmoid's largest derivative, 1/4, bounds the slope: ln 4 - ln sigma_w is never undercut.",
            effect="smallest slope measured - bound, nepers per layer",
            values=(sigmoid["value"] - sigmoid["bound"]).groupby(sigmoid["seed"]).min(),
            at_least=0,
        ),
        Claim(
            statement="Saturation takes back what large weights give: at twice the size that the bound asks for, the "
            "sigmoid's gradient still vanishes.",
            effect="slope measured at sigma_w = 8, nepers per layer",
            values=where(sigmoid, model__sigma_w=8)["value"],
            at_least=0.05,
        ),
        Claim(
            statement="Training saturates the first layer of sigmoid and tanh nets.",
            effect=f"saturated share after - before training, the smaller of the two, learning rate {SMALL}",
            values=pd.concat([gain(saturation, name) for name in SIGMOIDS], axis=1).min(axis=1, skipna=False),
            at_least=0.3,
        ),
        Claim(
            statement="Between first and last hidden layer tanh saturates, and the sigmoid hardly does.",
            effect=f"saturated share after training, tanh - sigmoid, learning rate {SMALL}",
            values=figures.paired(middle, "model.activation", "tanh", "sigmoid"),
            at_least=0.1,
        ),
        Claim(
            statement="At a large learning rate the sigmoid's last hidden layer saturates early, and comes out again.",
            effect=f"saturated share, highest - last, learning rate {HUGE}",
            values=top_sigmoid.groupby("seed")["value"].max() - where(top_sigmoid, step=end).set_index("seed")["value"],
            at_least=0.3,
        ),
        Claim(
            statement="Tanh's does not come out.",
            effect=f"saturated share after training, learning rate {HUGE}",
            values=where(top, model__activation="tanh", step=end)["value"],
            at_least=0.9,
        ),
        Claim(
            statement="Relu units die of large learning rates.",
            effect=f"dead share on the validation split, learning rate {LARGE} - {MODERATE}",
            values=figures.paired(where(inactive, model__activation="relu"), "train.lr", LARGE, MODERATE),
            at_least=0.3,
        ),
        Claim(
            statement="A batch is too short a window: more units look dead on it than on the validation split.",
            effect="dead share, batch - split, at the learning rate where that is most",
            values=overstated(readings),
            at_least=0.05,
        ),
        Claim(
            statement="A sparse relu net is not a dead one.",
            effect=f"share of zeros - dead share on the split, learning rate {MODERATE}",
            values=figures.paired(moderate, "probe", "activation_sparsity", "validation_inactive_fraction"),
            at_least=0.4,
        ),
        *(
            Claim(
                statement=f"{REMEDIES[name]} keeps units alive.",
                effect=f"inactive share, relu - {RECTIFIERS[name]}, learning rate {LARGE}",
                values=figures.paired(large, "model.activation", "relu", name),
                at_least=0.2,
            )
            for name in ("leaky_relu", "very_leaky_relu")
        ),
        Claim(
            statement="With a leak of 0.01 the weights burst.",
            effect=f"weight norm after training, mean over layers, {RECTIFIERS['leaky_relu']} over relu, "
            f"learning rate {LARGE}",
            values=figures.paired(weights, "model.activation", "leaky_relu", "relu", ratio=True),
            at_least=1.5,
            log=True,
        ),
        *(
            Claim(
                statement=f"{remedy} saves a net from a learning rate that kills its relus.",
                effect=f"test error, relu - {RECTIFIERS[name]}, learning rate {LARGE}, points",
                values=figures.paired(failed, "model.activation", "relu", name),
                at_least=5,
            )
            for name, remedy in REMEDIES.items()
        ),
    ]


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(2, 3, height=7.6)
    curves, signal, found = figures.select(readings, "saturation"), slopes(readings), errors(readings)
    layers = {depth: f"layer {depth}" for depth in sorted(curves["depth"].unique())}
    for panel, (name, lr) in zip(axes, (("sigmoid", HUGE), ("tanh", SMALL)), strict=False):
        figures.draw(panel, where(curves, model__activation=name, train__lr=lr), "step", "depth", labels=layers)
        panel.set(ylim=(-0.03, 1.03), ylabel="saturated share", title=f"{name}, learning rate {lr}")
    figures.draw(axes[2], signal, "model.sigma_w", "model.activation", labels=SIGMOIDS)
    for _, line in signal.groupby("model.activation"):
        at = line.groupby("model.sigma_w")[["predicted", "bound"]].mean()
        figures.theory(axes[2], at.index.to_numpy(), at["predicted"].to_numpy())
    axes[2].plot(at.index, at["bound"], color="0.5", linewidth=0.9, label="bound, sigmoid")
    axes[2].set_ylabel("slope of the backward norm\nat initialization, nepers a layer")
    figures.log_ticks(axes[2], signal["model.sigma_w"])
    shares = pd.concat([trained(readings, probe) for probe in SHARES], ignore_index=True)
    of_relu = where(shares, model__activation="relu").rename(columns={"probe": "share"})
    figures.draw(axes[3], of_relu.assign(probe="share, relu"), "train.lr", "share", labels=SHARES)
    inactive = where(shares, probe="validation_inactive_fraction")
    figures.draw(axes[4], inactive, "train.lr", "model.activation", labels=RECTIFIERS)
    figures.draw(
        axes[5], found.assign(probe="test error, %"), "train.lr", "model.activation", labels=RECTIFIERS, log=True
    )
    for panel in axes[3:]:
        figures.log_ticks(panel, found["train.lr"])
    for panel in (axes[0], *axes[2:5]):  # b has the lines of a, f those of e
        figures.legend_above(panel)
    return drawing
