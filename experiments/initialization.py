"""Deep plain nets train near the line chi = 1 of the (sigma_w^2, sigma_b^2) plane; initializations are points of it.

Top: training error of tanh nets over depth and sigma_w^2 at sigma_b^2 = 0.05, with theory's depth scale, 6 xi; and over
the plane the largest depth that trains, with the line on which xi diverges. Bottom: validation error of equally deep
nets that differ in their initialization alone. Nothing in the theory's lines is fitted.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from depthlab import figures, theory
from depthlab.figures import Claim

PROBES = ("backward_norm", "validation_error", "train_error", "test_error")

INITS = {"torch_default": "torch default", "xavier": "Xavier", "he": "He", "orthogonal": "orthogonal", "lsuv": "LSUV"}
W2, B2 = r"$\sigma_w^2$", r"$\sigma_b^2$"
SHOWN = 0.05
"""The sigma_b^2 of the first panel."""
GUESSING = 90
"""Error in percent; a run that diverged does no better."""


def errors(readings: pd.DataFrame, probe: str = "train_error") -> pd.DataFrame:
    """Error of every run at the end, in percent, with the squares that span the plane."""
    rows = figures.outcomes(readings, probe)
    squares = {W2: (rows["model.sigma_w"] ** 2).round(3), B2: (rows["model.sigma_b"] ** 2).round(3)}
    return rows.assign(**squares, value=(100 * rows["value"]).fillna(GUESSING))


def plane(readings: pd.DataFrame) -> pd.DataFrame:
    found = errors(readings)
    return found[found["model.init"] == "gaussian"]


def named(readings: pd.DataFrame) -> pd.DataFrame:
    return readings[readings["model.init"].isin(list(INITS))]


def depths(readings: pd.DataFrame) -> pd.DataFrame:
    """Per point of the plane and seed: the deepest net with less than half the errors of guessing, and 6 xi."""
    keys = ["model.sigma_w", "model.sigma_b", W2, B2]
    return figures.trainable_depths(plane(readings), keys, below=GUESSING / 2)


def slopes(readings: pd.DataFrame) -> pd.DataFrame:
    rows = named(figures.select(readings, "backward_norm", step="first"))
    return figures.backward_slopes(rows, ["model.activation", "model.init"])


def beyond(over: pd.DataFrame) -> pd.Series:
    """Error of nets deeper than 6 xi less that of nets of the same depth that are not, per seed; a mean over depths."""
    side = over.assign(beyond=over["model.depth"] > over["predicted"])
    table = side.pivot_table(index=["seed", "model.depth"], columns="beyond", values="value")
    return (table[True] - table[False]).groupby("seed").mean()


def of(rows: pd.DataFrame, activation: str, *inits: str) -> pd.DataFrame:
    return rows[(rows["model.activation"] == activation) & rows["model.init"].isin(inits)]


def worst_gap(growth: pd.DataFrame, *activations: str) -> pd.Series:
    """The largest deviation from theory among nets of these activations, per seed."""
    rows = growth[growth["model.activation"].isin(activations)]
    gap = (rows["value"] - rows["predicted"]).abs().groupby(rows["seed"])
    return gap.agg(lambda each: each.max(skipna=False))


def table(readings: pd.DataFrame) -> pd.DataFrame:
    ended = {probe: errors(readings, probe) for probe in ("train_error", "test_error")}
    rows = []
    for (activation, init), part in slopes(readings).groupby(["model.activation", "model.init"], sort=True):
        row = {
            "activation": activation,
            "init": INITS[str(init)],
            "slope measured": figures.interval(part["value"]),
            "slope predicted": f"{round(part['predicted'].mean(), 4) + 0.0:.4f}",  # + 0.0: -0 may come of rounding
        }
        for probe, runs in ended.items():
            row[f"{probe.replace('_', ' ')}, %"] = figures.interval(of(runs, str(activation), str(init))["value"])
        rows.append(row)
    return pd.DataFrame(rows)


def claims(readings: pd.DataFrame) -> list[Claim]:
    scale, growth, trained = depths(readings), slopes(readings), named(errors(readings))
    over = plane(readings).merge(scale.drop(columns="value"), on=["model.sigma_w", "model.sigma_b", W2, B2, "seed"])
    deep = over[(over["model.depth"] == sorted(over["model.depth"].unique())[-2]) & (over[B2] == SHOWN)]
    edge = deep.loc[deep["predicted"].idxmax(), W2]
    at = f"training error of {deep['model.depth'].max()} layers, sigma_b^2 = {SHOWN}: sigma_w^2 ="
    layers = f"training error of {trained['model.depth'].max()} layers"
    return [
        Claim(
            statement="The depth scale of theory ranks the points of the plane by how deep nets train there.",
            effect="Spearman's rank correlation between the largest depth that trains and 6 xi",
            values=[part["value"].rank().corr(part["predicted"].rank()) for _, part in scale.groupby("seed")],
            at_least=0.8,
        ),
        Claim(
            statement="A net deeper than 6 xi does not train where a net of equal depth below 6 xi does.",
            effect="training error, mean over the plane and over depths: beyond 6 xi - within, points",
            values=beyond(over),
            at_least=30,
        ),
        Claim(
            statement="At the edge of chaos a deep net trains that does not in the ordered phase ...",
            effect=f"{at} {deep[W2].min()} - {edge}, points",
            values=figures.paired(deep, W2, deep[W2].min(), edge),
            at_least=30,
        ),
        Claim(
            statement="... nor in the chaotic phase.",
            effect=f"{at} {deep[W2].max()} - {edge}, points",
            values=figures.paired(deep, W2, deep[W2].max(), edge),
            at_least=30,
        ),
        Claim(
            statement="Theory predicts the growth of the backward signal of relu and tanh nets, LSUV's included.",
            effect="largest |slope measured - slope predicted| of ten nets, nepers per layer",
            values=worst_gap(growth, "relu", "tanh"),
            at_most=0.05,
        ),
        Claim(
            statement="It does so for gelu as well.",
            effect="the same of five nets",
            values=worst_gap(growth, "gelu"),
            at_most=0.05,
        ),
        Claim(
            statement="With He's gain a deep relu net trains that does not with Xavier's.",
            effect=f"{layers}, relu, Xavier - He, points",
            values=figures.paired(of(trained, "relu", "xavier", "he"), "model.init", "xavier", "he"),
            at_least=30,
        ),
        Claim(
            statement="Orthogonal weights train a deep tanh net better than Gaussian ones of the same variance.",
            effect=f"{layers}, tanh, Xavier - orthogonal, points",
            values=figures.paired(of(trained, "tanh", "xavier", "orthogonal"), "model.init", "xavier", "orthogonal"),
            at_least=0,
        ),
        Claim(
            statement="Where no formula gives the gain data do: with LSUV a deep gelu net trains, with Xavier not.",
            effect=f"{layers}, gelu, Xavier - LSUV, points",
            values=figures.paired(of(trained, "gelu", "xavier", "lsuv"), "model.init", "xavier", "lsuv"),
            at_least=30,
        ),
        Claim(
            statement="For relu, LSUV finds He's gain.",
            effect="slope of the backward signal, LSUV - He, nepers per layer",
            values=figures.paired(of(growth, "relu", "lsuv", "he"), "model.init", "lsuv", "he"),
            at_least=-0.05,
            at_most=0.05,
        ),
        Claim(
            statement="Unit variance is not the edge of chaos: LSUV makes a tanh net's gradient grow backwards.",
            effect="slope of the backward signal, nepers per layer",
            values=of(growth, "tanh", "lsuv")["value"],
            at_most=-0.05,
        ),
    ]


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(2, 2, height=5.4)
    shown = plane(readings)
    shown = shown[shown[B2] == SHOWN]
    figures.draw_heat(axes[0], shown, W2, "model.depth", label="training error, %", limits=(0, GUESSING), log_y=True)
    w2 = np.linspace(*axes[0].get_xlim(), 200)
    six = [theory.trainable_depth(activation="tanh", sigma_w=np.sqrt(each), sigma_b=np.sqrt(SHOWN)) for each in w2]
    figures.theory_over(axes[0], w2, six, label=r"$6\xi$")
    axes[0].set_title(rf"tanh, {B2} = {SHOWN}")
    tried = sorted(shown["model.depth"].unique())
    figures.draw_heat(axes[1], depths(readings), W2, B2, label="largest depth that trains", log=True, ticks=tried)
    b2 = np.linspace(0, axes[1].get_ylim()[1] ** 0.5) ** 2
    critical = [theory.critical_sigma_w(activation="tanh", sigma_b=np.sqrt(each)) ** 2 for each in b2]
    figures.theory_over(axes[1], critical, b2, label=r"$\chi = 1$")
    axes[1].set_title("tanh")
    curves = named(figures.select(readings, "validation_error"))
    curves = curves.assign(value=100 * curves["value"])
    for panel, activation in zip(axes[2:], ("relu", "gelu"), strict=True):
        figures.draw(panel, of(curves, activation, *INITS), "step", "model.init", labels=INITS)
        panel.set(
            ylabel="validation error, %", ylim=(0, 100), title=f"{activation}, {curves['model.depth'].max()} layers"
        )
    figures.legend(drawing, "top")
    return drawing
