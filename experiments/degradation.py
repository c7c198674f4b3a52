"""Without skips a deeper convolutional net fits its training data worse, though its gradients do not vanish.

Left: training error (of the batches, in training mode, averaged over windows) and validation error against updates.
Middle: error on training and test images at the end against depth. Right: gradient norm of every layer of the deepest
nets at initialization and after training. All nets have batch norm; only the skips differ (He et al. 2015, fig. 6).
"""

import pandas as pd
from matplotlib.figure import Figure

from depthlab import figures
from depthlab.figures import Claim

PROBES = ("batch_error", "validation_error", "train_error", "test_error", "grad_norm")

SKIPS = {"none": "plain", "residual": "residual"}
WINDOWS = 30


def ends(readings: pd.DataFrame) -> list[int]:
    """The shallowest and the deepest net."""
    return [readings["model.depth"].min(), readings["model.depth"].max()]


def change(readings: pd.DataFrame, probe: str, skip: str) -> pd.Series:
    """Error of the deepest net less that of the shallowest, in points, per seed."""
    errors = figures.outcomes(readings, probe)
    shallow, deep = ends(readings)
    return 100 * figures.paired(errors[errors["model.skip"] == skip], "model.depth", deep, shallow)


def gradient_ratio(readings: pd.DataFrame, step: str) -> pd.Series:
    """Gradient norm of the deepest plain net, first over last hidden layer, per seed."""
    depth = ends(readings)[1]
    rows = figures.select(readings, "grad_norm", step=step)
    rows = rows[(rows["model.skip"] == "none") & (rows["model.depth"] == depth)]
    return figures.paired(rows, "depth", 1, depth - 1, ratio=True)


def table(readings: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (skip, depth), _ in readings.groupby(["model.skip", "model.depth"], sort=True):
        row = {"net": SKIPS[skip], "depth": depth}
        for probe in ("train_error", "validation_error", "test_error"):
            errors = figures.outcomes(readings, probe)
            part = errors[(errors["model.skip"] == skip) & (errors["model.depth"] == depth)]
            row[f"{probe.replace('_', ' ')}, %"] = figures.interval(100 * part["value"])
        rows.append(row)
    return pd.DataFrame(rows)


def claims(readings: pd.DataFrame) -> list[Claim]:
    shallow, deep = ends(readings)
    errors = figures.outcomes(readings, "test_error")
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
            statement="At the largest depth, skips lower the test error.",
            effect=f"test error at {deep} layers, plain - residual, points",
            values=100 * figures.paired(errors[errors["model.depth"] == deep], "model.skip", "none", "residual"),
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
    return rows.assign(step=middle).groupby([*keys, "step"], dropna=False, as_index=False)["value"].mean()


def figure(readings: pd.DataFrame) -> Figure:
    shallow, deep = ends(readings)
    drawing, axes = figures.panels(2, 2, height=5.0)
    names = {(skip, depth): f"{SKIPS[skip]}, {depth} layers" for depth in (shallow, deep) for skip in SKIPS}

    def named(rows: pd.DataFrame) -> pd.DataFrame:
        pairs = pd.Series(list(rows[["model.skip", "model.depth"]].itertuples(index=False, name=None)), index=rows.index)
        return rows.assign(net=pairs.map(names)).dropna(subset="net")

    labels = {name: name for name in names.values()}
    figures.draw(axes[0], named(windows(readings)).assign(value=lambda rows: 100 * rows["value"]), "step", "net", labels=labels)
    axes[0].set_ylabel("training error (batches), %")
    validation = figures.select(readings, "validation_error")
    figures.draw(axes[1], named(validation).assign(value=lambda rows: 100 * rows["value"]), "step", "net", labels=labels)
    axes[1].set_ylabel("validation error, %")
    errors = pd.concat(
        figures.outcomes(readings, probe).assign(
            net=lambda rows, kind=kind: rows["model.skip"].map(SKIPS) + f", {kind}", probe="error"
        )
        for probe, kind in (("train_error", "training"), ("test_error", "test"))
    )
    kinds = {name: name for name in ("plain, training", "residual, training", "plain, test", "residual, test")}
    figures.draw(axes[2], errors.assign(value=100 * errors["value"]), "model.depth", "net", labels=kinds)
    axes[2].set_ylabel("error at the end, %")
    axes[2].set_xticks(sorted(readings["model.depth"].unique()))
    gradients = figures.select(readings[readings["depth"] < readings["model.depth"]], "grad_norm", step="first").assign(when="init")
    trained = figures.select(readings[readings["depth"] < readings["model.depth"]], "grad_norm", step="last").assign(when="trained")
    both = pd.concat([gradients, trained])
    both = both[both["model.depth"] == deep]
    both = both.assign(net=both["model.skip"].map(SKIPS) + ", " + both["when"])
    stages = {f"{net}, {when}": f"{net}, {text}" for when, text in (("init", "initial"), ("trained", "trained")) for net in SKIPS.values()}
    figures.draw(axes[3], both, "depth", "net", labels=stages)
    for panel in (axes[1], axes[2], axes[3]):
        figures.legend_beside(panel)
    return drawing


