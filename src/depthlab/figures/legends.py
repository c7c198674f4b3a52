"""Legends outside of the panels, where they hide no data: of a figure, or of one panel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from depthlab.figures.axes import UNDEFINED

LINE_HEIGHT = 0.17  # inches


def legend(
    figure: Figure,
    side: Literal["right", "top"] = "right",
    *,
    of: Sequence[Axes] | None = None,
    first: Sequence[str] = (),
) -> None:
    """One legend for all panels, outside of them, where it hides no data; above them it adds to the figure's height.

    `of`: the panels whose lines it names, where others have legends of their own. Lines stand in the order in which the
    panels have them, those labelled as in `first` before the others and in its order: where the first panel lacks some.
    """
    handles, labels = _entries(figure.axes if of is None else of, first)
    if side == "right":
        figure.legend(handles, labels, loc="outside right upper")
    else:
        columns = _columns_that_fit(figure, labels)
        rows = math.ceil(sum(label.count("\n") + 1 for label in labels) / columns)
        figure.set_figheight(figure.get_figheight() + LINE_HEIGHT * rows)
        figure.legend(handles, labels, loc="outside upper left", ncols=columns)


def legend_beside(axes: Axes) -> None:
    """A legend to the right of one panel, for lines that its row has in common."""
    axes.legend(*_entries([axes]), loc="center left", bbox_to_anchor=(1.02, 0.5), borderaxespad=0)


def legend_above(axes: Axes) -> None:
    """A legend in two columns above one panel, for lines of its own; what bands and bars are, below the last line."""
    handles, labels = _entries([axes])
    labels = [label.replace("\n", " ") for label in labels]
    axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1.1), ncols=2, borderaxespad=0, columnspacing=1)


def _entries(panels: Iterable[Axes], first: Sequence[str] = ()) -> tuple[list[Any], list[str]]:
    """Handles and labels of all panels, each label once: first the lines, then what explains them."""
    entries: dict[str, Any] = {}
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        entries |= {label: handle for label, handle in zip(labels, handles, strict=True) if label not in entries}
    order = {label: place for place, label in enumerate(first, -len(first))}
    names = sorted(entries, key=lambda label: (_explains(label), order.get(label, 0)))
    return [entries[name] for name in names], names


def _explains(label: str) -> bool:
    """Whether an entry says what is drawn rather than of whom."""
    return label in (UNDEFINED, "theory") or "interval" in label


def _columns_that_fit(figure: Figure, labels: list[str]) -> int:
    widest = max((len(line) for label in labels for line in label.split("\n")), default=1)
    return max(1, int(figure.get_figwidth() / (0.5 + 0.065 * widest)))
