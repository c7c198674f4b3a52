"""The page: every experiment's figure, claims and table in one HTML file that needs nothing else, and the claims alone.

All of it is computed from the committed readings, as the folders' own files are.
"""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from depthlab.figures import tables
from depthlab.figures.claims import Claim
from depthlab.figures.intervals import Interval
from depthlab.figures.results import PROVENANCE, Experiment, read

VERDICTS = ("supported", "undecided", "not supported")


@dataclass(frozen=True)
class Cell:
    """What a cell of a table shows, and the number it is sorted by; None: it is sorted as text."""

    text: str
    number: float | None = None


@dataclass(frozen=True)
class Chapter:
    """An experiment's part of the page.

    about: paragraphs of its script's docstring; figure: its SVG; data: names of the data sets.
    """

    name: str
    title: str
    about: Sequence[str]
    figure: bytes
    claims: Sequence[Claim]
    table: pd.DataFrame
    data: Sequence[str]
    provenance: Mapping[str, Any]

    @property
    def image(self) -> str:
        """The figure as the address of an image."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.figure).decode()}"

    @property
    def command(self) -> str:
        """What makes the figure, typed in a checkout."""
        settings = " ".join(self.provenance["overrides"])
        return f"make {self.name} SCALE={self.provenance['scale']}" + (f' ARGS="{settings}"' if settings else "")

    @property
    def cost(self) -> str:
        """What its runs took."""
        runs = self.provenance["runs"]
        hours = runs["process_seconds"] * max(runs["threads"]) / 3600
        time = f"{hours:.1f} core-hours" if hours >= 1 else f"{60 * hours:.0f} core-minutes"
        return f"{runs['count']} runs, {time} on {', '.join(runs['devices'])}"

    @property
    def verdicts(self) -> Mapping[str, int]:
        """How many claims have each verdict."""
        return _counts(self.claims)

    @property
    def heads(self) -> Sequence[str]:
        """Of the table's columns."""
        return [str(name) for name in self.table.columns]

    @property
    def rows(self) -> Sequence[Sequence[Cell]]:
        """Of the table."""
        return [[_cell(value) for value in row] for row in self.table.astype(object).itertuples(index=False)]


def chapter(folder: Path, experiment: Experiment) -> Chapter:
    """What the page says of an experiment, from its folder.

    Raises OSError if the folder lacks one of its files: draw the experiment first.
    """
    readings = read(folder)
    title, *about = (experiment.__doc__ or "").strip().split("\n\n")
    return Chapter(
        name=folder.name,
        title=" ".join(title.split()).rstrip("."),
        about=[" ".join(paragraph.split()) for paragraph in about],
        figure=(folder / "figure.svg").read_bytes(),
        claims=experiment.claims(readings.copy()),
        table=experiment.table(readings.copy()),
        data=sorted(readings["data.name"].unique()),
        provenance=json.loads((folder / PROVENANCE).read_bytes()),
    )


def page(chapters: Sequence[Chapter]) -> str:
    """One HTML file with everything in it: no network, no server, no other file."""
    import jinja2  # noqa: PLC0415 - which drawing a figure does without

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = tables.number
    verdicts = _counts([claim for each in chapters for claim in each.claims])
    return environment.get_template("report.html").render(chapters=chapters, verdicts=verdicts)


def claims_table(chapters: Sequence[Chapter]) -> str:
    """Markdown: every claim of every experiment with its effect and verdict, in a row each."""
    rows = []
    for each in chapters:
        for claim in each.claims:
            found = claim.interval
            span = f"{tables.number(found.mean)} [{tables.number(found.low)}, {tables.number(found.high)}]"
            rows.append([f"`{each.name}`", claim.statement, claim.effect, span, claim.bound, claim.verdict])
    heads = ["figure", "claim", "effect", "mean [95 % interval]", "bound", "verdict"]
    return tables.pipe_table(heads, rows, ["left", "left", "left", "right", "left", "left"])


def _counts(claims: Sequence[Claim]) -> Mapping[str, int]:
    counts = Counter(str(claim.verdict) for claim in claims)
    return {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}


def _cell(value: object) -> Cell:
    number = value.mean if isinstance(value, Interval) else value
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool) and math.isfinite(number)
    return Cell(tables.cell_text(value), float(number) if is_number else None)  # type: ignore[arg-type]
