"""Depth pays at a learning rate that suits it; it does so without more linear regions, which are about N^2 / 2.

Top: errors on two spirals of nets with about as many parameters, against depth, each net at the learning rate that
validates best and all at one; the linear regions that they have on the square of inputs, before and after training,
with the mean of wide random nets (theory) and N^2 / 2 for N hidden units; the same for twenty units in one layer or in
two, with the most that one layer can have. Bottom: what three of the nets decide on the plane, at the one learning rate
(first seed), with test points of both classes. Where learning rates are not told apart, each net has its best.
"""

import functools

import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab import data, figures, nets, theory
from depthlab.config import DATASETS, DataConfig
from depthlab.figures import Claim, where

PROBES = ("linear_regions", "decision", "train_error", "test_error", "validation_error")

SHALLOW, MIDDLE, DEEP = 2, 4, 13  # weight layers: one, three and twelve hidden layers
UNITS = 20  # of the two small nets, one layer of 20 and two of 10
RATE = 0.01  # the learning rate for all
SHAPE = ["model.depth", "model.width"]
RATES = {"best": "each at its best learning rate", "same": f"all at learning rate {RATE:g}"}
STATES = {"first": "at initialization", "last": "after training"}
NAMES = RATES | STATES  # so that all of them look different
SHOWN = 500  # test points that are drawn


def counted(readings: pd.DataFrame) -> pd.DataFrame:
    """The runs that count; those whose decisions are drawn are trained a second time for it."""
    return readings[readings["key"].isin(figures.select(readings, "linear_regions")["key"])]


def best(readings: pd.DataFrame) -> pd.DataFrame:
    """Each net at the learning rate that validates best."""
    return figures.tuned(counted(readings), "train.lr", SHAPE)


def units(rows: pd.DataFrame) -> pd.Series:
    """Hidden units of the nets of some rows."""
    return (rows["model.depth"] - 1) * rows["model.width"]


def of_budget(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of nets that have about as many parameters."""
    return rows[units(rows) != UNITS]


def of_units(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of one layer of 20 units and of two of 10."""
    return rows[units(rows) == UNITS]


def errors(readings: pd.DataFrame, rate: str, probe: str = "test_error") -> pd.DataFrame:
    """In percent, a row per net and seed."""
    runs = best(readings) if rate == "best" else where(counted(readings), train__lr=RATE)
    rows = figures.outcomes(runs, probe)
    return rows.assign(value=100 * rows["value"], line=rate)


def regions(readings: pd.DataFrame, state: str) -> pd.DataFrame:
    """Linear regions of the nets at their best learning rates, a row per net and seed."""
    return figures.select(best(readings), "linear_regions", step=state).assign(line=state)


@functools.cache
def load(name: str) -> data.Splits:
    """The points of the plane."""
    return data.load(DataConfig(name=name), torch.device("cpu"))


def half_side(name: str) -> float:
    """Half of the side of the square that all inputs lie in, after normalization: the mean of both coordinates."""
    return float((0.5 / load(name).std).mean())


def expected(rows: pd.DataFrame) -> float:
    """Mean number of linear regions of random nets, wide in theory, of the rows of one net."""
    model = figures.model_of(rows)
    sigma_w, sigma_b = nets.scales(model)
    side = half_side(rows["data.name"].iloc[0])
    return theory.expected_regions([model.width] * (model.depth - 1), half_side=side, sigma_w=sigma_w, sigma_b=sigma_b)


def parameters(rows: pd.DataFrame) -> int:
    """Weights and biases of the net of some rows."""
    facts = DATASETS[rows["data.name"].iloc[0]]
    net = nets.build(figures.model_of(rows), channels=facts.channels, size=facts.size, classes=facts.classes, seed=0)
    return sum(parameter.numel() for parameter in net.parameters())


def table(readings: pd.DataFrame) -> pd.DataFrame:
    counts = {state: regions(readings, state) for state in STATES}
    rows = []
    for _, runs in best(readings).groupby(SHAPE, sort=True):
        depth, width = (int(runs[name].iloc[0]) for name in SHAPE)
        widths, net = [width] * (depth - 1), {"model__depth": depth, "model__width": width}
        row: dict[str, object] = {
            "hidden layers": depth - 1,
            "width": width,
            "parameters": parameters(runs),
            "best learning rate": float(runs["train.lr"].iloc[0]),
        }
        for rate, probe in (("best", "train_error"), ("best", "test_error"), ("same", "test_error")):
            name = f"{probe.replace('_', ' ')}, {RATES[rate]}, %"
            row[name] = figures.interval(where(errors(readings, rate, probe), **net)["value"])
        for state, name in STATES.items():
            row[f"regions {name}"] = figures.interval(where(counts[state], **net)["value"], log=True)
        row["theory, wide random nets"] = expected(runs)
        row["N^2 / 2"] = sum(widths) ** 2 / 2
        row["at most"] = float(theory.most_regions(widths))
        rows.append(row)
    return pd.DataFrame(rows)


def claims(readings: pd.DataFrame) -> list[Claim]:
    start, end = (regions(readings, state) for state in STATES)

    def lead(rows: pd.DataFrame, worse: int, better: int) -> pd.Series:
        return figures.paired(rows, "model.depth", worse, better)

    def ratio(rows: pd.DataFrame, one: int, other: int) -> pd.Series:
        return figures.paired(rows, "model.depth", one, other, ratio=True)

    def growth(depth: int) -> pd.Series:
        both = where(of_budget(pd.concat([start, end])), model__depth=depth)
        return figures.paired(both, "line", "last", "first", ratio=True)

    first = where(of_budget(start), model__depth=SHALLOW)
    two = where(of_units(end), model__depth=3)
    tuned, same = (of_budget(errors(readings, rate)) for rate in ("best", "same"))
    most = theory.most_regions([UNITS])
    return [
        Claim(
            statement="With as many parameters three hidden layers learn more than one, at one learning rate for all.",
            effect=f"test error, 1 hidden layer - 3, learning rate {RATE:g}, points",
            values=lead(same, SHALLOW, MIDDLE),
            at_least=10,
        ),
        Claim(
            statement="They do so at the best learning rate of each as well.",
            effect="test error, 1 hidden layer - 3, points",
            values=lead(tuned, SHALLOW, MIDDLE),
            at_least=5,
        ),
        Claim(
            statement="More depth is not better still: twelve narrow layers do worse than three.",
            effect="test error, 12 hidden layers - 3, points",
            values=lead(tuned, DEEP, MIDDLE),
            at_least=1,
        ),
        Claim(
            statement="Before training a net with one hidden layer has as many regions as theory tells.",
            effect="regions at initialization over their mean in theory",
            values=first.set_index("seed")["value"] / expected(first),
            at_least=0.9,
            at_most=1.1,
            log=True,
        ),
        Claim(
            statement="With as many parameters a deep net has fewer regions before training, not more.",
            effect="regions at initialization, 12 hidden layers over 1",
            values=ratio(of_budget(start), DEEP, SHALLOW),
            at_most=0.5,
            log=True,
        ),
        Claim(
            statement="Training adds regions to the deep net ...",
            effect="regions, after training over at initialization, 12 hidden layers",
            values=growth(DEEP),
            at_least=2,
            log=True,
        ),
        Claim(
            statement="... and none to the shallow one.",
            effect="the same, 1 hidden layer",
            values=growth(SHALLOW),
            at_most=1.1,
            log=True,
        ),
        Claim(
            statement="It is not for more regions that a net does better: trained, the shallow one still has more.",
            effect="regions after training, 1 hidden layer over 3",
            values=ratio(of_budget(end), SHALLOW, MIDDLE),
            at_least=1.5,
            log=True,
        ),
        Claim(
            statement="Before training two layers of ten have about as many regions as one of twenty ...",
            effect="regions at initialization, 10 + 10 units over 20",
            values=ratio(of_units(start), 3, 2),
            at_least=0.7,
            at_most=1.4,
            log=True,
        ),
        Claim(
            statement="... and after it more than one layer of twenty can have.",
            effect=f"regions after training, 10 + 10 units, over {most}",
            values=two.set_index("seed")["value"] / most,
            at_least=1,
            log=True,
        ),
        Claim(
            statement="Two layers of ten learn more than one of twenty, with more parameters.",
            effect="test error, 20 units - 10 + 10 units, points",
            values=lead(of_units(errors(readings, "best")), 2, 3),
            at_least=5,
        ),
    ]


def draw_counts(panel: Axes, rows: pd.DataFrame, *, log: bool) -> None:
    """Regions against depth, with theory and N^2 / 2."""
    figures.draw(panel, rows, "model.depth", "line", labels=NAMES, log=log)
    of_net = [part for _, part in rows.groupby("model.depth", sort=True)]
    depths = [int(part["model.depth"].iloc[0]) for part in of_net]
    figures.theory(panel, depths, [expected(part) for part in of_net])
    law = [units(part).iloc[0] ** 2 / 2 for part in of_net]
    panel.plot(depths, law, color="#777777", linewidth=0.9, linestyle=":", label="$N^2/2$ of $N$ hidden units")
    figures.log_ticks(panel, rows["model.depth"])
    if log:
        low, high = panel.get_ylim()
        ticks = [value for value in (10, 30, 100, 300, 1000, 3000, 10_000) if low < value < high]
        panel.set_yticks(ticks, [str(value) for value in ticks])


def draw_decisions(panel: Axes, readings: pd.DataFrame, depth: int) -> None:
    """The class all over the plane, under test points of both classes."""
    rows = where(figures.select(readings, "decision", step="last"), model__depth=depth)
    rows = where(rows, seed=rows["seed"].min())
    images, labels = load(rows["data.name"].iloc[0]).test[:SHOWN]
    figures.draw_decisions(panel, rows, images.flatten(1).double().numpy(), labels.numpy())
    panel.set_title(f"{depth - 1} x {rows['model.width'].iloc[0]} hidden units")


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(3, 2, height=4.9)
    rows = pd.concat([of_budget(errors(readings, rate)) for rate in RATES])
    figures.draw(axes[0], rows.assign(probe="test error, %"), "model.depth", "line", labels=NAMES)
    figures.log_ticks(axes[0], rows["model.depth"])
    counts = pd.concat([regions(readings, state) for state in STATES])
    draw_counts(axes[1], of_budget(counts), log=True)
    draw_counts(axes[2], of_units(counts), log=False)
    most = theory.most_regions([UNITS])
    axes[2].axhline(most, color="black", linewidth=0.9, linestyle="-.", label="most that one layer of 20 can have")
    axes[0].set_title("same parameters")
    axes[1].set_title("same parameters")
    axes[2].set_title("20 hidden units")
    for panel, depth in zip(axes[3:], (SHALLOW, MIDDLE, DEEP), strict=True):
        draw_decisions(panel, readings, depth)
    figures.legend(drawing, "top")
    return drawing
