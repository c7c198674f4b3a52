"""Without skips a deeper convolutional net fits its training data worse, though its gradients do not vanish.

a: training error of the batches, in training mode, averaged over windows; b: validation error. c: error on training and
test images at the end against depth. d: gradient norm of every layer of the deepest nets at initialization and after
training. All nets have batch norm; only the skips differ (He et al. 2015, fig. 6).
"""

import pandas as pd
from matplotlib.figure import Figure

from depthlab import figures
from depthlab.figures import Claim, paired, where

PROBES = ("batch_error", "validation_error", "train_error", "test_error", "grad_norm")

SKIPS = {"none": "plain", "residual": "residual"}
WINDOWS = 30


def ends(readings: pd.DataFrame) -> list[int]:
    """The shallowest and the deepest net."""
    return [readings["model.depth"].min(), readings["model.depth"].max()]


def change(readings: pd.DataFrame, probe: str, skip: str) -> pd.Series:
    """Error of the deepest net less that of the shallowest, in points, per seed."""
    shallow, deep = ends(readings)
    return paired(where(figures.errors(readings, probe), model__skip=skip), "model.depth", deep, shallow)


def gradient_ratio(readings: pd.DataFrame, step: str) -> pd.Series:
    """Gradient norm of the deepest plain net, first over last hidden layer, per seed."""
    rows = figures.deepest(where(figures.select(readings, "grad_norm", step=step), model__skip="none"))
    return paired(rows, "depth", 1, rows["model.depth"].max() - 1, ratio=True)


def table(readings: pd.DataFrame) -> pd.DataFrame:
    found = figures.table(
        readings,
        {"model.skip": "net", "model.depth": "depth"},
        {
            f"{probe.replace('_', ' ')}, %": figures.errors(readings, probe)
            for probe in ("train_error", "validation_error", "test_error")
        },
    )
    return found.assign(net=found["net"].map(SKIPS))


def claims(readings: pd.DataFrame) -> list[Claim]:
    shallow, deep = ends(readings)
    errors = figures.deepest(figures.errors(readings))
    span = f"{deep} layers - {shallow} layers, points"
    return [
        Claim(
            statement="Plain nets degrade: the deeper one fits its own training data worse.",
            effect=f"training error, plain, {span}",
            values=change(readings, "train_error", "none"),
            at_least=2,
        ),
        Claim(
            statement="Residual nets do not degrade.",
            effect=f"training error, residual, {span}",
            values=change(readings, "train_error", "residual"),
            at_most=2,
        ),
        Claim(
            statement="Skips take away most of what depth costs the plain net.",
            effect=f"training error, {span}: plain's change - residual's change",
            values=change(readings, "train_error", "none") - change(readings, "train_error", "residual"),
            at_least=10,
        ),
        Claim(
            statement="At the largest depth, skips lower the test error.",
            effect=f"test error at {deep} layers, plain - residual, points",
            values=paired(errors, "model.skip", "none", "residual"),
            at_least=5,
        ),
        Claim(
            statement="The deep plain net's gradients do not vanish, neither at initialization ...",
            effect=f"gradient norm, first over last hidden layer, plain, {deep} layers, at initialization",
            values=gradient_ratio(readings, "first"),
            at_least=0.1,
            log=True,
        ),
        Claim(
            statement="... nor after training: degradation is not vanishing.",
            effect="the same after training",
            values=gradient_ratio(readings, "last"),
            at_least=0.1,
            log=True,
        ),
    ]


def windows(readings: pd.DataFrame) -> pd.DataFrame:
    """Batch errors averaged over windows of updates: a single batch is too noisy to see anything."""
    rows = figures.select(readings, "batch_error")
    width = max(1, int(rows["step"].max() + 1) // WINDOWS)
    middle = rows["step"] // width * width + width // 2
    keys = [name for name in rows.columns if name not in ("step", "value")]
    return rows.assign(step=middle).groupby([*keys, "step"], dropna=False)["value"].mean().reset_index()


def named(readings: pd.DataFrame, what: pd.Series) -> pd.DataFrame:
    """Lines of a panel: "plain, WHAT" and "residual, WHAT"."""
    return readings.assign(line=readings["model.skip"].map(SKIPS) + ", " + what)


def lines(*what: str) -> list[str]:
    return [f"{net}, {each}" for net in SKIPS.values() for each in what]


def figure(readings: pd.DataFrame) -> Figure:
    shallow, deep = ends(readings)
    drawing, axes = figures.panels(2, 2, height=5.4)
    curves = {
        "training error of the batches, %": windows(readings),
        "validation error, %": figures.select(readings, "validation_error"),
    }
    for panel, (label, errors) in zip(axes, curves.items(), strict=False):
        compared = figures.percent(errors[errors["model.depth"].isin([shallow, deep])])
        depths = compared["model.depth"].astype(str) + " layers"
        labels = lines(f"{shallow} layers", f"{deep} layers")
        figures.draw(panel, named(compared, depths), "step", "line", labels=labels, ylabel=label)
    ends_on = [
        figures.errors(readings, probe).assign(images=images, probe="error")
        for probe, images in (("train_error", "training images"), ("test_error", "test images"))
    ]
    final = pd.concat(ends_on)
    figures.draw(
        axes[2], named(final, final["images"]), "model.depth", "line", labels=lines("training images", "test images")
    )
    axes[2].set_ylabel("error at the end, %")
    axes[2].set_xticks(sorted(readings["model.depth"].unique()))
    hidden = figures.hidden(figures.deepest(readings))
    when = {"first": "at initialization", "last": "trained"}
    profiles = pd.concat([figures.select(hidden, "grad_norm", step=step).assign(when=when[step]) for step in when])
    figures.draw(axes[3], named(profiles, profiles["when"]), "depth", "line", labels=lines(*when.values()))
    for panel in axes:
        figures.legend_above(panel)
    return drawing
