"""What norms do for the learning rate, what small batches and depth do to them, and how distributions drift.

Top: training error against the learning rate, and against the batch size at a small one. Bottom: how far the inputs of
layers drift between readings, in standard deviations; and the backward signal of deep nets at initialization, with the
rate at which theory has batch norm explode. "Noisy": batch norm followed by noise that is new at every update.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from depthlab import figures, theory
from depthlab.figures import Claim

PROBES = ("activation_mean", "activation_std", "backward_norm", "train_error", "test_error")

NETS = ("none", "batch", "noisy batch", "layer", "group", "RMS", "batch, skips")
GUESSING = 90
"""Error in percent; a run that diverged does no better."""
SLOW, FAST, BATCH = 0.03, 1.0, 64
"""Learning rates: one at which every net trains, one at which few do; and the batch size of all but one panel."""


def named(readings: pd.DataFrame) -> pd.DataFrame:
    """The nets by what distinguishes them, without those that have no scale and shift."""
    names = readings["model.norm"].replace("rms", "RMS")
    names = names.mask(readings["model.norm_noise"] > 0, "noisy " + names)
    names = names.mask(readings["model.skip"] == "residual", names + ", skips")
    return readings.assign(net=names)[readings["model.norm_affine"]]


def is_deep(readings: pd.DataFrame) -> pd.Series:
    deepest: int = readings["model.depth"].max()
    return readings["model.depth"] == deepest


def errors(readings: pd.DataFrame, probe: str = "train_error") -> pd.DataFrame:
    """Error at the end, in percent, of the nets that are not deep."""
    rows = figures.outcomes(readings, probe)
    return rows.assign(value=(100 * rows["value"]).fillna(GUESSING))[~is_deep(rows)]


def drifts(readings: pd.DataFrame) -> pd.DataFrame:
    """|mean - mean before| / standard deviation before, of what each hidden layer hands on; a mean over layers.

    One row per run and reading, from the second on; of training with BATCH images at the rate SLOW.
    """
    rows = named(readings[(readings["train.lr"] == SLOW) & (readings["train.batch_size"] == BATCH)])
    rows = rows[rows["depth"].between(1, rows["model.depth"] - 1)]
    keys = ["net", "seed", "depth", "step"]
    mean, std = (rows[rows["probe"] == f"activation_{each}"].set_index(keys)["value"] for each in ("mean", "std"))
    of_layer = ["net", "seed", "depth"]
    change = mean.sort_index().groupby(of_layer).diff().abs() / std.sort_index().groupby(of_layer).shift()
    found = change.groupby(["net", "seed", "step"]).mean().dropna()
    return found.rename("value").reset_index().assign(probe="drift of a layer's input, standard deviations")


def slopes(readings: pd.DataFrame) -> pd.DataFrame:
    """Growth of the backward signal per layer in the deep nets at initialization, by net and seed."""
    rows = named(figures.select(readings, "backward_norm", step="first"))
    rows = rows[is_deep(rows)]
    return figures.slopes(rows, ["net"], first=2, last=rows["model.depth"].max() - 1)


def table(readings: pd.DataFrame) -> pd.DataFrame:
    settings = ["model.norm", "model.norm_affine", "model.norm_noise", "train.lr", "train.batch_size"]
    rows = []
    for values, train in errors(readings).groupby(settings, sort=True):
        test = errors(readings, "test_error").merge(train[["key"]], on="key")
        names = ["norm", "scale and shift", "noise", "learning rate", "batch size"]
        found = {"train error, %": figures.interval(train["value"]), "test error, %": figures.interval(test["value"])}
        rows.append(dict(zip(names, values, strict=True)) | found)
    return pd.DataFrame(rows)


def claims(readings: pd.DataFrame) -> list[Claim]:
    drift = drifts(readings).groupby(["net", "seed"])["value"].mean().reset_index()
    growth, all_errors = slopes(readings), errors(readings)
    at_batch = named(all_errors[all_errors["train.batch_size"] == BATCH])
    fast, rates = at_batch[at_batch["train.lr"] == FAST], sorted(at_batch["train.lr"].unique())
    medium = at_batch[at_batch["train.lr"] == rates[max(0, rates.index(FAST) - 1)]]
    small = named(all_errors[all_errors["train.batch_size"] == all_errors["train.batch_size"].min()])
    few, mild = small["train.batch_size"].min(), medium["train.lr"].iloc[0]
    bare = all_errors[(all_errors["model.norm"] == "batch") & (all_errors["model.norm_noise"] == 0)]
    bare = bare[(bare["train.lr"] == FAST) & (bare["train.batch_size"] == BATCH)]
    points = f"training error at learning rate {FAST:g}"
    predicted = theory.batch_norm_backward_slope(activation="relu")
    return [
        Claim(
            statement="Batch norm trains at a learning rate at which the net without it fails.",
            effect=f"{points}, none - batch, points",
            values=figures.paired(fast, "net", "none", "batch"),
            at_least=50,
        ),
        Claim(
            statement="So does layer norm, at a smaller one.",
            effect=f"training error at learning rate {mild:g}, none - layer, points",
            values=figures.paired(medium, "net", "none", "layer"),
            at_least=50,
        ),
        Claim(
            statement="Batch norm bears larger learning rates than layer norm.",
            effect=f"{points}, layer - batch, points",
            values=figures.paired(fast, "net", "layer", "batch"),
            at_least=30,
        ),
        Claim(
            statement="The benefit is the normalization's: batch norm needs no learned scale and shift.",
            effect=f"{points}, batch norm without - with them, points",
            values=figures.paired(bare, "model.norm_affine", False, True),
            at_least=-5,
            at_most=5,
        ),
        Claim(
            statement="On small batches batch norm fails where layer norm does not.",
            effect=f"training error with batches of {few}, batch - layer, points",
            values=figures.paired(small, "net", "batch", "layer"),
            at_least=20,
        ),
        Claim(
            statement="Batch norm lowers the drift of its layers' distributions.",
            effect=f"drift at learning rate {SLOW:g}, batch / none",
            values=figures.paired(drift, "net", "batch", "none", ratio=True),
            at_most=0.5,
            log=True,
        ),
        Claim(
            statement="Noise after batch norm brings drift back ...",
            effect="the same, noisy batch / batch",
            values=figures.paired(drift, "net", "noisy batch", "batch", ratio=True),
            at_least=2,
            log=True,
        ),
        Claim(
            statement="... and the benefit stays: it is not for want of drift that batch norm helps.",
            effect=f"{points}, none - noisy batch, points",
            values=figures.paired(fast, "net", "none", "noisy batch"),
            at_least=50,
        ),
        Claim(
            statement="Without skips, gradients explode through batch norm as theory predicts.",
            effect="slope of the backward signal, measured - predicted, nepers per layer",
            values=growth[growth["net"] == "batch"]["value"] - predicted,
            at_least=-0.05,
            at_most=0.05,
        ),
        Claim(
            statement="Skips take most of that away.",
            effect="slope of the backward signal, with skips / without",
            values=figures.paired(growth, "net", "batch, skips", "batch", ratio=True),
            at_most=0.5,
        ),
    ]


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(2, 2, height=5.0)
    found = named(errors(readings))
    labels = {name: name for name in NETS}
    figures.draw(axes[0], found[found["train.batch_size"] == BATCH], "train.lr", "net", labels=labels)
    slow = found[(found["train.lr"] == found["train.lr"].min()) & (found["model.norm_noise"] == 0)]
    figures.draw(axes[1], slow, "train.batch_size", "net", labels=labels)
    figures.log_ticks(axes[1], slow["train.batch_size"])
    for panel in axes[:2]:
        panel.set(ylabel="training error, %", ylim=(-5, 105))
    axes[1].set_title(f"learning rate {slow['train.lr'].min():g}")
    drift = drifts(readings)
    compared = drift[drift["net"].isin(["none", "batch", "noisy batch"])]
    figures.draw(axes[2], compared, "step", "net", labels=labels, log=True)
    axes[2].set(ylabel="drift, standard deviations", title=f"learning rate {SLOW:g}")
    signal = named(figures.select(readings, "backward_norm", step="first"))
    signal = signal[is_deep(signal) & (signal["depth"] < signal["model.depth"])]
    figures.draw(axes[3], signal, "depth", "net", labels=labels)
    last = signal[(signal["net"] == "batch") & (signal["depth"] == signal["depth"].max())]["value"]
    layers = np.arange(1, signal["depth"].max() + 1)
    rate = theory.batch_norm_backward_slope(activation="relu")
    figures.theory(axes[3], layers, figures.interval(last, log=True).mean * np.exp(rate * (layers - layers[-1])))
    axes[3].set_title(f"{signal['model.depth'].max()} layers, at initialization")
    figures.legend(drawing, "top")
    return drawing
