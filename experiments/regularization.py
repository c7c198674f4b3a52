"""More data close the gap between training and test error; a regularizer that narrows it need not lower the test error.

Top: the gap against the number of training images under each regularizer, and what each adds to the test error. Middle:
both errors without regularization; validation error against updates with right and with wrong labels, and where it was
lowest. Bottom: how the first layer's weights are distributed under L1 and L2, exact zeros on the left; and test error
under Adam against L2 and decoupled weight decay.
"""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab import figures
from depthlab.figures import Claim, by_seed, paired, where
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
    return where(figures.errors(named(readings), probe), data__label_noise=0)


def gaps(readings: pd.DataFrame) -> pd.DataFrame:
    """Test error - training error after the last update, in points, one row a run."""
    test, train = errors(readings, "test_error"), errors(readings, "train_error").set_index("key")["value"]
    return test.assign(value=test["value"] - test["key"].map(train), probe="test error - training error, points")


def added(rows: pd.DataFrame) -> pd.DataFrame:
    """Each value less that without regularization, of the same seed and training set."""
    return figures.less_baseline(rows, "method", "none", by=[SIZE])


def shares(readings: pd.DataFrame) -> pd.DataFrame:
    """Share of the first layer's weights up to each size (`edge`), where the L1 subgradient is tried."""
    rows = named(where(figures.weight_shares(readings), depth=1))
    size = where(rows, method=SUBGRADIENT)[SIZE].iloc[0]
    return where(rows[rows["method"].isin(PENALTIES)], data__train_size=size, data__label_noise=0)


def wrong(readings: pd.DataFrame, probe: str, noise: float | None = None) -> pd.DataFrame:
    """Readings of the nets that learnt from wrong labels, or of those with right ones on as many images."""
    rows = where(named(readings), method="none")
    size = rows[rows["data.label_noise"] > 0][SIZE].iloc[0]
    share = rows["data.label_noise"].max() if noise is None else noise
    return figures.select(where(rows, data__train_size=size, data__label_noise=share), probe)


def under_adam(readings: pd.DataFrame) -> pd.DataFrame:
    """Test error of the nets that Adam trained, in percent; the optimiser tells L2 from decoupled weight decay."""
    return figures.errors(readings[readings["train.optimizer"].isin(["adam", "adamw"])])


def table(readings: pd.DataFrame) -> pd.DataFrame:
    test = errors(readings, "test_error")
    zeros = where(named(figures.select(readings, "weight_share_up_to_0", step="last")), depth=1, data__label_noise=0)
    order = (*METHODS[:4], SUBGRADIENT, *METHODS[4:])
    return figures.table(
        test.assign(method=pd.Categorical(test["method"], order)),
        {SIZE: "training images", "method": "regularizer"},
        {
            "training error, %": errors(readings, "train_error"),
            "test error, %": test,
            "gap, points": gaps(readings),
            "test error of the chosen weights, %": errors(readings, "chosen_test_error"),
            "chosen update": where(figures.outcomes(named(readings), "chosen_step"), data__label_noise=0),
            "zeros in the first layer, %": figures.percent(zeros),
        },
    )


def claims(readings: pd.DataFrame) -> list[Claim]:
    gap, test = gaps(readings), errors(readings, "test_error")
    return [*claims_on_narrowing(gap, test), *claims_on_test_errors(gap, test), *claims_on_means(readings)]


def sizes(rows: pd.DataFrame) -> tuple[int, int, int]:
    """The fewest images; those few enough to be fitted, but too many to be fitted at once; and the most."""
    tried = sorted(rows[SIZE].unique())
    return tried[0], tried[max(0, len(tried) - 2)], tried[-1]


def claims_on_narrowing(gap: pd.DataFrame, test: pd.DataFrame) -> list[Claim]:
    few, middle, most = sizes(gap)
    narrower, lower = (added(rows[rows["method"].isin(["none", *NARROWING])]) for rows in (gap, test))
    at_few, at_middle, test_at_middle = (
        where(rows, data__train_size=size).groupby("seed")["value"]
        for rows, size in ((narrower, few), (narrower, middle), (lower, middle))
    )
    return [
        Claim(
            statement="More data close the gap.",
            effect=f"gap without regularization, {most:,} images over {few}",
            values=paired(where(gap, method="none"), SIZE, most, few, ratio=True),
            at_most=0.33,
        ),
        Claim(
            statement="Dropout, DropConnect, L1, L2 and augmentation each narrow it where data are many.",
            effect=f"gap with - without the regularizer, {middle:,} images, the least narrowing of the five, points",
            values=at_middle.max(),
            at_most=-0.5,
        ),
        Claim(
            statement="They lower the test error by it.",
            effect=f"test error with - without the regularizer, {middle:,} images, mean of the five, points",
            values=test_at_middle.mean(),
            at_most=0,
        ),
        Claim(
            statement="Where data are few they hardly narrow it: the net fits them all the same.",
            effect=f"gap with - without the regularizer, {few} images, mean of the five, over the gap without",
            values=at_few.mean() / by_seed(where(gap, data__train_size=few, method="none")),
            at_least=-0.1,
            at_most=0.1,
        ),
    ]


def claims_on_test_errors(gap: pd.DataFrame, test: pd.DataFrame) -> list[Claim]:
    _, middle, most = sizes(gap)
    return [
        Claim(
            statement="A narrow gap is not the aim: all together all but close it ...",
            effect=f"gap, all - none, {most:,} images, points",
            values=by_seed(where(added(gap), data__train_size=most, method="all")),
            at_most=-1,
        ),
        Claim(
            statement="... and cost test error in a training of this length.",
            effect=f"test error, all - none, {most:,} images, points",
            values=by_seed(where(added(test), data__train_size=most, method="all")),
            at_least=1,
        ),
        Claim(
            statement="Label smoothing lowers the test error.",
            effect=f"test error, label smoothing - none, {middle:,} images, points",
            values=by_seed(where(added(test), data__train_size=middle, method="label smoothing")),
            at_most=0,
        ),
    ]


def claims_on_means(readings: pd.DataFrame) -> list[Claim]:
    found, last = shares(readings), wrong(readings, "test_error")
    chosen = wrong(readings, "chosen_test_error")
    tuned = figures.tuned(readings[readings["train.weight_decay"] > 0], "train.weight_decay", ["train.optimizer"])
    return [
        Claim(
            statement="L1 makes weights exactly 0 by its proximal step, not by its subgradient ...",
            effect="share of the first layer's weights that are 0, proximal - subgradient",
            values=paired(where(found, edge=0.0), "method", "L1", SUBGRADIENT),
            at_least=0.2,
        ),
        Claim(
            statement="... which only makes them small.",
            effect="share of weights up to 0.001, subgradient - none",
            values=paired(where(found, edge=1e-3), "method", SUBGRADIENT, "none"),
            at_least=0.2,
        ),
        Claim(
            statement="Where labels are wrong, stopping at the lowest validation error lowers the test error.",
            effect=f"test error, last - chosen weights, {readings['data.label_noise'].max():.0%} wrong labels, points",
            values=100 * (by_seed(last) - by_seed(chosen)),
            at_least=1,
        ),
        Claim(
            statement="Under Adam, decoupled weight decay does better than L2.",
            effect="test error at the decay that validates best, L2 - decoupled, points",
            values=paired(under_adam(tuned), "train.optimizer", "adam", "adamw"),
            at_least=0,
        ),
    ]


def draw_choices(axes: Axes, readings: pd.DataFrame) -> None:
    """Validation error of nets with right and with wrong labels; a star where each seed's was lowest."""
    noises = sorted(readings["data.label_noise"].unique())
    names = {noise: f"{noise:.0%} of labels wrong" if noise else "right labels" for noise in noises}
    curves = pd.concat([wrong(readings, "validation_error", noise) for noise in names])
    curves = figures.percent(curves).assign(labels=curves["data.label_noise"].map(names))
    figures.draw(axes, curves, "step", "labels", labels=list(names.values()), ylabel="validation error, %")
    for noise in names:
        chosen = wrong(readings, "chosen_step", noise).set_index("key")["value"]
        at = curves[(curves["data.label_noise"] == noise) & (curves["step"] == curves["key"].map(chosen))]
        axes.plot(at["step"], at["value"], "*", color="black", markersize=5, zorder=6, label="chosen, each seed")


def draw_decays(axes: Axes, readings: pd.DataFrame) -> None:
    """Test error under Adam against the weight decay, L2 and decoupled; a line where there is none."""
    adam = under_adam(readings)
    names = {"adam": "L2", "adamw": "decoupled"}
    tried = adam[adam["train.weight_decay"] > 0]
    figures.draw(axes, tried, "train.weight_decay", "train.optimizer", labels=names, ylabel="test error, %")
    axes.axhline(where(adam, train__weight_decay=0)["value"].mean(), color="0.4", linewidth=0.8, label="no decay")
    figures.log_ticks(axes, tried["train.weight_decay"])
    axes.set_xlabel("weight decay, Adam")


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(2, 3, height=7.4)
    extra = added(errors(readings, "test_error")).assign(probe="test error - that of none, points")
    for panel, rows in ((axes[0], gaps(readings)), (axes[1], extra)):
        figures.draw(panel, rows[rows["method"].isin(METHODS)], SIZE, "method", labels=list(METHODS))
    axes[1].axhline(0, color="0.4", linewidth=0.8)
    both = where(pd.concat([errors(readings, f"{part}_error") for part in ("train", "test")]), method="none")
    kinds = {"train_error": "training error", "test_error": "test error"}
    both = both.assign(kind=both["probe"], probe="error without regularization, %")
    figures.draw(axes[2], both, SIZE, "kind", labels=kinds)
    for panel in axes[:3]:
        figures.log_ticks(panel, readings[SIZE])
    draw_choices(axes[3], readings)
    figures.draw_distribution(axes[4], shares(readings), "method", labels=PENALTIES)
    axes[4].set_xlabel("size of a weight of the first layer")
    draw_decays(axes[5], readings)
    for panel in axes[2:]:
        figures.legend_above(panel)
    figures.legend(drawing, "top", of=axes[:2])
    return drawing
