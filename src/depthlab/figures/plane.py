"""What a net decides on the plane of its inputs, under the points that it should tell apart."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb

from depthlab.figures.style import HUES

BRIGHTEST = 255
"""A coordinate of a point is the value of a pixel."""

TINT = 0.65
"""How far the colour of a region is from its points' towards white."""


def decisions(readings: pd.DataFrame) -> npt.NDArray[np.int64]:
    """The class at each point of the lattice, (rows, columns), from below and from the left: one run's probe decision.

    Raises ValueError for readings of several runs, of none, or of a lattice with gaps.
    """
    rows = readings[readings["probe"] == "decision"]
    if rows["key"].nunique() != 1:
        raise ValueError(f"decisions of one run, given {rows['key'].nunique()}; name the probe, and select a run")
    place = rows["layer"].str.split(".", expand=True)[[1, 2]].astype(int).to_numpy()
    across, up = place.max(axis=0) + 1
    if len(rows) != across * up or len(np.unique(place, axis=0)) != len(rows):
        raise ValueError(f"{len(rows)} decisions do not fill a lattice of {across} x {up} points")
    lattice = np.empty((up, across), dtype=np.int64)
    lattice[place[:, 1], place[:, 0]] = rows["value"].astype(int)
    return lattice


def draw_decisions(
    axes: Axes, readings: pd.DataFrame, points: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]
) -> None:
    """Tints the plane in the colours of the classes that one run decides for, and puts points over it.

    points: (n, 2) in pixels, 0..255; labels: (n,), of as many classes as there are hues. Raises ValueError as
    `decisions` does.
    """
    lattice = decisions(readings)
    up, across = (BRIGHTEST / (count - 1) / 2 for count in lattice.shape)  # half of a lattice cell
    tints = ListedColormap([tuple(1 - (1 - part) * (1 - TINT) for part in to_rgb(hue)) for hue in HUES])
    extent = (-across, BRIGHTEST + across, -up, BRIGHTEST + up)
    axes.imshow(lattice, origin="lower", extent=extent, cmap=tints, vmin=0, vmax=len(HUES) - 1)
    axes.scatter(points[:, 0], points[:, 1], s=1.5, color=[HUES[label] for label in labels], linewidths=0)
    axes.set(xlabel="x (pixel value)", ylabel="y (pixel value)")
    axes.grid(visible=False)
