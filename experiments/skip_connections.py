"""Skips without normalization explode, and train at a thousand layers once their branches start from 0.

Top: training error against depth, of fully connected and of convolutional nets; and against the learning rate, at one
depth. Bottom: forward and backward signal at initialization, in which dashes are theory for the plain and the
pre-activation net; error on batches of the deepest net during its training.
"""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab import figures, theory
from depthlab.figures import Claim, where

PROBES = ("activation_std", "backward_norm", "batch_error", "validation_error", "train_error", "test_error")

NETS = {
    ("none", "standard", False): "plain",
    ("residual", "standard", False): "residual",
    ("preactivation", "standard", False): "pre-activation",
    ("highway", "standard", False): "highway",
    ("highway", "standard", True): "highway, gates closed",
    ("residual", "rezero", False): "ReZero",
    ("residual", "fixup", False): "Fixup",
}
"""By skip, branch, and whether gates start below where they usually do."""

USUAL_GATE, USUAL_RATE = -2.0, 0.001
GUESSING = 90
"""Error in percent; a run that diverged does no better."""


def named(readings: pd.DataFrame) -> pd.DataFrame:
    """The nets by what distinguishes them."""
    closed = readings["model.gate_bias"] < USUAL_GATE
    settings = zip(readings["model.skip"], readings["model.branch"], closed, strict=True)
    return readings.assign(net=[NETS[each] for each in settings])


def errors(readings: pd.DataFrame, family: str, probe: str = "train_error") -> pd.DataFrame:
    """Error in percent after training."""
    trained = where(readings, model__family=family)
    rows = named(figures.outcomes(trained[trained["train.steps"] > 1], probe))
    return rows.assign(value=(100 * rows["value"]).fillna(GUESSING))


def at_depth_of_rates(readings: pd.DataFrame) -> pd.DataFrame:
    """The runs of the one depth at which several learning rates were tried."""
    depth = readings.loc[readings["train.lr"] != USUAL_RATE, "model.depth"].iloc[0]
    return where(readings, model__family="mlp", model__depth=depth)


def signals(readings: pd.DataFrame, probe: str) -> pd.DataFrame:
    """A probe of the wide nets at initialization, at the layers with which blocks end."""
    rows = named(figures.select(where(readings, train__steps=1), probe, step="first"))
    return rows[(rows["depth"] % 2 == 1) & (rows["depth"] < rows["model.depth"])]


def slopes(readings: pd.DataFrame, probe: str) -> pd.DataFrame:
    return figures.slopes(signals(readings, probe), ["net"])


def predicted(net: str) -> float:
    """d ln(forward signal) / d layer, from theory; the backward signal has its negative."""
    of_block = theory.residual_variance_map(1.0, activation="relu", sigma_w=math.sqrt(2))
    return {"plain": 0.0, "pre-activation": math.log(of_block) / 4}[net]


def table(readings: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for family, label in (("mlp", "fully connected"), ("cnn", "convolutional")):
        tests = errors(readings, family, "test_error")
        for (net, depth, rate), part in errors(readings, family).groupby(["net", "model.depth", "train.lr"]):
            condition = {"family": label, "net": net, "depth": depth, "learning rate": rate}
            test = figures.interval(tests.merge(part[["key"]], on="key")["value"])
            rows.append(condition | {"train error, %": figures.interval(part["value"]), "test error, %": test})
    return pd.DataFrame(rows)


def cost_of_depth(found: pd.DataFrame, net: str) -> pd.Series:
    """Training error, the deepest net - the shallowest, in points, per seed."""
    depths = found["model.depth"]
    return figures.paired(where(found, net=net), "model.depth", depths.max(), depths.min())


def claims(readings: pd.DataFrame) -> list[Claim]:
    found = where(errors(readings, "mlp"), train__lr=USUAL_RATE)
    convolutional = errors(readings, "cnn")
    deepest, deepest_cnn = (where(each, model__depth=each["model.depth"].max()) for each in (found, convolutional))
    rates = at_depth_of_rates(readings)
    tuned = errors(figures.tuned(named(rates), "train.lr", ["net"]), "mlp")
    depth, depth_cnn, most = (each["model.depth"].iloc[0] for each in (tuned, deepest_cnn, deepest))
    forward, backward = (slopes(readings, probe) for probe in ("activation_std", "backward_norm"))
    best = f"training error of {depth} layers at the best learning rate"
    ends = f"{most} layers - {found['model.depth'].min()} layers"
    return [
        Claim(
            statement="Without norm the signal doubles its variance in every pre-activation block ...",
            effect="slope of the forward signal, measured - predicted, nepers per layer",
            values=where(forward, net="pre-activation")["value"] - predicted("pre-activation"),
            at_least=-0.02,
            at_most=0.02,
        ),
        Claim(
            statement="... and so does the gradient on its way back.",
            effect="slope of the backward signal, measured - predicted, nepers per layer",
            values=where(backward, net="pre-activation")["value"] + predicted("pre-activation"),
            at_least=-0.02,
            at_most=0.02,
        ),
        Claim(
            statement="No learning rate makes up for it: the pre-activation net does not train where ReZero does.",
            effect=f"{best}, pre-activation - ReZero, points",
            values=figures.paired(tuned, "net", "pre-activation", "ReZero"),
            at_least=30,
        ),
        Claim(
            statement="Nor does the net whose skips end in a relu.",
            effect=f"{best}, residual - ReZero, points",
            values=figures.paired(tuned, "net", "residual", "ReZero"),
            at_least=30,
        ),
        Claim(
            statement="A skip without norm is worse than none.",
            effect=f"{best}, pre-activation - plain, points",
            values=figures.paired(tuned, "net", "pre-activation", "plain"),
            at_least=5,
        ),
        *(
            Claim(
                statement=f"{net} trains the deepest net about as well as a shallow one.",
                effect=f"training error, {ends}, points",
                values=cost_of_depth(found, net),
                at_most=10,
            )
            for net in ("ReZero", "Fixup")
        ),
        Claim(
            statement="A highway does so if its gates start closed, and not where they usually start.",
            effect=f"training error of {most} layers, gates at {USUAL_GATE:g} - closed, points",
            values=figures.paired(deepest, "net", "highway", "highway, gates closed"),
            at_least=50,
        ),
        *(
            Claim(
                statement=f"Convolutional nets too train deep by {net}, and not with plain skips.",
                effect=f"training error of {depth_cnn} layers, pre-activation - {net}, points",
                values=figures.paired(deepest_cnn, "net", "pre-activation", net),
                at_least=30,
            )
            for net in ("ReZero", "Fixup")
        ),
    ]


def draw_errors(axes: Axes, found: pd.DataFrame, x: str, title: str) -> None:
    figures.draw(axes, found, x, "net", labels=list(NETS.values()))
    figures.log_ticks(axes, found[x])
    axes.set(ylabel="training error, %", ylim=(-5, 105), title=title)


def draw_signal(axes: Axes, readings: pd.DataFrame, probe: str, label: str, *, forwards: bool) -> None:
    rows = signals(readings, probe)
    rows = rows[rows.groupby("net")["value"].transform("min") > 0]  # no gradient enters branches that start from 0
    figures.draw(axes, rows, "depth", "net", labels=list(NETS.values()), log=True)
    layers = np.sort(rows["depth"].unique())
    anchor = layers[0] if forwards else layers[-1]
    for net in ("plain", "pre-activation"):
        start = figures.interval(where(rows, net=net, depth=anchor)["value"], log=True).mean
        growth = predicted(net) * (layers - anchor) * (1 if forwards else -1)
        figures.theory(axes, layers, start * np.exp(growth))
    axes.set(ylabel=label, title="at initialization")


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(3, 2, height=4.6)
    draw_errors(axes[0], where(errors(readings, "mlp"), train__lr=USUAL_RATE), "model.depth", "fully connected")
    draw_errors(axes[1], errors(readings, "cnn"), "model.depth", "convolutional")
    tried = errors(at_depth_of_rates(readings), "mlp")
    draw_errors(axes[2], tried, "train.lr", f"{tried['model.depth'].iloc[0]} layers")
    draw_signal(axes[3], readings, "activation_std", "forward signal, standard deviation", forwards=True)
    draw_signal(axes[4], readings, "backward_norm", r"backward norm  $\|\partial L/\partial z_\ell\|$", forwards=False)
    usual = where(readings, model__family="mlp", train__lr=USUAL_RATE)
    deepest = usual["model.depth"].max()
    curves = named(figures.select(where(usual, model__depth=deepest), "batch_error"))
    figures.draw(axes[5], curves.assign(value=100 * curves["value"]), "step", "net", labels=list(NETS.values()))
    axes[5].set(ylabel="error on the batch, %", ylim=(-5, 105), title=f"{deepest} layers")
    figures.legend(drawing, "top")
    return drawing
