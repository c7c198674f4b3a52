"""Sigmoid and tanh saturate, relus die of large learning rates; a leak has to be large to keep units alive.

a, b: saturated share of each hidden layer against updates. c: slope per layer of the backward signal at initialization
against the size of the weights, with its prediction and the bound that the sigmoid's largest derivative, 1/4, sets.
After training, against the learning rate, in the mean over hidden layers: d: zeros of relu, and its units dead on a
batch and on the whole validation split; e: units of all rectifiers that are inactive on the split; f: test error.
"""

import functools
import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab import figures
from depthlab.figures import Claim, by_seed, paired, where

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
    return figures.errors(where(readings, train__optimizer="adam"))


def gain(saturation: pd.DataFrame, activation: str) -> pd.Series:
    """What training adds to the saturated share of the first layer, per seed."""
    rows = where(saturation, model__activation=activation, train__lr=SMALL, depth=1)
    return paired(rows, "step", rows["step"].max(), 0)


def overstated(readings: pd.DataFrame) -> pd.Series:
    """How much larger relu's dead share is on a batch than on the split, per seed, where that is most."""
    shares = [where(trained(readings, probe), model__activation="relu") for probe in list(SHARES)[1:]]
    batch, split = (rows.set_index(["seed", "train.lr"])["value"] for rows in shares)
    return (batch - split).groupby("seed").max().reindex(readings["seed"].unique())


def table(readings: pd.DataFrame) -> pd.DataFrame:
    found = figures.table(
        errors(readings),
        {"model.activation": "activation", "train.lr": "learning rate"},
        {name: trained(readings, probe) for probe, name in SHARES.items()} | {"test error, %": errors(readings)},
    )
    return found.assign(activation=found["activation"].map(RECTIFIERS))


def claims(readings: pd.DataFrame) -> list[Claim]:
    return [
        *claims_on_signals(slopes(readings)),
        *claims_on_saturation(figures.select(readings, "saturation")),
        *claims_on_dead_units(readings, trained(readings, "validation_inactive_fraction")),
        *claims_on_leaks(readings),
    ]


def claims_on_signals(signal: pd.DataFrame) -> list[Claim]:
    sigmoid = where(signal, model__activation="sigmoid")
    return [
        Claim(
            statement="Mean-field theory predicts the slope of the backward signal of sigmoid and tanh nets.",
            effect="largest |slope measured - slope predicted|, nepers per layer",
            values=figures.largest_gap(signal),
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
            values=by_seed(where(sigmoid, model__sigma_w=8)),
            at_least=0.05,
        ),
    ]


def claims_on_saturation(found: pd.DataFrame) -> list[Claim]:
    hidden, end = found["depth"].max(), found["step"].max()
    between = where(found[found["depth"].between(2, hidden - 1)], train__lr=SMALL, step=end)
    top = where(found, train__lr=HUGE, depth=hidden)
    of_sigmoid = where(top, model__activation="sigmoid")
    return [
        Claim(
            statement="Training saturates the first layer of sigmoid and tanh nets.",
            effect=f"saturated share after - before training, the smaller of the two, learning rate {SMALL}",
            values=pd.concat([gain(found, name) for name in SIGMOIDS], axis=1).min(axis=1, skipna=False),
            at_least=0.3,
        ),
        Claim(
            statement="Between first and last hidden layer tanh saturates, and the sigmoid hardly does.",
            effect=f"saturated share after training, tanh - sigmoid, learning rate {SMALL}",
            values=paired(figures.over_layers(between), "model.activation", "tanh", "sigmoid"),
            at_least=0.1,
        ),
        Claim(
            statement="At a large learning rate the sigmoid's last hidden layer saturates early, and comes out again.",
            effect=f"saturated share, highest - last, learning rate {HUGE}",
            values=of_sigmoid.groupby("seed")["value"].max() - by_seed(where(of_sigmoid, step=end)),
            at_least=0.3,
        ),
        Claim(
            statement="Tanh's does not come out.",
            effect=f"saturated share after training, learning rate {HUGE}",
            values=by_seed(where(top, model__activation="tanh", step=end)),
            at_least=0.9,
        ),
    ]


def claims_on_dead_units(readings: pd.DataFrame, inactive: pd.DataFrame) -> list[Claim]:
    both = pd.concat([trained(readings, "activation_sparsity"), inactive])
    moderate = where(both, model__activation="relu", train__lr=MODERATE)
    return [
        Claim(
            statement="Relu units die of large learning rates.",
            effect=f"dead share on the validation split, learning rate {LARGE} - {MODERATE}",
            values=paired(where(inactive, model__activation="relu"), "train.lr", LARGE, MODERATE),
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
            values=paired(moderate, "probe", "activation_sparsity", "validation_inactive_fraction"),
            at_least=0.4,
        ),
    ]


def claims_on_leaks(readings: pd.DataFrame) -> list[Claim]:
    inactive, weights = (
        where(trained(readings, probe), train__lr=LARGE) for probe in ("validation_inactive_fraction", "weight_norm")
    )
    failed = where(errors(readings), train__lr=LARGE)
    return [
        *(
            Claim(
                statement=f"{REMEDIES[name]} keeps units alive.",
                effect=f"inactive share, relu - {RECTIFIERS[name]}, learning rate {LARGE}",
                values=paired(inactive, "model.activation", "relu", name),
                at_least=0.2,
            )
            for name in ("leaky_relu", "very_leaky_relu")
        ),
        Claim(
            statement="With a leak of 0.01 the weights burst.",
            effect=f"weight norm after training, mean over layers, {RECTIFIERS['leaky_relu']} over relu, "
            f"learning rate {LARGE}",
            values=paired(weights, "model.activation", "leaky_relu", "relu", ratio=True),
            at_least=1.5,
            log=True,
        ),
        *(
            Claim(
                statement=f"{remedy} saves a net from a learning rate that kills its relus.",
                effect=f"test error, relu - {RECTIFIERS[name]}, learning rate {LARGE}, points",
                values=paired(failed, "model.activation", "relu", name),
                at_least=5,
            )
            for name, remedy in REMEDIES.items()
        ),
    ]


def draw_slopes(axes: Axes, signal: pd.DataFrame) -> None:
    """Slope of the backward signal against the size of the weights, its prediction, and the sigmoid's bound."""
    figures.draw(axes, signal, "model.sigma_w", "model.activation", labels=SIGMOIDS)
    for _, line in signal.groupby("model.activation"):
        at = line.groupby("model.sigma_w")[["predicted", "bound"]].mean()
        figures.theory(axes, at.index.to_numpy(), at["predicted"].to_numpy())
    axes.plot(at.index, at["bound"], color="0.5", linewidth=0.9, label="bound, sigmoid")
    axes.set_ylabel("slope of the backward norm\nat initialization, nepers a layer")
    figures.log_ticks(axes, signal["model.sigma_w"])


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(2, 3, height=7.6)
    curves, found = figures.select(readings, "saturation"), errors(readings)
    layers = {depth: f"layer {depth}" for depth in sorted(curves["depth"].unique())}
    for panel, (name, lr) in zip(axes, (("sigmoid", HUGE), ("tanh", SMALL)), strict=False):
        figures.draw(panel, where(curves, model__activation=name, train__lr=lr), "step", "depth", labels=layers)
        panel.set(ylim=(-0.03, 1.03), ylabel="saturated share", title=f"{name}, learning rate {lr}")
    draw_slopes(axes[2], slopes(readings))
    shares = pd.concat([trained(readings, probe) for probe in SHARES], ignore_index=True)
    of_relu = where(shares, model__activation="relu").rename(columns={"probe": "share"})
    figures.draw(axes[3], of_relu.assign(probe="share, relu"), "train.lr", "share", labels=SHARES)
    compare = functools.partial(figures.draw, x="train.lr", by="model.activation", labels=RECTIFIERS)
    compare(axes[4], where(shares, probe="validation_inactive_fraction"))
    compare(axes[5], found, log=True, ylabel="test error, %")
    for panel in axes[3:]:
        figures.log_ticks(panel, found["train.lr"])
    for panel in (axes[0], *axes[2:5]):  # b has the lines of a, f those of e
        figures.legend_above(panel)
    return drawing
