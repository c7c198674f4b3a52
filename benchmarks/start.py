"""How long a command takes from cold: its help, a run of ten updates, a figure of a thousand finished runs."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measuring import circumstances, interleaved

from depthlab.cli import experiments
from depthlab.cli.compose import Composer
from depthlab.config import RunConfig
from depthlab.figures.tables import pipe_table
from depthlab.runs import Run, Status

RESULT = Path(__file__).parent / "results" / "start.md"
FIGURES = {"quickstart": ["seed=range(167)"], "initialization": []}
"""At scale laptop, 1,002 and 915 runs; the second draws theory over planes of settings."""


def configs(name: str, overrides: Sequence[str]) -> list[RunConfig]:
    """The runs of an experiment at scale laptop."""
    launches = experiments.load(name).launches(Composer(experiments.folder("configs")), "laptop", overrides)
    return [launch.run for launch in launches]


def made_up(config: RunConfig, random: np.random.Generator) -> pd.DataFrame:
    """Readings such as a run of the config would hold, of random values."""
    layers = range(1, config.model.depth + 1)
    steps = range(config.train.eval_every, config.train.steps + 1, config.train.eval_every)
    places: list[tuple[int, str, int, str]] = [
        *((0, f"layer_{layer}", layer, probe) for layer in layers for probe in ("backward_norm", "grad_norm")),
        *((step, "network", 0, "validation_error") for step in steps),
        *((config.train.steps, "network", 0, probe) for probe in ("train_error", "test_error")),
    ]
    table = pd.DataFrame(places, columns=["step", "layer", "depth", "probe"])
    return table.assign(value=random.uniform(0.05, 0.95, len(table)))


def finish(found: Sequence[RunConfig], root: Path) -> None:
    """Writes finished runs of made-up readings, as a training would write them."""
    random = np.random.default_rng(0)
    about: dict[str, Any] = {"host": "made up", "pid": 0, "device": "cpu", "threads": 1, "commit": None}
    done = {"status": Status.DONE, "metrics": {"test_error": 0.5}, "wall_seconds": 1.0, **about}
    for config in found:
        run = Run.of(config, root)
        with run.locked():
            run.begin(config, about)
            run.end(made_up(config, random), {"steps": config.train.steps, **done})


def seconds(command: Sequence[str], results: Path | None = None) -> float:
    """Of a whole command in a process of its own; without `results` in an empty results folder."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "DEPTHLAB_RESULTS": str(results or folder), "OMP_NUM_THREADS": "1"}
        begin = time.perf_counter()
        ended = subprocess.run(
            [sys.executable, "-m", "depthlab", *command],
            env=environment, cwd=folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
        taken = time.perf_counter() - begin
    if ended.returncode:
        raise RuntimeError(f"depthlab {' '.join(command)} failed: {ended.stderr[-2000:]}")
    return taken


def table(taken: dict[str, list[float]], goals: dict[str, float]) -> str:
    """Markdown: seconds of every command, median and quartiles, beside its goal."""

    def rows() -> Iterator[list[str]]:
        for name, each in taken.items():
            low, middle, high = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
            yield [name, f"{middle:.2f} [{low:.2f}, {high:.2f}]", f"{goals[name]:g}"]

    return pipe_table(["", "seconds", "goal"], list(rows()), ["left", "right", "right"])


def main() -> None:
    """Measures, and prints the page."""
    parser = argparse.ArgumentParser(description="From cold: help, a run of ten updates, figures of finished runs.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", nargs="?", type=Path, const=RESULT, help="also write it (default: results/ here)")
    options = parser.parse_args()
    ten = ["train", "data=digits", "train.steps=10"]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        contenders = {
            "`depthlab --help`": partial(seconds, ["--help"]),
            f"`depthlab {' '.join(ten)}`": partial(seconds, ten),
        }
        goals, counts = [0.5, 4.0], []
        for name, overrides in FIGURES.items():
            found = configs(name, overrides)
            finish(found, root / name / "runs")
            counts.append(len(found))
            label = f"`depthlab figure {name}`, {len(found):,} runs"
            contenders[label] = partial(seconds, ["figure", name, *overrides], root / name)
            goals.append(3.0)
        taken = interleaved(contenders, options.rounds)
    medians = [f"{statistics.median(each):.2g}" for each in taken.values()]
    page = f"""# From cold

> `depthlab --help` answers after {medians[0]} s, a run of ten updates on the digits ends after {medians[1]} s, and a
> figure with its tables and claims is drawn from {counts[0]:,} finished runs in {medians[2]} s, from {counts[1]} with
> theory over planes of settings in {medians[3]} s.

{circumstances()}
Whole commands in turn, each in a fresh process on one thread, {options.rounds} rounds; medians with quartiles. Files
are in the system's cache, as they are when a command was typed before. The finished runs hold made-up readings, written
as a training writes them.

{table(taken, dict(zip(taken, goals, strict=True)))}"""
    print(page)
    if options.output is not None:
        options.output.write_text(page)


if __name__ == "__main__":
    main()
