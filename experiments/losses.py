"""Squared error learns through a softmax that starts out sure of one class only after a plateau; cross-entropy at once.

Top: the gradient that enters the head at initialization against the logit with which the output begins, with its closed
form, whose one scale is cross-entropy's value without saturation; validation error against updates without and with
saturation. Bottom: that gradient during training; test error against saturation; and, at one saturation, against the
learning rate. Where learning rates are not told apart, each loss has the one that validates best.
"""

import functools

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab import figures, theory
from depthlab.figures import Claim, by_seed, paired, where

PROBES = ("backward_norm", "validation_error", "test_error")

LOSSES = {"cross_entropy": "cross-entropy", "brier": "squared error of softmax", "mse": "squared error of logits"}
CLASSES = 10
SHOWN = 10  # the saturation of the curves
LEARNT = 0.5  # validation error below which a net counts as having begun to learn


def gradient(loss: str, bias: float) -> float:
    """Root mean square over labels of |dL/dz| in closed form, where the first class has logit `bias` and the rest 0."""
    logits = np.zeros((CLASSES, CLASSES))
    logits[:, 0] = bias
    found = theory.logit_gradient(logits, np.arange(CLASSES), loss=loss)
    return float(np.sqrt(np.square(found).sum(axis=1).mean()))


def into_head(readings: pd.DataFrame) -> pd.DataFrame:
    """|dL/dz| of the head, a batch's."""
    rows = figures.select(readings, "backward_norm")
    return where(rows, depth=rows["depth"].max())


def at_start(readings: pd.DataFrame) -> pd.DataFrame:
    """The same before the first update, which no learning rate has touched."""
    return where(into_head(readings), step=0, train__lr=readings["train.lr"].min())


def best(readings: pd.DataFrame) -> pd.DataFrame:
    return figures.tuned(readings, "train.lr", ["train.loss", "model.head_bias"])


def plateau(readings: pd.DataFrame) -> pd.DataFrame:
    return figures.updates_until(readings, "validation_error", LEARNT)


def table(readings: pd.DataFrame) -> pd.DataFrame:
    errors = figures.errors(best(readings))
    conditions = ["train.loss", "model.head_bias"]
    found = figures.table(
        errors,
        dict(zip(conditions, ("loss", "initial logit"), strict=True)),
        {
            "gradient into the head": figures.intervals(at_start(readings), conditions, log=True),
            "best learning rate": "train.lr",
            "updates to half the errors": plateau(best(readings)),
            "test error, %": errors,
        },
    )
    found["initial logit"] = found["initial logit"].map("{:g}".format)
    return found.assign(loss=found["loss"].map(LOSSES))


def deviation(start: pd.DataFrame) -> pd.Series:
    """Per seed, the largest |ln(measured / predicted)|, both over cross-entropy's value without saturation."""
    reference = by_seed(where(start, train__loss="cross_entropy", model__head_bias=0))
    predicted = [gradient(*row) for row in start[["train.loss", "model.head_bias"]].itertuples(index=False)]
    ratio = start["value"] / start["seed"].map(reference) / predicted * gradient("cross_entropy", 0)
    deviations = start.assign(value=np.abs(np.log(ratio)))
    return deviations.groupby("seed")["value"].max()


def cost(errors: pd.DataFrame, loss: str, bias: float) -> pd.Series:
    """What saturation adds to the test error, in points, per seed."""
    return paired(where(errors, train__loss=loss), "model.head_bias", bias, 0)


def claims(readings: pd.DataFrame) -> list[Claim]:
    return [*claims_on_gradients(at_start(readings)), *claims_on_errors(best(readings))]


def claims_on_gradients(start: pd.DataFrame) -> list[Claim]:
    def change(loss: str) -> pd.Series:
        return paired(where(start, train__loss=loss), "model.head_bias", SHOWN, 0, ratio=True)

    return [
        Claim(
            statement="The gradient that a loss sends into the head at initialization is that of the closed form.",
            effect="largest |ln(measured / predicted)| of all losses and saturations",
            values=deviation(start),
            at_most=0.1,
        ),
        Claim(
            statement="An output that is sure of one class takes the gradient away from the squared error of softmax.",
            effect=f"gradient into the head, initial logit {SHOWN} over 0",
            values=change("brier"),
            at_most=0.01,
            log=True,
        ),
        Claim(
            statement="It does not take it away from cross-entropy.",
            effect=f"gradient into the head, initial logit {SHOWN} over 0",
            values=change("cross_entropy"),
            at_least=1,
            log=True,
        ),
    ]


def claims_on_errors(tuned: pd.DataFrame) -> list[Claim]:
    delays, errors, worst = plateau(tuned), figures.errors(tuned), tuned["model.head_bias"].max()
    return [
        Claim(
            statement="Squared error of a saturated softmax begins with a plateau, at its best learning rate too.",
            effect=f"updates to half the errors, squared error of softmax - cross-entropy, initial logit {SHOWN}",
            values=paired(where(delays, model__head_bias=SHOWN), "train.loss", "brier", "cross_entropy"),
            at_least=50,
        ),
        Claim(
            statement="Where the output is saturated enough it learns nothing at any learning rate tried; "
            "cross-entropy pays little.",
            effect=f"test error, initial logit {worst:g} - 0, points: squared error of softmax - cross-entropy",
            values=cost(errors, "brier", worst) - cost(errors, "cross_entropy", worst),
            at_least=50,
        ),
        Claim(
            statement="The square alone is not to blame: taken of the logits it learns from the same start.",
            effect=f"test error, initial logit {worst:g}, squared error of softmax - of logits, points",
            values=paired(where(errors, model__head_bias=worst), "train.loss", "brier", "mse"),
            at_least=50,
        ),
    ]


def draw_theory(axes: Axes, start: pd.DataFrame) -> None:
    """The closed form, to the scale of cross-entropy's value without saturation."""
    unsaturated = where(start, train__loss="cross_entropy", model__head_bias=0)["value"]
    scale = figures.interval(unsaturated, log=True).mean / gradient("cross_entropy", 0)
    biases = np.linspace(0, start["model.head_bias"].max(), 50)
    for loss in LOSSES:
        figures.theory(axes, biases, np.array([scale * gradient(loss, bias) for bias in biases]))


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(3, 2, height=4.6)
    tuned, worst = best(readings), readings["model.head_bias"].max()
    curves, errors = figures.percent(figures.select(tuned, "validation_error")), figures.errors(readings)
    draw = functools.partial(figures.draw, by="train.loss", labels=LOSSES)
    draw_errors = functools.partial(figures.draw_errors, by="train.loss", labels=LOSSES)
    draw(axes[0], at_start(readings), "model.head_bias", title="at initialization")
    draw_theory(axes[0], at_start(readings))
    draw_errors(axes[1], where(curves, model__head_bias=0), "step", title="initial logit 0")
    draw_errors(axes[2], where(curves, model__head_bias=SHOWN), "step", title=f"initial logit {SHOWN}")
    draw(axes[3], where(into_head(tuned), model__head_bias=SHOWN), "step", title=f"initial logit {SHOWN}")
    draw_errors(axes[4], figures.errors(tuned), "model.head_bias", title="best learning rate")
    draw_errors(axes[5], where(errors, model__head_bias=worst), "train.lr", title=f"initial logit {worst:g}")
    figures.log_ticks(axes[5], readings["train.lr"])
    figures.legend(drawing, "top")
    return drawing
