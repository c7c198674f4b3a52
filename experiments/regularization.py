"""More data close the gap between training and test error; a regularizer that narrows it need not lower the test error.

Top: the gap against the number of training images under each regularizer, and what each adds to the test error. Middle:
both errors without regularization; validation error against updates with right and with wrong labels, and where it was
lowest. Bottom: how the first layer's weights are distributed under L1 and L2, exact zeros on the left; and test error
under Adam against L2 and decoupled weight decay.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab import figures
from depthlab.figures import Claim, where
from depthlab.probes import DISTRIBUTION

PROBES = ("validation_error", "train_error", "test_error", "chosen_test_error", "chosen_step", *DISTRIBUTION)

FACTORS = {
    "model.dropout": "dropout",
    "model.dropconnect": "DropConnect",
    "train.l1": "L1",
    "train.weight_decay": "L2",
    "data.crop_padding": "augmentation",
    "train.label_smoothing": "label smoothing",
    "train.early_stopping": "early stopping",
}
METHODS = ("none", *FACTORS.values(), "all")
SUBGRADIENT = "L1, subgradient"
PENALTIES = ("none", "L2", SUBGRADIENT, "L1")
NARROWING = ("dropout", "DropConnect", "L1", "L2", "augmentation")
"""The regularizers that hold the training error up; label smoothing and early stopping need not."""

SIZE = "data.train_size"


def named(readings: pd.DataFrame) -> pd.DataFrame:
    """The runs by SGD, with the regularizer that is on as `method`."""
    on = readings[list(FACTORS)].fillna(0).astype(float) > 0
    method = on.idxmax(axis=1).map(FACTORS).where(on.sum(axis=1) == 1, "all").where(on.any(axis=1), "none")
    stepped = (method == "L1") & (readings["train.l1_step"] == "subgradient")
    return where(readings.assign(method=method.mask(stepped, SUBGRADIENT)), train__optimizer="sgd")


def errors(readings: pd.DataFrame, probe: str) -> pd.DataFrame:
    """Error after the last update, in percent, of nets that learnt from right labels."""
    rows = where(figures.outcomes(named(readings), probe), data__label_noise=0)
    return rows.assign(value=100 * rows["value"])


def gaps(readings: pd.DataFrame) -> pd.DataFrame:
    """Test error - training error after the last update, in points, one row a run."""
    test, train = errors(readings, "test_error"), errors(readings, "train_error").set_index("key")["value"]
    return test.assign(value=test["value"] - test["key"].map(train), probe="test error - training error, points")


def added(rows: pd.DataFrame) -> pd.DataFrame:
    """Each value less that without regularization, of the same seed and training set."""
    reference = where(rows, method="none").set_index([SIZE, "seed"])["value"]
    found = rows[rows["method"] != "none"]
    before = reference.reindex(pd.MultiIndex.from_frame(found[[SIZE, "seed"]])).to_numpy()
    return found.assign(value=found["value"] - before)


def shares(readings: pd.DataFrame) -> pd.DataFrame:
    """Share of the first layer's weights up to each size (`edge`), where the L1 subgradient is tried."""
    rows = named(readings[readings["probe"].isin(DISTRIBUTION) & (readings["depth"] == 1)])
    size = where(rows, method=SUBGRADIENT)[SIZE].iloc[0]
    rows = where(rows[rows["method"].isin(PENALTIES)], data__train_size=size, data__label_noise=0)
    return rows.assign(edge=rows["probe"].map(DISTRIBUTION), probe="share of weights")


def wrong(readings: pd.DataFrame, probe: str, noise: float | None = None) -> pd.DataFrame:
    """Readings of the nets that learnt from wrong labels, or of those with right ones on as many images."""
    rows = where(named(readings), method="none")
    size = rows[rows["data.label_noise"] > 0][SIZE].iloc[0]
    share = rows["data.label_noise"].max() if noise is None else noise
    return figures.select(where(rows, data__train_size=size, data__label_noise=share), probe)


def under_adam(readings: pd.DataFrame) -> pd.DataFrame:
    """Test error in percent of the nets that Adam trained; L2 and decoupled weight decay by the optimiser's name."""
    rows = readings[readings["train.optimizer"].isin(["adam", "adamw"])]
    found = figures.outcomes(rows, "test_error")
    return found.assign(value=100 * found["value"], probe="test error, %")


def tuned_under_adam(readings: pd.DataFrame) -> pd.DataFrame:
    """The same at the weight decay that validates best, a row for each kind of decay and seed."""
    rows = readings[readings["train.optimizer"].isin(["adam", "adamw"]) & (readings["train.weight_decay"] > 0)]
    return under_adam(figures.tuned(rows, "train.weight_decay", ["train.optimizer"]))


def table(readings: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "training error, %": errors(readings, "train_error"),
        "test error, %": errors(readings, "test_error"),
        "gap, points": gaps(readings),
        "test error of the chosen weights, %": errors(readings, "chosen_test_error"),
        "chosen update": figures.outcomes(named(readings), "chosen_step").query("`data.label_noise` == 0"),
    }
    zeros = where(named(figures.select(readings, "weight_share_up_to_0", step="last")), depth=1, data__label_noise=0)
    columns["zeros in the first layer, %"] = zeros.assign(value=100 * zeros["value"])
    cells = {name: figures.intervals(rows, [SIZE, "method"]) for name, rows in columns.items()}
    order = {method: place for place, method in enumerate((*METHODS[:4], SUBGRADIENT, *METHODS[4:]))}
    groups = sorted(cells["gap, points"], key=lambda group: (group[0], order[group[1]]))
    heads = [{"training images": size, "regularizer": method} for size, method in groups]
    rows = [{name: found[group] for name, found in cells.items()} for group in groups]
    return pd.DataFrame([head | row for head, row in zip(heads, rows, strict=True)])


def claims(readings: pd.DataFrame) -> list[Claim]:
    gap, test = gaps(readings), errors(readings, "test_error")
    sizes = sorted(gap[SIZE].unique())
    middle = sizes[max(0, len(sizes) - 2)]  # few enough to be fitted, too many to be fitted at once
    five = added(test[test["method"].isin(["none", *NARROWING])])
    ends = figures.paired(where(gap, method="none"), SIZE, sizes[-1], sizes[0], ratio=True)
    narrower = added(gap[gap["method"].isin(["none", *NARROWING])])
    widest = where(narrower, data__train_size=middle).groupby("seed")["value"].max()
    relative = where(narrower, data__train_size=sizes[0]).groupby("seed")["value"].mean()
    fewest = where(gap, data__train_size=sizes[0], method="none").set_index("seed")["value"]
    everything = {name: where(added(rows), data__train_size=sizes[-1]) for name, rows in (("gap", gap), ("test", test))}
    together = {name: where(rows, method="all").set_index("seed")["value"] for name, rows in everything.items()}
    smooth = where(added(test), data__train_size=middle, method="label smoothing").set_index("seed")["value"]
    zeros = where(shares(readings), edge=0.0)
    small = where(shares(readings), edge=1e-3)
    memorized = 100 * (
        wrong(readings, "test_error").set_index("seed")["value"]
        - wrong(readings, "chosen_test_error").set_index("seed")["value"]
    )
    return [
        Claim(
            statement="More data close the gap.",
            effect=f"gap without regularization, {sizes[-1]:,} images over {sizes[0]}",
            values=ends,
            at_most=0.33,
        ),
        Claim(
            statement="Dropout, DropConnect, L1, L2 and augmentation each narrow it where data are many.",
            effect=f"gap with - without the regularizer, {middle:,} images, the least narrowing of the five, points",
            values=widest,
            at_most=-0.5,
        ),
        Claim(
            statement="They lower the test error by it.",
            effect=f"test error with - without the regularizer, {middle:,} images, mean of the five, points",
            values=where(five, data__train_size=middle).groupby("seed")["value"].mean(),
            at_most=0,
        ),
        Claim(
            statement="Where data are few they hardly narrow it: the net fits them all the same.",
            effect=f"gap with - without the regularizer, {sizes[0]} images, mean of the five, over the gap without",
            values=relative / fewest,
            at_least=-0.1,
            at_most=0.1,
        ),
        Claim(
            statement="A narrow gap is not the aim: all together all but close it ...",
            effect=f"gap, all - none, {sizes[-1]:,} images, points",
            values=together["gap"],
            at_most=-1,
        ),
        Claim(
            statement="... and cost test error in a training of this length.",
            effect=f"test error, all - none, {sizes[-1]:,} images, points",
            values=together["test"],
            at_least=1,
        ),
        Claim(
            statement="Label smoothing lowers the test error.",
            effect=f"test error, label smoothing - none, {middle:,} images, points",
            values=smooth,
            at_most=0,
        ),
        Claim(
            statement="L1 makes weights exactly 0 by its proximal step, not by its subgradient ...",
            effect="share of the first layer's weights that are 0, proximal - subgradient",
            values=figures.paired(zeros, "method", "L1", SUBGRADIENT),
            at_least=0.2,
        ),
        Claim(
            statement="... which only makes them small.",
            effect="share of weights up to 0.001, subgradient - none",
            values=figures.paired(small, "method", SUBGRADIENT, "none"),
            at_least=0.2,
        ),
        Claim(
            statement="Where labels are wrong, stopping at the lowest validation error lowers the test error.",
            effect=f"test error, last - chosen weights, {readings['data.label_noise'].max():.0%} wrong labels, points",
            values=memorized,
            at_least=1,
        ),
        Claim(
            statement="Under Adam, decoupled weight decay does better than L2.",
            effect="test error at the decay that validates best, L2 - decoupled, points",
            values=figures.paired(tuned_under_adam(readings), "train.optimizer", "adam", "adamw"),
            at_least=0,
        ),
    ]


def draw_choices(axes: Axes, readings: pd.DataFrame) -> None:
    """Validation error of nets with right and with wrong labels; a star where each seed's was lowest."""
    noises = sorted(readings["data.label_noise"].unique())
    names = {noise: f"{noise:.0%} of labels wrong" if noise else "right labels" for noise in noises}
    curves = pd.concat([wrong(readings, "validation_error", noise) for noise in names])
    curves = curves.assign(value=100 * curves["value"], labels=curves["data.label_noise"].map(names))
    figures.draw(axes, curves, "step", "labels", labels=list(names.values()))
    for noise in names:
        chosen = wrong(readings, "chosen_step", noise).set_index("key")["value"]
        at = curves[(curves["data.label_noise"] == noise) & (curves["step"] == curves["key"].map(chosen))]
        axes.plot(at["step"], at["value"], "*", color="black", markersize=5, zorder=6, label="chosen, each seed")
    axes.set_ylabel("validation error, %")
    figures.legend_above(axes)


def draw_weights(axes: Axes, readings: pd.DataFrame) -> None:
    """A histogram of |w| in half decades; exact zeros stand apart on the left."""
    rows = shares(readings).sort_values("edge")
    bins = rows.assign(value=rows.groupby("key")["value"].diff().fillna(rows["value"]))
    edges = sorted(DISTRIBUTION.values())
    middle, zero = 10**-0.25, edges[1] / 100
    bins = bins.assign(size=(bins["edge"] * middle).where(bins["edge"] > 0, zero))
    for part in (bins[bins["edge"] == 0], bins[bins["edge"] > 0]):
        figures.draw(axes, part, "size", "method", labels=list(PENALTIES))
    ticks = [zero, *edges[1::4]]
    axes.set_xscale("log")
    axes.set_xticks(ticks, ["0", *(f"$10^{{{round(np.log10(edge))}}}$" for edge in ticks[1:])])
    axes.minorticks_off()
    axes.set(xlabel="size of a weight of the first layer", ylabel="share of weights, in half decades")
    figures.legend_above(axes)


def draw_decays(axes: Axes, readings: pd.DataFrame) -> None:
    """Test error under Adam against the weight decay, L2 and decoupled; a line where there is none."""
    adam = under_adam(readings)
    names = {"adam": "L2", "adamw": "decoupled"}
    tried = adam[adam["train.weight_decay"] > 0]
    figures.draw(axes, tried, "train.weight_decay", "train.optimizer", labels=names)
    axes.axhline(where(adam, train__weight_decay=0)["value"].mean(), color="0.4", linewidth=0.8, label="no decay")
    figures.log_ticks(axes, tried["train.weight_decay"])
    axes.set_xlabel("weight decay, Adam")
    figures.legend_above(axes)


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(2, 3, height=7.4)
    extra = added(errors(readings, "test_error")).assign(probe="test error - that of none, points")
    for panel, rows in ((axes[0], gaps(readings)), (axes[1], extra)):
        figures.draw(panel, rows[rows["method"].isin(METHODS)], SIZE, "method", labels=list(METHODS))
    axes[1].axhline(0, color="0.4", linewidth=0.8)
    both = where(pd.concat([errors(readings, f"{part}_error") for part in ("train", "test")]), method="none")
    kinds = {"train_error": "training error", "test_error": "test error"}
    both = both.assign(kind=both["probe"].map(kinds), probe="error without regularization, %")
    figures.draw(axes[2], both, SIZE, "kind", labels=list(kinds.values()))
    for panel in axes[:3]:
        figures.log_ticks(panel, readings[SIZE])
    figures.legend_above(axes[2])
    draw_choices(axes[3], readings)
    draw_weights(axes[4], readings)
    draw_decays(axes[5], readings)
    figures.legend(drawing, "top", of=axes[:2])
    return drawing
