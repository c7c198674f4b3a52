"""What a search has found: a table of its trials, and which settings mattered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from depthlab import figures
from depthlab.config import Value
from depthlab.runs.store import replacing
from depthlab.tuning.outcomes import Outcome


def table(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    """A row for each trial: trial, state, validation_error, step, the settings under their names, run, about."""
    return pd.DataFrame(
        [
            {
                "trial": outcome.number,
                "state": outcome.state,
                "validation_error": outcome.error,
                "step": outcome.step,
                **{name: _plain(value) for name, value in outcome.settings.items()},
                "run": outcome.key,
                "about": outcome.about,
            }
            for outcome in outcomes
        ]
    ).convert_dtypes()


def write(folder: Path, outcomes: Sequence[Outcome], shares: Mapping[str, float]) -> list[str]:
    """Writes trials.csv, table.md and, if there are importances, their figure; returns the names of the files.

    Raises StoreError if they cannot be written.
    """
    rows = table(outcomes)
    files = {"trials.csv": figures.csv(rows).encode(), "table.md": figures.markdown(rows).encode()}
    if shares:
        rated = rows.assign(error=pd.array([outcome.rated for outcome in outcomes], dtype="Float64"))
        drawn = figures.importance(shares, rated[rated["error"].notna()])
        files |= {"importance.png": figures.render(drawn, "png"), "importance.svg": figures.render(drawn, "svg")}
    for name, content in files.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    return list(files)


def describe(outcomes: Sequence[Outcome], shares: Mapping[str, float]) -> list[str]:
    """The result in a few lines: counts, and how important each setting was."""
    counts = Counter(outcome.state for outcome in outcomes)
    lines = [f"{len(outcomes)} trials: {', '.join(f'{count} {state}' for state, count in counts.items())}"]
    if shares:
        lines += ["importance: " + ", ".join(f"{name} {share:.2f}" for name, share in shares.items())]
    return lines


def _plain(value: Value) -> Value:
    """A choice among numbers as a number again."""
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value
