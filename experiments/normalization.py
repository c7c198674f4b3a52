"""What norms do for the learning rate, what small batches and depth do to them, and how distributions drift.

Top: training error against the learning rate, and against the batch size at a small one. Bottom: how far the inputs of
layers drift between readings, in standard deviations; and the backward signal of deep nets at initialization, with the
rate at which theory has batch norm explode. "Noisy": batch norm followed by noise that is new at every update.
"""

import functools

import pandas as pd
from matplotlib.figure import Figure

from depthlab import figures, theory
from depthlab.figures import Claim, by_seed, paired, where

PROBES = ("activation_mean", "activation_std", "backward_norm", "train_error", "test_error")

NETS = ("none", "batch", "noisy batch", "layer", "group", "RMS", "batch, skips")
GUESSING = 90  # error in percent; a run that diverged does no better
SLOW, FAST = 0.03, 1.0  # learning rates: one at which every net trains, one at which few do
BATCH_NORM_SLOPE = theory.batch_norm_backward_slope(activation="relu")
BATCH = 64  # the batch size of all but one panel


def named(readings: pd.DataFrame) -> pd.DataFrame:
    """The nets by what distinguishes them, without those that have no scale and shift."""
    names = readings["model.norm"].replace("rms", "RMS")
    names = names.mask(readings["model.norm_noise"] > 0, "noisy " + names)
    names = names.mask(readings["model.skip"] == "residual", names + ", skips")
    return readings.assign(net=names)[readings["model.norm_affine"]]


def errors(readings: pd.DataFrame, probe: str = "train_error") -> pd.DataFrame:
    """Error at the end, in percent, of the nets that are not deep."""
    found = figures.errors(readings, probe, diverged=GUESSING)
    deepest: int = found["model.depth"].max()
    return found[found["model.depth"] < deepest]


def drifts(readings: pd.DataFrame) -> pd.DataFrame:
    """|mean - mean before| / standard deviation before, of what each hidden layer hands on; a mean over layers.

    One row per run and reading, from the second on; of training with BATCH images at the rate SLOW.
    """
    rows = figures.hidden(named(where(readings, train__lr=SLOW, train__batch_size=BATCH)))
    rows = rows[rows["depth"] > 0]
    keys = ["net", "seed", "depth", "step"]
    mean, std = (rows[rows["probe"] == f"activation_{each}"].set_index(keys)["value"] for each in ("mean", "std"))
    of_layer = ["net", "seed", "depth"]
    change = mean.sort_index().groupby(of_layer).diff().abs() / std.sort_index().groupby(of_layer).shift()
    found = change.groupby(["net", "seed", "step"]).mean().dropna()
    return found.rename("value").reset_index().assign(probe="drift of a layer's input, standard deviations")


def signal(readings: pd.DataFrame) -> pd.DataFrame:
    """The backward signal of the deep nets at initialization."""
    return figures.hidden(figures.deepest(named(figures.select(readings, "backward_norm", step="first"))))


def slopes(readings: pd.DataFrame) -> pd.DataFrame:
    """Growth of the backward signal per layer in the deep nets at initialization, by net and seed."""
    return figures.slopes(signal(readings), ["net"], first=2)


def table(readings: pd.DataFrame) -> pd.DataFrame:
    found = errors(readings)
    settings = {"model.norm": "norm", "model.norm_affine": "scale and shift", "model.norm_noise": "noise"}
    settings |= {"train.lr": "learning rate", "train.batch_size": "batch size"}
    return figures.table(found, settings, {"train error, %": found, "test error, %": errors(readings, "test_error")})


def claims(readings: pd.DataFrame) -> list[Claim]:
    found = errors(readings)
    fast = where(found, train__lr=FAST, train__batch_size=BATCH)
    return [*claims_on_errors(named(found), fast), *claims_on_signals(readings, named(fast))]


def claims_on_errors(found: pd.DataFrame, fast: pd.DataFrame) -> list[Claim]:
    """`fast` has the nets without scale and shift as well."""
    rates = sorted(where(found, train__batch_size=BATCH)["train.lr"].unique())
    few, mild = found["train.batch_size"].min(), rates[max(0, rates.index(FAST) - 1)]
    medium = where(found, train__batch_size=BATCH, train__lr=mild)
    small = where(found, train__batch_size=few)
    bare = where(fast, model__norm="batch", model__norm_noise=0)
    points = f"training error at learning rate {FAST:g}"
    return [
        Claim(
            statement="Batch norm trains at a learning rate at which the net without it fails.",
            effect=f"{points}, none - batch, points",
            values=paired(named(fast), "net", "none", "batch"),
            at_least=50,
        ),
        Claim(
            statement="So does layer norm, at a smaller one.",
            effect=f"training error at learning rate {mild:g}, none - layer, points",
            values=paired(medium, "net", "none", "layer"),
            at_least=50,
        ),
        Claim(
            statement="Batch norm bears larger learning rates than layer norm.",
            effect=f"{points}, layer - batch, points",
            values=paired(named(fast), "net", "layer", "batch"),
            at_least=30,
        ),
        Claim(
            statement="The benefit is the normalization's: batch norm needs no learned scale and shift.",
            effect=f"{points}, batch norm without - with them, points",
            values=paired(bare, "model.norm_affine", False, True),
            at_least=-5,
            at_most=5,
        ),
        Claim(
            statement="On small batches batch norm fails where layer norm does not.",
            effect=f"training error with batches of {few}, batch - layer, points",
            values=paired(small, "net", "batch", "layer"),
            at_least=20,
        ),
    ]


def claims_on_signals(readings: pd.DataFrame, fast: pd.DataFrame) -> list[Claim]:
    drift = drifts(readings).groupby(["net", "seed"])["value"].mean().reset_index()
    growth = slopes(readings)
    return [
        Claim(
            statement="Batch norm lowers the drift of its layers' distributions.",
            effect=f"drift at learning rate {SLOW:g}, batch / none",
            values=paired(drift, "net", "batch", "none", ratio=True),
            at_most=0.5,
            log=True,
        ),
        Claim(
            statement="Noise after batch norm brings drift back ...",
            effect="the same, noisy batch / batch",
            values=paired(drift, "net", "noisy batch", "batch", ratio=True),
            at_least=2,
            log=True,
        ),
        Claim(
            statement="... and the benefit stays: it is not for want of drift that batch norm helps.",
            effect=f"training error at learning rate {FAST:g}, none - noisy batch, points",
            values=paired(fast, "net", "none", "noisy batch"),
            at_least=50,
        ),
        Claim(
            statement="Without skips, gradients explode through batch norm as theory predicts.",
            effect="slope of the backward signal, measured - predicted, nepers per layer",
            values=by_seed(where(growth, net="batch")) - BATCH_NORM_SLOPE,
            at_least=-0.05,
            at_most=0.05,
        ),
        Claim(
            statement="Skips take most of that away.",
            effect="slope of the backward signal, with skips / without",
            values=paired(growth, "net", "batch, skips", "batch", ratio=True),
            at_most=0.5,
        ),
    ]


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(2, 2, height=5.0)
    found = named(errors(readings))
    slow = where(found, train__lr=found["train.lr"].min(), model__norm_noise=0)
    draw = functools.partial(figures.draw_errors, by="net", labels=NETS, ylabel="training error, %")
    draw(axes[0], where(found, train__batch_size=BATCH), "train.lr")
    draw(axes[1], slow, "train.batch_size", title=f"learning rate {slow['train.lr'].min():g}")
    figures.log_ticks(axes[1], slow["train.batch_size"])
    drift = drifts(readings)
    compared = drift[drift["net"].isin(["none", "batch", "noisy batch"])]
    figures.draw(axes[2], compared, "step", "net", labels=NETS, log=True)
    axes[2].set(ylabel="drift, standard deviations", title=f"learning rate {SLOW:g}")
    rows = signal(readings)
    title = f"{rows['model.depth'].max()} layers, at initialization"
    figures.draw(axes[3], rows, "depth", "net", labels=NETS, title=title)
    figures.theory_growth(axes[3], where(rows, net="batch"), BATCH_NORM_SLOPE)
    figures.legend(drawing, "top")
    return drawing
