"""Depth pays at a learning rate that suits it; it does so without more linear regions, which are about N^2 / 2.

Top: errors on two spirals of nets with about as many parameters, against depth, each net at the learning rate that
validates best and all at one; the linear regions that they have on the square of inputs, before and after training,
with the mean of wide random nets (theory) and N^2 / 2 for N hidden units; the same for twenty units in one layer or in
two, with the most that one layer can have. Bottom: what three of the nets decide on the plane, at the one learning rate
(first seed), with test points of both classes. Where learning rates are not told apart, each net has its best.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab import figures, theory
from depthlab.figures import Claim, by_seed, paired, where

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


def of_budget(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of nets that have about as many parameters."""
    return rows[(rows["model.depth"] - 1) * rows["model.width"] != UNITS]


def of_units(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of one layer of 20 units and of two of 10."""
    return rows[(rows["model.depth"] - 1) * rows["model.width"] == UNITS]


def errors(readings: pd.DataFrame, rate: str, probe: str = "test_error") -> pd.DataFrame:
    """In percent, a row per net and seed."""
    runs = best(readings) if rate == "best" else where(counted(readings), train__lr=RATE)
    return figures.errors(runs, probe).assign(line=rate)


def regions(readings: pd.DataFrame, state: str) -> pd.DataFrame:
    """Linear regions of the nets at their best learning rates, a row per net and seed."""
    return figures.select(best(readings), "linear_regions", step=state).assign(line=state)


def law(rows: pd.DataFrame) -> float:
    """N^2 / 2 for the N hidden units of the net of some rows."""
    return sum(figures.hidden_widths(rows)) ** 2 / 2


def table(readings: pd.DataFrame) -> pd.DataFrame:
    shown = (("best", "train_error"), ("best", "test_error"), ("same", "test_error"))
    counts = {state: regions(readings, state) for state in STATES}
    found = figures.table(
        best(readings),
        {"model.depth": "hidden layers", "model.width": "width"},
        {
            "parameters": figures.parameters,
            "best learning rate": "train.lr",
            **{f"{each.replace('_', ' ')}, {RATES[rate]}, %": errors(readings, rate, each) for rate, each in shown},
            **{f"regions {name}": figures.intervals(counts[each], SHAPE, log=True) for each, name in STATES.items()},
            "theory, wide random nets": figures.predicted_regions,
            "N^2 / 2": law,
            "at most": lambda part: float(theory.most_regions(figures.hidden_widths(part))),
        },
    )
    return found.assign(**{"hidden layers": found["hidden layers"] - 1})


def claims(readings: pd.DataFrame) -> list[Claim]:
    at_start, trained = (regions(readings, state) for state in STATES)
    tuned, same = (errors(readings, rate) for rate in RATES)
    return [
        *claims_on_errors(of_budget(tuned), of_budget(same)),
        *claims_on_regions(of_budget(at_start), of_budget(trained)),
        *claims_on_units(of_units(at_start), of_units(trained), of_units(tuned)),
    ]


def claims_on_errors(tuned: pd.DataFrame, same: pd.DataFrame) -> list[Claim]:
    return [
        Claim(
            statement="With as many parameters three hidden layers learn more than one, at one learning rate for all.",
            effect=f"test error, 1 hidden layer - 3, learning rate {RATE:g}, points",
            values=paired(same, "model.depth", SHALLOW, MIDDLE),
            at_least=10,
        ),
        Claim(
            statement="They do so at the best learning rate of each as well.",
            effect="test error, 1 hidden layer - 3, points",
            values=paired(tuned, "model.depth", SHALLOW, MIDDLE),
            at_least=5,
        ),
        Claim(
            statement="More depth is not better still: twelve narrow layers do worse than three.",
            effect="test error, 12 hidden layers - 3, points",
            values=paired(tuned, "model.depth", DEEP, MIDDLE),
            at_least=1,
        ),
    ]


def claims_on_regions(start: pd.DataFrame, end: pd.DataFrame) -> list[Claim]:
    first = where(start, model__depth=SHALLOW)
    shallow, deep = (by_seed(where(end, model__depth=each)) for each in (SHALLOW, DEEP))
    return [
        Claim(
            statement="Before training a net with one hidden layer has as many regions as theory tells.",
            effect="regions at initialization over their mean in theory",
            values=by_seed(first) / figures.predicted_regions(first),
            at_least=0.9,
            at_most=1.1,
            log=True,
        ),
        Claim(
            statement="With as many parameters a deep net has fewer regions before training, not more.",
            effect="regions at initialization, 12 hidden layers over 1",
            values=paired(start, "model.depth", DEEP, SHALLOW, ratio=True),
            at_most=0.5,
            log=True,
        ),
        Claim(
            statement="Training adds regions to the deep net ...",
            effect="regions, after training over at initialization, 12 hidden layers",
            values=deep / by_seed(where(start, model__depth=DEEP)),
            at_least=2,
            log=True,
        ),
        Claim(
            statement="... and none to the shallow one.",
            effect="the same, 1 hidden layer",
            values=shallow / by_seed(first),
            at_most=1.1,
            log=True,
        ),
        Claim(
            statement="It is not for more regions that a net does better: trained, the shallow one still has more.",
            effect="regions after training, 1 hidden layer over 3",
            values=paired(end, "model.depth", SHALLOW, MIDDLE, ratio=True),
            at_least=1.5,
            log=True,
        ),
    ]


def claims_on_units(start: pd.DataFrame, end: pd.DataFrame, tuned: pd.DataFrame) -> list[Claim]:
    most = theory.most_regions([UNITS])
    return [
        Claim(
            statement="Before training two layers of ten have about as many regions as one of twenty ...",
            effect="regions at initialization, 10 + 10 units over 20",
            values=paired(start, "model.depth", 3, 2, ratio=True),
            at_least=0.7,
            at_most=1.4,
            log=True,
        ),
        Claim(
            statement="... and after it more than one layer of twenty can have.",
            effect=f"regions after training, 10 + 10 units, over {most}",
            values=by_seed(where(end, model__depth=3)) / most,
            at_least=1,
            log=True,
        ),
        Claim(
            statement="Two layers of ten learn more than one of twenty, with more parameters.",
            effect="test error, 20 units - 10 + 10 units, points",
            values=paired(tuned, "model.depth", 2, 3),
            at_least=5,
        ),
    ]


def draw_counts(panel: Axes, rows: pd.DataFrame, title: str, *, log: bool) -> None:
    """Regions against depth, with theory and N^2 / 2."""
    figures.draw(panel, rows, "model.depth", "line", labels=NAMES, log=log, title=title)
    of_net = [part for _, part in rows.groupby("model.depth", sort=True)]
    depths = [int(part["model.depth"].iloc[0]) for part in of_net]
    figures.theory(panel, depths, [figures.predicted_regions(part) for part in of_net])
    label = "$N^2/2$ of $N$ hidden units"
    panel.plot(depths, [law(part) for part in of_net], color="#777777", linewidth=0.9, linestyle=":", label=label)
    figures.log_ticks(panel, rows["model.depth"])
    if log:
        low, high = panel.get_ylim()
        ticks = [value for value in (10, 30, 100, 300, 1000, 3000, 10_000) if low < value < high]
        panel.set_yticks(ticks, [str(value) for value in ticks])


def draw_decisions(panel: Axes, readings: pd.DataFrame, depth: int) -> None:
    """The class all over the plane, under test points of both classes."""
    rows = where(figures.select(readings, "decision", step="last"), model__depth=depth)
    rows = where(rows, seed=rows["seed"].min())
    images, labels = figures.points(rows["data.name"].iloc[0]).test[:SHOWN]
    figures.draw_decisions(panel, rows, images.flatten(1).double().numpy(), labels.numpy())
    panel.set_title(f"{depth - 1} x {rows['model.width'].iloc[0]} hidden units")


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(3, 2, height=4.9)
    rows = pd.concat([of_budget(errors(readings, rate)) for rate in RATES])
    figures.draw(axes[0], rows, "model.depth", "line", labels=NAMES, ylabel="test error, %", title="same parameters")
    figures.log_ticks(axes[0], rows["model.depth"])
    counts = pd.concat([regions(readings, state) for state in STATES])
    draw_counts(axes[1], of_budget(counts), "same parameters", log=True)
    draw_counts(axes[2], of_units(counts), "20 hidden units", log=False)
    most = theory.most_regions([UNITS])
    axes[2].axhline(most, color="black", linewidth=0.9, linestyle="-.", label="most that one layer of 20 can have")
    for panel, depth in zip(axes[3:], (SHALLOW, MIDDLE, DEEP), strict=True):
        draw_decisions(panel, readings, depth)
    figures.legend(drawing, "top")
    return drawing
