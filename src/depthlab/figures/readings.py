"""The long table of readings: its columns, and choosing rows of it.

One row per run, step, layer and probe: `key` and `status` of the run, the settings that its experiment varies under
their dotted names (`model.depth`, ..., always `seed`), `step` (updates done), `layer` and `depth` (weight layer counted
from 1 at the input; "network" and 0 for the whole net; "test.17.3" and 0 for its output for class 3 on test image 17,
"plane.7.31" and 0 for its decision in column 7 and row 31 of a lattice of inputs), `probe`, `value`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

READING = {"key": str, "status": str, "step": int, "layer": str, "depth": int, "probe": str, "value": float}
"""The columns that are not settings of the run."""

NETWORK = "network"
"""The `layer` of readings of the whole net."""


def factors(readings: pd.DataFrame) -> list[str]:
    """The columns that are settings of the run, the seed among them."""
    return [name for name in readings.columns if name not in READING]


def select(readings: pd.DataFrame, probe: str, *, step: int | str | None = None) -> pd.DataFrame:
    """The rows of one probe: of all steps, of one step, or of the "first" or "last" at which each run read it.

    A run that diverged is there with nan at every later step that other runs read, its end among them: averages and
    claims then are of all seeds, not of those that survived. Raises ValueError when no row is left, saying what there
    is.
    """
    rows = readings[readings["probe"] == probe]
    if rows.empty:
        raise ValueError(f"no readings of probe {probe}; there are {listed(readings['probe'])}")
    rows = pd.concat([rows, *_after_divergence(readings, rows)])
    if step is None:
        return rows
    if isinstance(step, str):
        of_run = rows.groupby("key")["step"]
        return rows[rows["step"] == of_run.transform("min" if step == "first" else "max")]
    chosen = rows[rows["step"] == step]
    if chosen.empty:
        raise ValueError(f"no readings of probe {probe} at step {step}; there are steps {listed(rows['step'])}")
    return chosen


def outcomes(readings: pd.DataFrame, probe: str) -> pd.DataFrame:
    """One row per run: a reading of the whole network at the end of training, nan for runs that diverged.

    Raises ValueError for a probe that is read per layer.
    """
    rows = select(readings, probe, step="last")
    if (rows["layer"] != NETWORK).any():
        raise ValueError(f"{probe} is read per layer and is no outcome of a run; select a layer, or take slopes")
    return rows


def where(readings: pd.DataFrame, **settings: object) -> pd.DataFrame:
    """The rows with these values of these columns, for whose dots stand two underscores: `train__lr=0.1`."""
    rows = readings
    for name, value in settings.items():
        rows = rows[rows[name.replace("__", ".")] == value]
    return rows


def over_layers(readings: pd.DataFrame) -> pd.DataFrame:
    """One row per run, step and probe: the mean of a reading over the layers that have it; nan if one of them is."""
    keys = [name for name in readings.columns if name not in ("layer", "depth", "value")]
    means = readings.groupby(keys, dropna=False, sort=False, observed=True)["value"]
    return means.agg(lambda each: each.mean(skipna=False)).reset_index()


def updates_until(readings: pd.DataFrame, probe: str, below: float) -> pd.DataFrame:
    """One row per run: the first step at which a reading of the whole network is below a level, as `value`.

    A run in which it never is has the last step that any run read: a lower bound. One that diverged before it was below
    has nan.
    """
    rows = select(readings, probe).sort_values("step")
    end = rows["step"].max()
    met = rows[rows["value"] < below].drop_duplicates("key")
    missed = rows[~rows["key"].isin(met["key"])].drop_duplicates("key", keep="last")
    never = missed["value"].where(missed["value"].isna(), end)
    return pd.concat([met.assign(value=met["step"].astype(float)), missed.assign(value=never)]).sort_index()


def tuned(readings: pd.DataFrame, setting: str, by: Sequence[str]) -> pd.DataFrame:
    """The rows of the runs whose `setting`, such as "train.lr", validates best in their condition, told apart by `by`.

    Best is the lowest mean over seeds of the validation error at the end; a value at which a seed diverged is best
    only where all values did. The test set has no part in the choice.
    """
    errors = outcomes(readings, "validation_error")
    means = errors.groupby([*by, setting], dropna=False)["value"].agg(lambda each: each.mean(skipna=False))
    best = means.reset_index().sort_values("value", kind="stable").drop_duplicates(list(by))
    return readings.merge(best[[*by, setting]], on=[*by, setting])


def keep(readings: pd.DataFrame, probes: Iterable[str]) -> pd.DataFrame:
    """The rows of these probes. Raises ValueError when one of them was never read, or by no means in some run.

    A run that diverged before it read any of them would be lost from the averages with its last row.
    """
    wanted = list(probes)
    there = set(readings["probe"].unique())
    if absent := [probe for probe in wanted if probe not in there]:
        raise ValueError(f"no readings of {', '.join(absent)}; there are {listed(readings['probe'])}")
    kept = readings[readings["probe"].isin(wanted)]
    if lost := sorted(set(readings["key"].unique()) - set(kept["key"].unique())):
        raise ValueError(
            f"the runs {', '.join(lost[:3])} hold no readings of {', '.join(wanted)} and would go uncounted; add a "
            f"probe that is read from the start, such as train_loss, to the experiment's PROBES"
        )
    return kept


def _after_divergence(readings: pd.DataFrame, rows: pd.DataFrame) -> Iterable[pd.DataFrame]:
    """Rows of nan for what runs that diverged would have read of the probe of `rows` had they gone on."""
    is_diverged = readings["status"] == "diverged"
    if not is_diverged.any():
        return
    steps = rows["step"].drop_duplicates()
    diverged = readings[is_diverged].drop_duplicates("key")
    for key, run in diverged.groupby("key"):
        read_before = rows[rows["key"] == key]
        template = read_before.drop_duplicates("layer")
        if template.empty and (rows["layer"] == NETWORK).all():
            template = run.assign(layer=NETWORK, depth=0, probe=rows["probe"].iloc[0])
        missed = steps[steps > read_before["step"].max()] if len(read_before) else steps
        yield from (template.assign(step=step, value=np.nan) for step in missed)


def listed(column: pd.Series[Any]) -> str:
    """The first dozen of a column's values, for an error."""
    values = [str(value) for value in column.drop_duplicates()]
    return ", ".join(values[:12]) + (", ..." if len(values) > 12 else "")
