"""Cross-validation chooses a weight decay nearly as good as the test set's choice; its folds do not tell how surely.

Each seed has a pool of images of its own. Top: error on each fold of one pool against the weight decay, their mean with
its naive standard error, and the test error; the same means over all pools. Bottom: regret of each rule of choice in
test error, each pool a point; and the naive standard error beside the standard deviation of the mean over pools.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from depthlab import figures
from depthlab.figures import Claim, by_seed, where

PROBES = ("validation_error", "test_error")

DECAY = "train.weight_decay"
FOLDS, TEST = "#332288", "#CC6677"
RULES = {"cross-validation": "all folds", "one standard error": "one-standard-error\nrule", "one fold": "one fold"}


def errors(readings: pd.DataFrame, probe: str) -> pd.DataFrame:
    """Error in percent after the last update: a row for each decay and seed, a column for each fold."""
    rows = figures.outcomes(readings, probe)
    return 100 * rows.pivot(index=[DECAY, "seed"], columns="data.fold", values="value")


def estimates(readings: pd.DataFrame) -> pd.DataFrame:
    """For each decay and seed: `mean` over the folds, its naive standard error `naive`, the `first` fold, and `test`.

    `naive` is the folds' standard deviation over sqrt(k), as if they were independent. `test` is the mean test
    error of the same k nets.
    """
    folds = errors(readings, "validation_error")
    naive = folds.std(axis=1, ddof=1) / np.sqrt(folds.shape[1])
    test = errors(readings, "test_error").mean(axis=1, skipna=False)
    found = {"mean": folds.mean(axis=1, skipna=False), "naive": naive, "first": folds[folds.columns[0]], "test": test}
    return pd.DataFrame(found).reset_index()


def complete(found: pd.DataFrame) -> pd.DataFrame:
    """The pools on which every decay was tried."""
    return found[found.groupby("seed")[DECAY].transform("nunique") == found[DECAY].nunique()]


def lowest(pool: pd.DataFrame, column: str) -> pd.Series:
    """The row of a pool whose value is lowest; of equal ones that of the largest decay, which binds the net most."""
    row: pd.Series = pool.sort_values(DECAY, ascending=False).sort_values(column, kind="stable").iloc[0]
    return row


def chosen(pool: pd.DataFrame, rule: str) -> pd.Series:
    """The row of a pool that a rule chooses.

    One standard error: the largest decay whose mean is at most one (naive) standard error above the lowest (Breiman et
    al. 1984, section 3.4.3).
    """
    if rule == "one fold":
        return lowest(pool, "first")
    best = lowest(pool, "mean")
    if rule == "cross-validation":
        return best
    return lowest(pool.assign(within=pool["mean"] > best["mean"] + best["naive"]), "within")


def choices(readings: pd.DataFrame) -> pd.DataFrame:
    """For each rule and seed: the `decay`, its `estimate` and its `value`, the regret in points of test error."""
    rows = []
    for seed, pool in complete(estimates(readings)).groupby("seed"):
        best = lowest(pool, "test")
        for rule in RULES:
            found = chosen(pool, rule)
            regret = {"decay": found[DECAY], "estimate": found["mean"], "test": found["test"], "best": best[DECAY]}
            rows.append({"rule": rule, "seed": seed, "value": found["test"] - best["test"]} | regret)
    return pd.DataFrame(rows)


def spread(found: pd.DataFrame) -> pd.Series:
    """Per seed, (mean of folds - its mean over pools)^2 over the naive variance, at the decay that most pools have.

    Its mean over seeds is the variance of the cross-validated error over pools, in units of what the folds say it is.
    """
    part = found[found[DECAY] == found[DECAY].value_counts().idxmax()].set_index("seed")
    squares = (part["mean"] - part["mean"].mean()) ** 2 * len(part) / (len(part) - 1)
    return squares / (part["naive"] ** 2).mean()


def table(readings: pd.DataFrame) -> pd.DataFrame:
    found = choices(readings)
    same = found.assign(value=100 * (found["decay"] == found["best"]))
    return figures.table(
        found.assign(rule=pd.Categorical(found["rule"], list(RULES))),
        {"rule": "rule"},
        {
            "chosen decay": figures.intervals(found, ["rule"], value="decay", log=True),
            "the test set's": figures.intervals(found, ["rule"], value="best", log=True),
            "same as the test set's, %": same,
            "test error, %": figures.intervals(found, ["rule"], value="test"),
            "regret, points": found,
            "test error - cross-validated error, points": found.assign(value=found["test"] - found["estimate"]),
        },
    )


def claims(readings: pd.DataFrame) -> list[Claim]:
    found = choices(readings)
    regret = {rule: by_seed(where(found, rule=rule)) for rule in RULES}
    return [
        Claim(
            statement="Cross-validation chooses nearly as well as the test set would have.",
            effect="test error of its choice - of the best decay, points",
            values=regret["cross-validation"],
            at_most=0.5,
        ),
        Claim(
            statement="It chooses better than one fold alone.",
            effect="regret, one fold - all folds, points",
            values=regret["one fold"] - regret["cross-validation"],
            at_least=0,
        ),
        Claim(
            statement="The one-standard-error rule stays within a point of the best.",
            effect="test error of its choice - of the best decay, points",
            values=regret["one standard error"],
            at_most=1,
        ),
        Claim(
            statement="The spread between folds understates how much the cross-validated error varies.",
            effect="variance over pools / naive variance, at the decay that most pools have",
            values=spread(estimates(readings)),
            at_least=1,
        ),
    ]


def draw_pool(axes: Axes, readings: pd.DataFrame) -> None:
    """The folds of the first pool, and what they choose."""
    seed = readings["seed"].min()
    folds = errors(readings, "validation_error").xs(seed, level="seed")
    pool = where(estimates(readings), seed=seed)
    for fold in folds.columns:
        axes.plot(folds.index, folds[fold], color="0.75", linewidth=0.8, label="a fold")
    axes.errorbar(pool[DECAY], pool["mean"], yerr=pool["naive"], color=FOLDS, marker="o", label="mean of folds")
    axes.plot(pool[DECAY], pool["test"], color=TEST, marker="s", linestyle="--", label="test error")
    for column, color in (("mean", FOLDS), ("test", TEST)):
        best = lowest(pool, column)
        star: dict[str, Any] = {"marker": "*", "markersize": 9, "zorder": 6, "linestyle": "none", "color": color}
        axes.plot(best[DECAY], best[column], label=f"chosen by {'folds' if column == 'mean' else 'test set'}", **star)
    axes.set_ylabel("error, %")
    figures.legend_above(axes)


def draw_spread(axes: Axes, found: pd.DataFrame) -> None:
    """The naive standard error, and the standard deviation over pools with its 95 % interval for normal errors."""
    naive = found.assign(value=found["naive"], probe="spread of the mean of folds, points", kind="naive")
    figures.draw(axes, naive, DECAY, "kind", labels={"naive": "naive standard error"})
    over, freedom = found.groupby(DECAY)["mean"].std(ddof=1), found.groupby(DECAY)["mean"].count() - 1
    low, high = (np.sqrt(freedom / stats.chi2.ppf(level, freedom)) for level in (0.975, 0.025))
    reach = [over * (1 - low), over * (high - 1)]
    axes.errorbar(over.index, over, yerr=reach, color="black", marker="D", label="deviation over pools")
    figures.legend_above(axes)


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(2, 2, height=6.2)
    found = estimates(readings)
    draw_pool(axes[0], readings)
    names = {"test": "test error", "mean": "mean of folds"}
    means = complete(found).melt([DECAY, "seed"], list(names), "kind").assign(probe="error, %")
    figures.draw(axes[1], means, DECAY, "kind", labels=names)
    figures.legend_above(axes[1])
    figures.draw_seeds(axes[2], choices(readings), "rule", labels=RULES)
    axes[2].set_ylabel("regret in test error, points")
    draw_spread(axes[3], found)
    for panel in (axes[0], axes[1], axes[3]):
        figures.log_ticks(panel, readings[DECAY])
        panel.set_xlabel("weight decay")
    return drawing
