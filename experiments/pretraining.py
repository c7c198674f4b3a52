"""Pre-training gives a deep sigmoid net a gradient to learn from; relu, and in part Adam, do without.

Top: gradient at initialization, or after pre-training, against the layer, with theory for nets as they were drawn;
validation error against updates, those of pre-training not counted; test error against depth. Bottom: validation error
against all updates; what is lost of each layer's inputs after its pre-training; test error against the learning rate.
Panels a, b, d, e and f are of the deepest net. Where learning rates are not told apart, each net has the one that
validates best.
"""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab import figures, theory
from depthlab.figures import Claim, where

PROBES = ("backward_norm", "reconstruction_error", "validation_error", "test_error")

DEFAULT, XAVIER, ADAM, RELU = "sigmoid, torch's default", "sigmoid, Xavier", "sigmoid, Xavier, Adam", "relu, He"
PRETRAINED, DENOISING = "sigmoid, pre-trained", "sigmoid, pre-trained, denoising"
NETS = [DEFAULT, XAVIER, ADAM, PRETRAINED, DENOISING, RELU]
ENSEMBLES: dict[str, Any] = {
    DEFAULT: {"activation": "sigmoid", "sigma_w": math.sqrt(1 / 3)},
    XAVIER: {"activation": "sigmoid", "sigma_w": 1.0},
    RELU: {"activation": "relu", "sigma_w": math.sqrt(2)},
}
GUESSING = 90
"""Error in percent; a run that diverged does no better."""


def named(readings: pd.DataFrame) -> pd.DataFrame:
    """The nets by what distinguishes them, and whether they have as many updates as pre-training and training."""
    is_sigmoid = readings["model.activation"] == "sigmoid"
    is_pretrained = readings["train.pretraining_steps"] > 0
    cases = [
        (~is_sigmoid, RELU),
        (is_pretrained & (readings["train.corruption"] > 0), DENOISING),
        (is_pretrained, PRETRAINED),
        (readings["train.optimizer"] == "adam", ADAM),
        (readings["model.init"] == "xavier", XAVIER),
    ]
    net = np.select([case for case, _ in cases], [name for _, name in cases], DEFAULT)
    return readings.assign(net=net, longer=readings["train.steps"] > readings["train.steps"].min())


def best(readings: pd.DataFrame) -> pd.DataFrame:
    return figures.tuned(named(readings), "train.lr", ["net", "model.depth", "longer"])


def deepest(rows: pd.DataFrame) -> pd.DataFrame:
    return where(rows, model__depth=rows["model.depth"].max())


def errors(readings: pd.DataFrame) -> pd.DataFrame:
    """Test error in percent after training."""
    rows = figures.outcomes(readings, "test_error")
    return rows.assign(value=(100 * rows["value"]).fillna(GUESSING))


def at_start(readings: pd.DataFrame) -> pd.DataFrame:
    """|dL/dz| of the hidden layers at the first update, which no learning rate has touched yet."""
    rows = figures.select(where(deepest(best(readings)), longer=False), "backward_norm", step=0)
    return rows[rows["depth"] < rows["model.depth"]]


def reconstruction(readings: pd.DataFrame) -> pd.DataFrame:
    """What is lost of each layer's inputs after its pre-training, in the deepest net."""
    rows = figures.select(deepest(best(readings)), "reconstruction_error").sort_values("step")
    return rows.drop_duplicates(["key", "layer"], keep="last")


def predicted(net: str) -> float:
    """d ln|dL/dz| / d layer, from theory, of a net as it was drawn; torch's default biases are too small to matter."""
    return theory.backward_slope(**ENSEMBLES[net])


def table(readings: pd.DataFrame) -> pd.DataFrame:
    rows = []
    tuned = errors(best(readings))
    tuned = tuned.assign(before=tuned["train.pretraining_steps"] * (tuned["model.depth"] - 1))
    for (net, depth, steps), part in tuned.groupby(["net", "model.depth", "train.steps"], sort=True):
        rows.append(
            {
                "net": net,
                "depth": depth,
                "updates before training": part["before"].iloc[0],
                "updates of training": steps,
                "best learning rate": part["train.lr"].iloc[0],
                "test error, %": figures.interval(part["value"]),
            }
        )
    return pd.DataFrame(rows)


def slope_errors(readings: pd.DataFrame) -> pd.Series:
    """Per seed, the largest |slope measured - predicted| of the nets as they were drawn."""
    found = figures.slopes(at_start(readings), ["net"])
    found = found[found["net"].isin(ENSEMBLES)]
    return found.assign(value=(found["value"] - found["net"].map(predicted)).abs()).groupby("seed")["value"].max()


def claims(readings: pd.DataFrame) -> list[Claim]:
    tuned = errors(best(readings))
    found = deepest(tuned)
    depth, shallow, total = found["model.depth"].iloc[0], tuned["model.depth"].min(), found["train.steps"].max()
    slopes = figures.slopes(at_start(readings), ["net"])
    equal, longer = where(found, longer=False), where(found, longer=True)
    reference = where(equal, net=PRETRAINED).set_index("seed")["value"]
    scratch = {
        name: rows[rows["net"].isin([DEFAULT, XAVIER])].groupby("seed")["value"].min()
        for name, rows in (("equal", equal), ("longer", longer))
    }
    lost = where(reconstruction(readings), net=PRETRAINED).groupby("seed")["value"].max()
    error = f"test error of {depth} layers"

    def after(net: str, rows: pd.DataFrame) -> pd.Series:
        return where(rows, net=net).set_index("seed")["value"]

    return [
        Claim(
            statement="Theory says how fast the gradient vanishes in a net as it was drawn.",
            effect="largest |slope measured - predicted| of three nets, nepers per layer",
            values=slope_errors(readings),
            at_most=0.15,
        ),
        Claim(
            statement="Pre-training takes the better part of that away before the first update.",
            effect="slope of the backward signal, pre-trained - Xavier, nepers per layer",
            values=figures.paired(slopes, "net", PRETRAINED, XAVIER),
            at_most=-0.75,
        ),
        Claim(
            statement="Each autoencoder keeps at least half of the variance of its inputs.",
            effect="largest share of variance that is lost, of all layers",
            values=lost.reindex(readings["seed"].unique()),
            at_most=0.5,
        ),
        Claim(
            statement="It makes a deep sigmoid net trainable.",
            effect=f"{error}, equal updates of training, from scratch (the better init) - pre-trained, points",
            values=scratch["equal"] - reference,
            at_least=50,
        ),
        Claim(
            statement="The updates that it takes do not do so when they are updates of training.",
            effect=f"{error}, equal updates in all ({total}), from scratch (the better init) - pre-trained, points",
            values=scratch["longer"] - reference,
            at_least=50,
        ),
        Claim(
            statement="Depth then costs a pre-trained net little.",
            effect=f"test error, pre-trained, {depth} layers - {shallow}, points",
            values=figures.paired(where(tuned, net=PRETRAINED), "model.depth", depth, shallow),
            at_most=5,
        ),
        Claim(
            statement="Denoising is better than plain autoencoders.",
            effect=f"{error}, corruption 0.25 - 0, points",
            values=figures.paired(equal, "net", DENOISING, PRETRAINED),
            at_most=0,
        ),
        Claim(
            statement="A relu net from scratch does about as well with the same updates of training ...",
            effect=f"{error}, relu - pre-trained sigmoid, points",
            values=figures.paired(equal, "net", RELU, PRETRAINED),
            at_most=1,
        ),
        Claim(
            statement="... and better if it is given those of pre-training as well.",
            effect=f"{error}, equal updates in all ({total}), relu - pre-trained sigmoid, points",
            values=after(RELU, longer) - reference,
            at_most=-0.5,
        ),
        Claim(
            statement="Adam, too, makes pre-training unnecessary.",
            effect=f"{error}, equal updates in all ({total}), Adam from scratch - pre-trained, points",
            values=after(ADAM, longer) - reference,
            at_most=1,
        ),
    ]


def draw_errors(axes: Axes, rows: pd.DataFrame, x: str, title: str) -> None:
    figures.draw(axes, rows, x, "net", labels=NETS)
    axes.set(ylabel=f"{rows['probe'].iloc[0].replace('_', ' ')}, %", ylim=(-5, 105), title=title)


def draw_start(axes: Axes, readings: pd.DataFrame) -> None:
    """Theory is anchored at the last hidden layer."""
    rows = at_start(readings)
    rows = rows[rows["net"] != ADAM]  # which changes nothing before the first update
    figures.draw(axes, rows, "depth", "net", labels=NETS)
    layers = np.sort(rows["depth"].unique())
    for net in ENSEMBLES:
        end = figures.interval(where(rows, net=net, depth=layers[-1])["value"], log=True).mean
        figures.theory(axes, layers, end * np.exp(predicted(net) * (layers - layers[-1])))
    axes.set_title("before training")


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(3, 2, height=4.6)
    tuned = best(readings)
    depth = tuned["model.depth"].max()
    curves = deepest(figures.select(tuned, "validation_error"))
    curves = curves.assign(value=100 * curves["value"])
    draw_start(axes[0], readings)
    draw_errors(axes[1], where(curves, longer=False), "step", f"{depth} layers")
    axes[1].set_xlabel("updates of training")
    draw_errors(axes[2], where(errors(tuned), longer=False), "model.depth", "best learning rate")
    phase = curves["train.pretraining_steps"] * (depth - 1)
    in_all = curves.assign(step=curves["step"] + phase)[curves["longer"] | (phase > 0)]
    draw_errors(axes[3], in_all, "step", f"{depth} layers")
    axes[3].set_xlabel("updates in all")
    figures.draw(axes[4], reconstruction(readings), "depth", "net", labels=NETS)
    axes[4].set_title("after pre-training")
    tried = where(deepest(errors(named(readings))), longer=False)
    tried = tried[tried["net"] != ADAM]
    draw_errors(axes[5], tried, "train.lr", "gradient descent")
    figures.log_ticks(axes[5], tried["train.lr"])
    figures.legend(drawing, "top")
    return drawing
