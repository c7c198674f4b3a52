"""Skips without normalization explode, and train at a thousand layers once their branches start from 0.

Top: training error against depth, of fully connected and of convolutional nets; and against the learning rate, at one
depth. Bottom: forward and backward signal at initialization, in which dashes are theory for the plain and the
pre-activation net; error on batches of the deepest net during its training.
"""

import math

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab import figures, theory
from depthlab.figures import Claim, by_seed, deepest, paired, where

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

LABELS = list(NETS.values())
FAMILIES = {"mlp": "fully connected", "cnn": "convolutional"}
USUAL_GATE, USUAL_RATE = -2.0, 0.001
GUESSING = 90  # error in percent; a run that diverged does no better


def named(readings: pd.DataFrame) -> pd.DataFrame:
    """The nets by what distinguishes them."""
    closed = readings["model.gate_bias"] < USUAL_GATE
    return figures.named(readings.assign(closed=closed), ["model.skip", "model.branch", "closed"], NETS)


def errors(readings: pd.DataFrame, family: str, probe: str = "train_error") -> pd.DataFrame:
    """Error in percent after training."""
    trained = where(readings, model__family=family)
    return named(figures.errors(trained[trained["train.steps"] > 1], probe, diverged=GUESSING))


def at_usual_rate(readings: pd.DataFrame) -> pd.DataFrame:
    return where(errors(readings, "mlp"), train__lr=USUAL_RATE)


def at_depth_of_rates(readings: pd.DataFrame) -> pd.DataFrame:
    """The runs of the one depth at which several learning rates were tried."""
    depth = readings.loc[readings["train.lr"] != USUAL_RATE, "model.depth"].iloc[0]
    return where(readings, model__family="mlp", model__depth=depth)


def signals(readings: pd.DataFrame, probe: str) -> pd.DataFrame:
    """A probe of the wide nets at initialization, at the layers with which blocks end."""
    rows = figures.hidden(named(figures.select(where(readings, train__steps=1), probe, step="first")))
    return rows[rows["depth"] % 2 == 1]


def slopes(readings: pd.DataFrame, probe: str) -> pd.DataFrame:
    return figures.slopes(signals(readings, probe), ["net"])


def predicted(net: str) -> float:
    """d ln(forward signal) / d layer, from theory; the backward signal has its negative."""
    of_block = theory.residual_variance_map(1.0, activation="relu", sigma_w=math.sqrt(2))
    return {"plain": 0.0, "pre-activation": math.log(of_block) / 4}[net]


def table(readings: pd.DataFrame) -> pd.DataFrame:
    train, test = (
        pd.concat([errors(readings, family, probe).assign(family=FAMILIES[family]) for family in FAMILIES])
        for probe in ("train_error", "test_error")
    )
    condition = {"family": "family", "net": "net", "model.depth": "depth", "train.lr": "learning rate"}
    found = figures.table(train, condition, {"train error, %": train, "test error, %": test})
    return found.sort_values("family", ascending=False, kind="stable", ignore_index=True)


def claims(readings: pd.DataFrame) -> list[Claim]:
    found, convolutional = at_usual_rate(readings), errors(readings, "cnn")
    tuned = errors(figures.tuned(named(at_depth_of_rates(readings)), "train.lr", ["net"]), "mlp")
    return [*claims_on_signals(readings), *claims_on_plain_skips(tuned), *claims_on_depth(found, convolutional)]


def claims_on_signals(readings: pd.DataFrame) -> list[Claim]:
    forward, backward = (slopes(readings, probe) for probe in ("activation_std", "backward_norm"))
    return [
        Claim(
            statement="Without norm the signal doubles its variance in every pre-activation block ...",
            effect="slope of the forward signal, measured - predicted, nepers per layer",
            values=by_seed(where(forward, net="pre-activation")) - predicted("pre-activation"),
            at_least=-0.02,
            at_most=0.02,
        ),
        Claim(
            statement="... and so does the gradient on its way back.",
            effect="slope of the backward signal, measured - predicted, nepers per layer",
            values=by_seed(where(backward, net="pre-activation")) + predicted("pre-activation"),
            at_least=-0.02,
            at_most=0.02,
        ),
    ]


def claims_on_plain_skips(tuned: pd.DataFrame) -> list[Claim]:
    best = f"training error of {tuned['model.depth'].iloc[0]} layers at the best learning rate"
    return [
        Claim(
            statement="No learning rate makes up for it: the pre-activation net does not train where ReZero does.",
            effect=f"{best}, pre-activation - ReZero, points",
            values=paired(tuned, "net", "pre-activation", "ReZero"),
            at_least=30,
        ),
        Claim(
            statement="Nor does the net whose skips end in a relu.",
            effect=f"{best}, residual - ReZero, points",
            values=paired(tuned, "net", "residual", "ReZero"),
            at_least=30,
        ),
        Claim(
            statement="A skip without norm is worse than none.",
            effect=f"{best}, pre-activation - plain, points",
            values=paired(tuned, "net", "pre-activation", "plain"),
            at_least=5,
        ),
    ]


def claims_on_depth(found: pd.DataFrame, convolutional: pd.DataFrame) -> list[Claim]:
    most, least = found["model.depth"].max(), found["model.depth"].min()
    return [
        *(
            Claim(
                statement=f"{net} trains the deepest net about as well as a shallow one.",
                effect=f"training error, {most} layers - {least} layers, points",
                values=paired(where(found, net=net), "model.depth", most, least),
                at_most=10,
            )
            for net in ("ReZero", "Fixup")
        ),
        Claim(
            statement="A highway does so if its gates start closed, and not where they usually start.",
            effect=f"training error of {most} layers, gates at {USUAL_GATE:g} - closed, points",
            values=paired(deepest(found), "net", "highway", "highway, gates closed"),
            at_least=50,
        ),
        *(
            Claim(
                statement=f"Convolutional nets too train deep by {net}, and not with plain skips.",
                effect=f"training error of {convolutional['model.depth'].max()} layers, pre-activation - {net}, points",
                values=paired(deepest(convolutional), "net", "pre-activation", net),
                at_least=30,
            )
            for net in ("ReZero", "Fixup")
        ),
    ]


def draw_errors(axes: Axes, found: pd.DataFrame, x: str, title: str) -> None:
    figures.draw_errors(axes, found, x, "net", labels=LABELS, ylabel="training error, %", title=title)
    figures.log_ticks(axes, found[x])


def draw_signal(axes: Axes, rows: pd.DataFrame, label: str, *, backwards: bool = False) -> None:
    rows = rows[rows.groupby("net")["value"].transform("min") > 0]  # no gradient enters branches that start from 0
    figures.draw(axes, rows, "depth", "net", labels=LABELS, log=True, ylabel=label, title="at initialization")
    for net in ("plain", "pre-activation"):
        rate, anchor = (-predicted(net), None) if backwards else (predicted(net), rows["depth"].min())
        figures.theory_growth(axes, where(rows, net=net), rate, anchor=anchor)


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(3, 2, height=4.6)
    draw_errors(axes[0], at_usual_rate(readings), "model.depth", FAMILIES["mlp"])
    draw_errors(axes[1], errors(readings, "cnn"), "model.depth", FAMILIES["cnn"])
    tried = errors(at_depth_of_rates(readings), "mlp")
    draw_errors(axes[2], tried, "train.lr", f"{tried['model.depth'].iloc[0]} layers")
    draw_signal(axes[3], signals(readings, "activation_std"), "forward signal, standard deviation")
    backward = r"backward norm  $\|\partial L/\partial z_\ell\|$"
    draw_signal(axes[4], signals(readings, "backward_norm"), backward, backwards=True)
    deep = deepest(where(readings, model__family="mlp", train__lr=USUAL_RATE))
    curves = figures.percent(named(figures.select(deep, "batch_error")))
    title = f"{deep['model.depth'].max()} layers"
    figures.draw_errors(axes[5], curves, "step", "net", labels=LABELS, ylabel="error on the batch, %", title=title)
    figures.legend(drawing, "top")
    return drawing
