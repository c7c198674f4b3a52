"""Pre-training gives a deep sigmoid net a gradient to learn from; relu, and in part Adam, do without.

Top: gradient at initialization, or after pre-training, against the layer, with theory for nets as they were drawn;
validation error against updates, those of pre-training not counted; test error against depth. Bottom: validation error
against all updates; what is lost of each layer's inputs after its pre-training; test error against the learning rate.
Panels a, b, d, e and f are of the deepest net. Where learning rates are not told apart, each net has the one that
validates best.
"""

import functools
import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab import figures, theory
from depthlab.figures import Claim, by_seed, deepest, paired, where

PROBES = ("backward_norm", "reconstruction_error", "validation_error", "test_error")

DEFAULT, XAVIER, ADAM, RELU = "sigmoid, torch's default", "sigmoid, Xavier", "sigmoid, Xavier, Adam", "relu, He"
PRETRAINED, DENOISING = "sigmoid, pre-trained", "sigmoid, pre-trained, denoising"
NETS = [DEFAULT, XAVIER, ADAM, PRETRAINED, DENOISING, RELU]
ENSEMBLES: dict[str, Any] = {
    DEFAULT: {"activation": "sigmoid", "sigma_w": math.sqrt(1 / 3)},
    XAVIER: {"activation": "sigmoid", "sigma_w": 1.0},
    RELU: {"activation": "relu", "sigma_w": math.sqrt(2)},
}
GUESSING = 90  # error in percent; a run that diverged does no better


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


def errors(readings: pd.DataFrame) -> pd.DataFrame:
    return figures.errors(readings, diverged=GUESSING)


def at_start(readings: pd.DataFrame) -> pd.DataFrame:
    """|dL/dz| of the hidden layers at the first update, which no learning rate has touched yet."""
    rows = where(deepest(best(readings)), longer=False)
    return figures.hidden(figures.select(rows, "backward_norm", step=0))


def reconstruction(readings: pd.DataFrame) -> pd.DataFrame:
    """What is lost of each layer's inputs after its pre-training, in the deepest net."""
    rows = figures.select(deepest(best(readings)), "reconstruction_error").sort_values("step")
    return rows.drop_duplicates(["key", "layer"], keep="last")


def predicted(net: str) -> float:
    """d ln|dL/dz| / d layer, from theory, of a net as it was drawn; torch's default biases are too small to matter."""
    return theory.backward_slope(**ENSEMBLES[net])


def table(readings: pd.DataFrame) -> pd.DataFrame:
    tuned = errors(best(readings))
    tuned = tuned.assign(before=tuned["train.pretraining_steps"] * (tuned["model.depth"] - 1))
    before = {"net": "net", "model.depth": "depth", "before": "updates before training"}
    return figures.table(
        tuned,
        before | {"train.steps": "updates of training"},
        {"best learning rate": "train.lr", "test error, %": tuned},
    )


def claims(readings: pd.DataFrame) -> list[Claim]:
    tuned = errors(best(readings))
    return [*claims_on_signals(readings), *claims_on_errors(tuned), *claims_on_rivals(tuned)]


def claims_on_signals(readings: pd.DataFrame) -> list[Claim]:
    slopes = figures.slopes(at_start(readings), ["net"])
    drawn = slopes[slopes["net"].isin(ENSEMBLES)]
    lost = where(reconstruction(readings), net=PRETRAINED).groupby("seed")["value"].max()
    return [
        Claim(
            statement="Theory says how fast the gradient vanishes in a net as it was drawn.",
            effect="largest |slope measured - predicted| of three nets, nepers per layer",
            values=figures.largest_gap(drawn.assign(predicted=drawn["net"].map(predicted))),
            at_most=0.15,
        ),
        Claim(
            statement="Pre-training takes the better part of that away before the first update.",
            effect="slope of the backward signal, pre-trained - Xavier, nepers per layer",
            values=paired(slopes, "net", PRETRAINED, XAVIER),
            at_most=-0.75,
        ),
        Claim(
            statement="Each autoencoder keeps at least half of the variance of its inputs.",
            effect="largest share of variance that is lost, of all layers",
            values=lost.reindex(readings["seed"].unique()),
            at_most=0.5,
        ),
    ]


def lengths(tuned: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, str, int]:
    """Errors of the deepest nets with equal updates of training and with equal updates in all; what and how many."""
    found = deepest(tuned)
    what = f"test error of {found['model.depth'].iloc[0]} layers"
    return where(found, longer=False), where(found, longer=True), what, found["train.steps"].max()


def claims_on_errors(tuned: pd.DataFrame) -> list[Claim]:
    equal, longer, error, total = lengths(tuned)
    reference = by_seed(where(equal, net=PRETRAINED))
    depth, shallow = tuned["model.depth"].max(), tuned["model.depth"].min()

    def from_scratch(rows: pd.DataFrame) -> pd.Series:
        return rows[rows["net"].isin([DEFAULT, XAVIER])].groupby("seed")["value"].min()

    return [
        Claim(
            statement="It makes a deep sigmoid net trainable.",
            effect=f"{error}, equal updates of training, from scratch (the better init) - pre-trained, points",
            values=from_scratch(equal) - reference,
            at_least=50,
        ),
        Claim(
            statement="The updates that it takes do not do so when they are updates of training.",
            effect=f"{error}, equal updates in all ({total}), from scratch (the better init) - pre-trained, points",
            values=from_scratch(longer) - reference,
            at_least=50,
        ),
        Claim(
            statement="Depth then costs a pre-trained net little.",
            effect=f"test error, pre-trained, {depth} layers - {shallow}, points",
            values=paired(where(tuned, net=PRETRAINED), "model.depth", depth, shallow),
            at_most=5,
        ),
    ]


def claims_on_rivals(tuned: pd.DataFrame) -> list[Claim]:
    equal, longer, error, total = lengths(tuned)
    reference = by_seed(where(equal, net=PRETRAINED))
    return [
        Claim(
            statement="Denoising is better than plain autoencoders.",
            effect=f"{error}, corruption 0.25 - 0, points",
            values=paired(equal, "net", DENOISING, PRETRAINED),
            at_most=0,
        ),
        Claim(
            statement="A relu net from scratch does about as well with the same updates of training ...",
            effect=f"{error}, relu - pre-trained sigmoid, points",
            values=paired(equal, "net", RELU, PRETRAINED),
            at_most=1,
        ),
        Claim(
            statement="... and better if it is given those of pre-training as well.",
            effect=f"{error}, equal updates in all ({total}), relu - pre-trained sigmoid, points",
            values=by_seed(where(longer, net=RELU)) - reference,
            at_most=-0.5,
        ),
        Claim(
            statement="Adam, too, makes pre-training unnecessary.",
            effect=f"{error}, equal updates in all ({total}), Adam from scratch - pre-trained, points",
            values=by_seed(where(longer, net=ADAM)) - reference,
            at_most=1,
        ),
    ]


def draw_start(axes: Axes, readings: pd.DataFrame) -> None:
    """Without Adam, which changes nothing before the first update."""
    rows = at_start(readings)
    rows = rows[rows["net"] != ADAM]
    figures.draw(axes, rows, "depth", "net", labels=NETS, title="before training")
    for net in ENSEMBLES:
        figures.theory_growth(axes, where(rows, net=net), predicted(net))


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(3, 2, height=4.6)
    tuned = best(readings)
    depth = tuned["model.depth"].max()
    curves = figures.percent(deepest(figures.select(tuned, "validation_error")))
    phase = curves["train.pretraining_steps"] * (depth - 1)
    in_all = curves.assign(step=curves["step"] + phase)[curves["longer"] | (phase > 0)]
    tried = where(deepest(errors(named(readings))), longer=False)
    tried = tried[tried["net"] != ADAM]
    draw = functools.partial(figures.draw_errors, by="net", labels=NETS)
    draw_start(axes[0], readings)
    draw(axes[1], where(curves, longer=False), "step", title=f"{depth} layers", xlabel="updates of training")
    draw(axes[2], where(errors(tuned), longer=False), "model.depth", title="best learning rate")
    draw(axes[3], in_all, "step", title=f"{depth} layers", xlabel="updates in all")
    figures.draw(axes[4], reconstruction(readings), "depth", "net", labels=NETS, title="after pre-training")
    draw(axes[5], tried, "train.lr", title="gradient descent")
    figures.log_ticks(axes[5], tried["train.lr"])
    figures.legend(drawing, "top")
    return drawing
