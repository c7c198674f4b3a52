"""Deep plain nets train near the line chi = 1 of the (sigma_w^2, sigma_b^2) plane; initializations are points of it.

Top: training error of tanh nets over depth and sigma_w^2 at sigma_b^2 = 0.05, with theory's depth scale, 6 xi; and over
the plane the largest depth that trains, with the line on which xi diverges. Bottom: validation error of equally deep
nets that differ in their initialization alone. Nothing in the theory's lines is fitted.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab import figures, theory
from depthlab.figures import Claim, by_seed, paired, where

PROBES = ("backward_norm", "validation_error", "train_error", "test_error")

INITS = {"torch_default": "torch default", "xavier": "Xavier", "he": "He", "orthogonal": "orthogonal", "lsuv": "LSUV"}
W2, B2 = r"$\sigma_w^2$", r"$\sigma_b^2$"
SHOWN = 0.05  # the sigma_b^2 of the first panel
GUESSING = 90  # error in percent; a run that diverged does no better


def errors(readings: pd.DataFrame, probe: str = "train_error") -> pd.DataFrame:
    """Error of every run at the end, in percent, with the squares that span the plane."""
    rows = figures.errors(readings, probe, diverged=GUESSING)
    return rows.assign(**{W2: (rows["model.sigma_w"] ** 2).round(3), B2: (rows["model.sigma_b"] ** 2).round(3)})


def plane(readings: pd.DataFrame) -> pd.DataFrame:
    return where(errors(readings), model__init="gaussian")


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
    return rows[(rows["model.activation"] == activation) & rows["model.init"].isin(inits or INITS)]


def table(readings: pd.DataFrame) -> pd.DataFrame:
    growth = slopes(readings)
    found = figures.table(
        growth,
        {"model.activation": "activation", "model.init": "init"},
        {
            "slope measured": growth,
            "slope predicted": figures.predicted_text,
            "train error, %": named(errors(readings, "train_error")),
            "test error, %": named(errors(readings, "test_error")),
        },
    )
    return found.assign(init=found["init"].map(INITS))


def claims(readings: pd.DataFrame) -> list[Claim]:
    growth = slopes(readings)
    inits = claims_on_inits(growth, named(errors(readings)))
    return [*claims_on_the_plane(readings), *inits, *claims_on_lsuv(growth)]


def claims_on_the_plane(readings: pd.DataFrame) -> list[Claim]:
    scale, found = depths(readings), plane(readings)
    over = found.merge(scale.drop(columns="value"), on=["model.sigma_w", "model.sigma_b", W2, B2, "seed"])
    depth = sorted(over["model.depth"].unique())[-2]
    deep = where(over, model__depth=depth)
    deep = deep[deep[B2] == SHOWN]
    low, edge, high = deep[W2].min(), deep.sort_values("predicted")[W2].iloc[-1], deep[W2].max()
    at = f"training error of {depth} layers, sigma_b^2 = {SHOWN}: sigma_w^2 ="
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
            effect=f"{at} {low} - {edge}, points",
            values=paired(deep, W2, low, edge),
            at_least=30,
        ),
        Claim(
            statement="... nor in the chaotic phase.",
            effect=f"{at} {high} - {edge}, points",
            values=paired(deep, W2, high, edge),
            at_least=30,
        ),
    ]


def claims_on_inits(growth: pd.DataFrame, trained: pd.DataFrame) -> list[Claim]:
    layers = f"training error of {trained['model.depth'].max()} layers"
    return [
        Claim(
            statement="Theory predicts the growth of the backward signal of relu and tanh nets, LSUV's included.",
            effect="largest |slope measured - slope predicted| of ten nets, nepers per layer",
            values=figures.largest_gap(growth[growth["model.activation"] != "gelu"]),
            at_most=0.05,
        ),
        Claim(
            statement="It does so for gelu as well.",
            effect="the same of five nets",
            values=figures.largest_gap(of(growth, "gelu")),
            at_most=0.05,
        ),
        Claim(
            statement="With He's gain a deep relu net trains that does not with Xavier's.",
            effect=f"{layers}, relu, Xavier - He, points",
            values=paired(of(trained, "relu", "xavier", "he"), "model.init", "xavier", "he"),
            at_least=30,
        ),
        Claim(
            statement="Orthogonal weights train a deep tanh net better than Gaussian ones of the same variance.",
            effect=f"{layers}, tanh, Xavier - orthogonal, points",
            values=paired(of(trained, "tanh", "xavier", "orthogonal"), "model.init", "xavier", "orthogonal"),
            at_least=0,
        ),
        Claim(
            statement="Where no formula gives the gain data do: with LSUV a deep gelu net trains, with Xavier not.",
            effect=f"{layers}, gelu, Xavier - LSUV, points",
            values=paired(of(trained, "gelu", "xavier", "lsuv"), "model.init", "xavier", "lsuv"),
            at_least=30,
        ),
    ]


def claims_on_lsuv(growth: pd.DataFrame) -> list[Claim]:
    return [
        Claim(
            statement="For relu, LSUV finds He's gain.",
            effect="slope of the backward signal, LSUV - He, nepers per layer",
            values=paired(of(growth, "relu", "lsuv", "he"), "model.init", "lsuv", "he"),
            at_least=-0.05,
            at_most=0.05,
        ),
        Claim(
            statement="Unit variance is not the edge of chaos: LSUV makes a tanh net's gradient grow backwards.",
            effect="slope of the backward signal, nepers per layer",
            values=by_seed(of(growth, "tanh", "lsuv")),
            at_most=-0.05,
        ),
    ]


def draw_plane(trained: Axes, deepest: Axes, readings: pd.DataFrame) -> None:
    """Training error over depth, and the largest depth that trains over the plane, with theory's lines."""
    shown = plane(readings)
    shown = shown[shown[B2] == SHOWN]
    figures.draw_heat(trained, shown, W2, "model.depth", label="training error, %", limits=(0, GUESSING), log_y=True)
    w2 = np.linspace(*trained.get_xlim(), 200)
    six = [theory.trainable_depth(activation="tanh", sigma_w=np.sqrt(each), sigma_b=np.sqrt(SHOWN)) for each in w2]
    figures.theory_over(trained, w2, six, label=r"$6\xi$")
    trained.set_title(rf"tanh, {B2} = {SHOWN}")
    tried = sorted(shown["model.depth"].unique())
    figures.draw_heat(deepest, depths(readings), W2, B2, label="largest depth that trains", log=True, ticks=tried)
    b2 = np.linspace(0, deepest.get_ylim()[1] ** 0.5) ** 2
    critical = [theory.critical_sigma_w(activation="tanh", sigma_b=np.sqrt(each)) ** 2 for each in b2]
    figures.theory_over(deepest, critical, b2, label=r"$\chi = 1$")
    deepest.set_title("tanh")


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(2, 2, height=5.4)
    draw_plane(axes[0], axes[1], readings)
    curves = figures.percent(named(figures.select(readings, "validation_error")))
    for panel, activation in zip(axes[2:], ("relu", "gelu"), strict=True):
        title = f"{activation}, {curves['model.depth'].max()} layers"
        rows = of(curves, activation)
        figures.draw_errors(panel, rows, "step", "model.init", labels=INITS, ylim=(0, 100), title=title)
    figures.legend(drawing, "top")
    return drawing
