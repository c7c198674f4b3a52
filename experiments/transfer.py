"""What features that were learnt on one data set are worth on another, and how far up a network they are general.

Left: test error against the number of examples of the target: from scratch, with a copied backbone that is frozen
behind a new head, unfrozen at its end, or fine-tuned as a whole, and with a backbone of random features. Right: error
at one size against the number of blocks that are copied from the source, the others being drawn anew; the copied ones
are frozen or trained on (Yosinski et al. 2014, figure 2). The dashed line is training from scratch.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from depthlab import figures
from depthlab.figures import Claim, by_seed, paired, where

PROBES = ("test_error",)

SCRATCH, RANDOM = "from scratch", "random features, linear head"
FROZEN, FROZEN_MLP = "frozen, linear head", "frozen, MLP head"
LAST, SLOW, TUNED = "last two blocks trained", "fine-tuned, rate / 10", "fine-tuned"
WAYS = (SCRATCH, RANDOM, FROZEN, FROZEN_MLP, LAST, SLOW, TUNED)
COPIED = {"frozen": "copied blocks frozen", "trained": "copied blocks trained on"}
LABELS = {name: name for name in WAYS} | COPIED


def way(run: pd.Series) -> str | None:
    """How a run came by its features, among the ways of panel a; None for one of panel b alone."""
    has_source, trained = len(run["transfer.source"]) > 0, run["transfer.trained"]
    if not pd.isna(run["transfer.copied"]):
        return None
    if pd.isna(trained):
        tuned = TUNED if run["transfer.backbone_lr_factor"] == 1 else SLOW
        return tuned if has_source else SCRATCH
    if trained > 0:
        return LAST
    frozen = FROZEN if run["transfer.head"] == "linear" else FROZEN_MLP
    return frozen if has_source else RANDOM


def errors(readings: pd.DataFrame) -> pd.DataFrame:
    """Test error of each run in percent, and its way; a run that diverged answers at random."""
    classes = len(readings["data.classes"].iloc[0]) if "data.classes" in readings else 0
    rows = figures.errors(readings, diverged=100 - 100 / (classes or 10))
    return rows.assign(way=rows.apply(way, axis=1))


def by_size(readings: pd.DataFrame) -> pd.DataFrame:
    rows = errors(readings)
    return rows[rows["way"].notna()]


def by_blocks(readings: pd.DataFrame) -> pd.DataFrame:
    """The runs of panel b, with `copied`, which is frozen or trained."""
    rows = errors(readings)
    rows = rows[rows["transfer.copied"].notna()]
    return rows.assign(copied=np.where(rows["transfer.trained"].isna(), "trained", "frozen"))


def reference(readings: pd.DataFrame) -> pd.DataFrame:
    """From scratch, at the size of panel b."""
    return where(by_size(readings), way=SCRATCH, data__train_size=by_blocks(readings)["data.train_size"].iloc[0])


def table(readings: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (size, name), part in by_size(readings).groupby(["data.train_size", "way"], sort=True):
        rows.append(row(size, str(name), None, part))
    for (count, copied), part in by_blocks(readings).groupby(["transfer.copied", "copied"], sort=True):
        rows.append(row(part["data.train_size"].iloc[0], COPIED[str(copied)], count, part))
    return pd.DataFrame(rows, dtype=object)


def row(size: object, backbone: str, count: object, part: pd.DataFrame) -> dict[str, object]:
    found = figures.interval(part["value"])
    return {"examples": size, "backbone": backbone, "blocks copied": count, "test error, %": found}


def claims(readings: pd.DataFrame) -> list[Claim]:
    sizes = by_size(readings)
    few, many = sizes["data.train_size"].min(), sizes["data.train_size"].max()
    least, most = where(sizes, data__train_size=few), where(sizes, data__train_size=many)
    return [
        *claims_on_fine_tuning(least, most, few, many),
        *claims_on_frozen_features(most, many),
        *claims_on_blocks(by_blocks(readings), by_seed(reference(readings))),
    ]


def claims_on_fine_tuning(least: pd.DataFrame, most: pd.DataFrame, few: int, many: int) -> list[Claim]:
    def gain(rows: pd.DataFrame) -> pd.Series:
        return paired(rows, "way", SCRATCH, TUNED)

    return [
        Claim(
            statement="With the fewest examples, a backbone that was trained on the source and is fine-tuned beats one "
            "from scratch.",
            effect=f"test error with {few} examples, from scratch - fine-tuned, points",
            values=gain(least),
            at_least=5,
        ),
        Claim(
            statement="The gain shrinks as examples are added.",
            effect=f"the same with {few} examples - with {many}, points",
            values=gain(least) - gain(most),
            at_least=5,
        ),
        Claim(
            statement="A smaller learning rate protects the backbone where examples are fewest.",
            effect=f"test error with {few} examples, fine-tuned - fine-tuned with a tenth of the rate, points",
            values=paired(least, "way", TUNED, SLOW),
            at_least=0,
        ),
    ]


def claims_on_frozen_features(most: pd.DataFrame, many: int) -> list[Claim]:
    return [
        Claim(
            statement="Frozen features of the source beat frozen random features.",
            effect=f"test error with {many} examples, linear head, random - copied, points",
            values=paired(most, "way", RANDOM, FROZEN),
            at_least=5,
        ),
        Claim(
            statement="With many examples a frozen backbone costs more than it gives ...",
            effect=f"test error with {many} examples, frozen with a linear head - from scratch, points",
            values=paired(most, "way", FROZEN, SCRATCH),
            at_least=2,
        ),
        Claim(
            statement="... and a larger head does not make up for it.",
            effect=f"test error with {many} examples, frozen with an MLP head - from scratch, points",
            values=paired(most, "way", FROZEN_MLP, SCRATCH),
            at_least=2,
        ),
    ]


def claims_on_blocks(blocks: pd.DataFrame, scratch: pd.Series) -> list[Claim]:
    frozen, trained = (where(blocks, copied=name) for name in COPIED)
    last, size = blocks["transfer.copied"].max(), blocks["data.train_size"].iloc[0]
    return [
        Claim(
            statement="The first block is general: copied and frozen it costs nothing.",
            effect=f"test error with {size} examples, first block frozen - from scratch, points",
            values=by_seed(where(frozen, transfer__copied=1)) - scratch,
            at_most=1,
        ),
        Claim(
            statement="The last are specific: frozen up to the head, error rises.",
            effect=f"test error with {size} examples, frozen, {last} blocks - 1 block, points",
            values=paired(frozen, "transfer.copied", last, 1),
            at_least=5,
        ),
        Claim(
            statement="Trained on, all of them can be copied without harm.",
            effect=f"test error with {size} examples, {last} blocks copied and trained on - from scratch, points",
            values=by_seed(where(trained, transfer__copied=last)) - scratch,
            at_most=1,
        ),
    ]


def figure(readings: pd.DataFrame) -> Figure:
    drawing, axes = figures.panels(2, 1, height=2.8)
    sizes, blocks = by_size(readings), by_blocks(readings)
    figures.draw(axes[0], sizes, "data.train_size", "way", labels=LABELS)
    figures.log_ticks(axes[0], sizes["data.train_size"])
    figures.draw(axes[1], blocks, "transfer.copied", "copied", labels=LABELS)
    level = figures.interval(reference(readings)["value"]).mean
    axes[1].axhline(level, color="black", linewidth=0.9, linestyle=(0, (3, 3)), label=f"{SCRATCH} (b)")
    axes[1].set_xticks(sorted(blocks["transfer.copied"].unique()))
    axes[1].set_title(f"{blocks['data.train_size'].iloc[0]} examples")
    for panel in axes:
        panel.set(ylabel="test error, %")
    figures.legend(drawing, "top")
    return drawing
