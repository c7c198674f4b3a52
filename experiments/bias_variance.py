"""Squared bias falls with width; variance has a peak where a net begins to fit its training data, wrong labels and all.

Top: the squared error of a test image over training sets and initializations, cut into squared bias and variance, with
wrong labels and without; the variance of training sets alone, at one initialization. Bottom: share of test and training
images that are classified wrongly; squared error for three sizes of the training set against parameters over what they
have to fit. Dashed: the interpolation threshold, as many parameters as training images times classes. Means are over
groups of runs in which no two share a training set or a seed; there are as many groups as seeds.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from depthlab import figures
from depthlab.config import DATASETS
from depthlab.figures import Claim, by_seed, paired, where

PROBES = ("test_residual", "test_loss", "test_error", "train_error")

TERMS = {
    "error": "squared error",
    "bias": "squared bias",
    "variance": "variance",
    "of sets": "variance of training sets",
}
SHARES = {"test_error": "test images", "train_error": "training images"}
LINES = TERMS | SHARES  # so that all of them look different
UNIT = "squared error of a test image"
LOAD = "parameters / (training images x classes)"
BEFORE = 0.25  # of the threshold: where a net is large enough for the task and too small for the noise


def load(readings: pd.DataFrame) -> pd.Series:
    """Parameters of a net with one hidden layer over numbers that it has to fit; 1 is the interpolation threshold."""
    facts = DATASETS[readings["data.name"].iloc[0]]
    inputs, width = facts.channels * facts.size**2, readings["model.width"]
    parameters = (inputs + 1) * width + (width + 1) * facts.classes
    return parameters / (readings["data.train_size"].astype(float) * facts.classes)


def width_at_threshold(readings: pd.DataFrame) -> float:
    """Where `load` is 1 for the training sets that are compared; it is linear in the width."""
    facts = DATASETS[readings["data.name"].iloc[0]]
    return (size(readings) - 1) * facts.classes / (facts.channels * facts.size**2 + 1 + facts.classes)


def decomposed(readings: pd.DataFrame) -> pd.DataFrame:
    """A row per label noise, width, group of runs (as `seed`, from 0) and term of the squared error."""
    runs, residuals = figures.residuals(readings)
    settings = ["data.label_noise", "model.width", "seed"]
    found = figures.decompose(runs.assign(seed=figures.independent(runs)), residuals, settings)
    alone = figures.decompose(runs, residuals, settings)
    alone = where(alone, term="variance").assign(
        term="of sets", seed=alone["seed"].rank(method="dense").astype(int) - 1
    )
    return pd.concat([found, alone])


def crossed(readings: pd.DataFrame, probe: str) -> pd.DataFrame:
    """A number per run of the grids of parts, for each seed its mean over parts, in percent."""
    rows = figures.outcomes(readings, probe)
    rows = rows[rows["data.train_size"] == size(readings)]
    means = rows.groupby(["data.label_noise", "model.width", "seed"])["value"].agg(lambda each: each.mean(skipna=False))
    return (100 * means).reset_index()


def size(readings: pd.DataFrame) -> int:
    """Images in the training sets that are compared: those of which there are several."""
    return int(readings.loc[readings["data.part"] > 0, "data.train_size"].iloc[0])


def sizes(readings: pd.DataFrame) -> pd.DataFrame:
    """Squared error of a test image with wrong labels, of part 0, summed over classes."""
    rows = figures.outcomes(readings, "test_loss")
    rows = rows[(rows["data.part"] == 0) & (rows["data.label_noise"] > 0)]
    classes = DATASETS[readings["data.name"].iloc[0]].classes
    return rows.assign(value=classes * rows["value"], **{LOAD: load(rows)})


def peaks(readings: pd.DataFrame) -> pd.DataFrame:
    """The width at which the squared error is largest, by size of the training set and seed."""
    rows = sizes(readings).sort_values("value", ascending=False)
    highest = rows.drop_duplicates(["data.train_size", "seed"])
    return highest.assign(value=highest["model.width"].astype(float))


def places(readings: pd.DataFrame) -> tuple[int, int, int]:
    """Three widths that were tried with and without noise: well below the threshold, at it, and the largest."""
    rows = readings[(readings["data.train_size"] == size(readings)) & (readings["data.label_noise"] == 0)]
    distance = pd.Series(np.log(load(rows).to_numpy()), rows["model.width"]).groupby(level=0).first()
    before, at = (int((distance - np.log(part)).abs().idxmin()) for part in (BEFORE, 1))
    return before, at, int(distance.index.max())


def table(readings: pd.DataFrame) -> pd.DataFrame:
    terms, errors = decomposed(readings), {name: crossed(readings, name) for name in SHARES}
    runs = readings[readings["data.train_size"] == size(readings)]
    loads = pd.Series(load(runs).to_numpy(), runs["model.width"]).groupby(level=0).first()
    return figures.table(
        terms,
        {"data.label_noise": "label noise", "model.width": "width"},
        {
            LOAD: lambda part: float(loads[part["model.width"].iloc[0]]),
            **{name: where(terms, term=term) for term, name in TERMS.items()},
            **{f"errors on {SHARES[name]}, %": found for name, found in errors.items()},
        },
    )


def claims(readings: pd.DataFrame) -> list[Claim]:
    terms = decomposed(readings)
    return [*claims_on_widths(readings, terms), *claims_on_the_peak(readings, terms)]


def change(terms: pd.DataFrame, term: str, noise: float, treatment: int, baseline: int) -> pd.Series:
    """By how much a term is larger at one width than at another, per group of runs."""
    return paired(where(terms, term=term, data__label_noise=noise), "model.width", treatment, baseline)


def claims_on_widths(readings: pd.DataFrame, terms: pd.DataFrame) -> list[Claim]:
    before, at, widest = places(readings)
    narrowest, noisy = terms["model.width"].min(), terms["data.label_noise"].max()
    relief = change(terms, "error", noisy, at, widest)
    wrong = where(crossed(readings, "train_error"), data__label_noise=noisy, model__width=widest)
    return [
        Claim(
            statement="With wrong labels the error rises as a net widens towards the interpolation threshold ...",
            effect=f"{UNIT}, width {at} - {before}, label noise {noisy:g}",
            values=change(terms, "error", noisy, at, before),
            at_least=0.2,
        ),
        Claim(
            statement="... and falls again beyond it: the curve descends twice.",
            effect=f"{UNIT}, width {at} - {widest}, label noise {noisy:g}",
            values=relief,
            at_least=0.2,
        ),
        Claim(
            statement="What falls beyond the threshold is variance.",
            effect=f"share of that fall which is variance's, width {at} - {widest}",
            values=change(terms, "variance", noisy, at, widest) / relief,
            at_least=0.7,
        ),
        Claim(
            statement="Squared bias falls with width.",
            effect=f"squared bias, width {narrowest} - {widest}, label noise {noisy:g}",
            values=change(terms, "bias", noisy, narrowest, widest),
            at_least=0.2,
        ),
        Claim(
            statement="The widest net has fitted its training labels, the wrong ones too.",
            effect=f"errors on training images, %, width {widest}, label noise {noisy:g}",
            values=by_seed(wrong),
            at_most=1,
        ),
    ]


def claims_on_the_peak(readings: pd.DataFrame, terms: pd.DataFrame) -> list[Claim]:
    _, at, widest = places(readings)
    clean, noisy = terms["data.label_noise"].min(), terms["data.label_noise"].max()
    extra = change(terms, "error", noisy, at, widest) - change(terms, "error", clean, at, widest)
    found = peaks(readings)
    few, many = found["data.train_size"].min(), found["data.train_size"].max()
    return [
        Claim(
            statement="Wrong labels make the peak.",
            effect=f"{UNIT}, width {at} - {widest}: label noise {noisy:g} - {clean:g}",
            values=extra,
            at_least=0.2,
        ),
        Claim(
            statement="The peak stands at the interpolation threshold: with more data it moves to wider nets.",
            effect=f"width of the largest {UNIT}, {many} over {few} training images (threshold: {many / few:g})",
            values=paired(found, "data.train_size", many, few, ratio=True),
            at_least=2,
            log=True,
        ),
    ]


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(2, 2, height=4.8)
    terms = decomposed(readings).assign(probe=UNIT)
    noises = sorted(terms["data.label_noise"].unique(), reverse=True)
    for panel, noise in zip(axes, noises, strict=False):
        rows = where(terms, data__label_noise=noise)
        figures.draw(panel, rows, "model.width", "term", labels=LINES, title=f"label noise {noise:g}")
    axes[1].set(ylim=axes[0].get_ylim())
    title = f"label noise {noises[0]:g}"
    shares = pd.concat([crossed(readings, name).assign(images=name) for name in SHARES])
    shares = where(shares, data__label_noise=noises[0]).assign(probe="classified wrongly, %")
    figures.draw(axes[2], shares, "model.width", "images", labels=LINES, title=title)
    rows = sizes(readings).assign(probe=UNIT)
    names = {n: f"{n} training images" for n in sorted(rows["data.train_size"].unique())}
    figures.draw(axes[3], rows, LOAD, "data.train_size", labels=names, xscale="log", title=title)
    for panel, threshold in zip(axes, [*[width_at_threshold(readings)] * 3, 1], strict=True):
        panel.axvline(threshold, color="black", linewidth=0.9, linestyle=(0, (3, 3)), label="interpolation threshold")
    for panel in axes[:3]:
        figures.log_ticks(panel, terms["model.width"])
    figures.legend(drawing, "top")
    return drawing
