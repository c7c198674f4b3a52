"""The folder of an experiment: readings first, and everything else computed from the readings as they lie there.

readings.csv.gz, provenance.json; figure.png, figure.svg, table.md, table.csv, claims.md. Since tables, claims and
figure never see the readings in memory but only those read back, drawing again from a committed folder gives the same
bytes. Files are replaced one at a time and whole: nobody sees half a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from matplotlib.figure import Figure

from depthlab.figures import claims as claims_page
from depthlab.figures import stored, tables
from depthlab.figures.claims import Claim
from depthlab.figures.readings import keep
from depthlab.figures.style import render, style

READINGS, PROVENANCE = "readings.csv.gz", "provenance.json"


class Experiment(Protocol):
    """A script of `experiments/`: its docstring's first line says what the figure shows."""

    __doc__: str | None
    PROBES: tuple[str, ...]

    def table(self, readings: pd.DataFrame) -> pd.DataFrame:
        """The numbers behind the figure; cells may be `Interval`s."""

    def claims(self, readings: pd.DataFrame) -> list[Claim]:
        """What the figure is to show, as effects with bounds."""

    def figure(self, readings: pd.DataFrame) -> Figure:
        """The figure, drawn in the house style."""


def write(folder: Path, experiment: Experiment, readings: pd.DataFrame, provenance: Mapping[str, Any]) -> list[Claim]:
    """Writes the experiment's folder from readings of its runs and returns the claims.

    Only the rows of the experiment's PROBES are kept. `provenance` is what JSON can hold. The readings are stored
    before the experiment's own code runs, so an error in it costs no readings: mend it and `redraw`.
    Raises ValueError when a probe was never read or the readings are malformed, TypeError when the experiment lacks
    one of its parts.
    """
    _check(experiment)
    kept = stored.to_bytes(keep(readings, experiment.PROBES))
    source = json.dumps(provenance, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / READINGS, kept)
    _replace(folder / PROVENANCE, source.encode())
    return redraw(folder, experiment)


def redraw(folder: Path, experiment: Experiment) -> list[Claim]:
    """Makes table, claims and figure anew from the folder's own readings, without training; returns the claims.

    Raises FileNotFoundError when the folder has no readings.
    """
    _check(experiment)
    readings = read(folder)
    found = experiment.claims(readings.copy())
    if not found:
        raise ValueError(f"{_title(experiment)!r} claims nothing; a figure opens with the claim that it supports")
    for name, content in _products(experiment, readings, found):
        _replace(folder / name, content)
    return found


def read(folder: Path) -> pd.DataFrame:
    """The readings that the folder's figure, table and claims are computed from."""
    path = folder / READINGS
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; draw the experiment from finished runs first")
    return stored.read(path)


def _products(experiment: Experiment, readings: pd.DataFrame, found: list[Claim]) -> list[tuple[str, bytes]]:
    """All of them before any is stored: an error leaves the folder as it was."""

    def each() -> Iterator[tuple[str, bytes]]:
        table = experiment.table(readings.copy())
        yield "table.md", tables.markdown(table).encode()
        yield "table.csv", tables.csv(table).encode()
        yield "claims.md", claims_page.markdown(_title(experiment), found).encode()
        with style():
            figure = experiment.figure(readings.copy())
        yield "figure.png", render(figure, "png")
        yield "figure.svg", render(figure, "svg")

    return list(each())


def _title(experiment: Experiment) -> str:
    return (experiment.__doc__ or "").strip().split("\n")[0].rstrip(".")


def _check(experiment: Experiment) -> None:
    missing = [name for name in ("PROBES", "table", "claims", "figure") if not hasattr(experiment, name)]
    if not _title(experiment):
        missing.insert(0, "a docstring whose first line says what the figure shows")
    if missing:
        name = getattr(experiment, "__name__", repr(experiment))
        raise TypeError(f"the experiment {name} lacks {', '.join(missing)}")


def _replace(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
