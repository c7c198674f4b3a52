"""`depthlab figure`: an experiment's figure, table and claims."""

from __future__ import annotations

import shlex
from argparse import Namespace
from pathlib import Path
from typing import Any

from depthlab import figures, runs
from depthlab.cli import experiments
from depthlab.cli.compose import Composer
from depthlab.config import ConfigError
from depthlab.runs.provenance import provenance


def figure(options: Namespace) -> int:
    """Draws an experiment."""
    experiment = experiments.load(options.name)
    script = experiments.script(options.name)
    folder = runs.results_root() / options.name
    if options.redraw and options.overrides:
        raise ConfigError(f"{options.overrides[0]} has no effect with --redraw, which draws the readings as they are")
    scale, overrides = experiments.take(options.overrides, "scale")
    claims = _redraw(folder, script) if options.redraw else _draw(folder, script, experiment, scale, overrides)
    for claim in claims:
        print(f"{claim.verdict:>13}: {claim.statement}")
    print(f"wrote {folder}/figure.png, table.md, claims.md")
    return 0


def _redraw(folder: Path, script: Any) -> list[figures.Claim]:
    try:
        return figures.redraw(folder, script)
    except OSError as error:
        raise runs.StoreError(f"cannot redraw {folder}: {error}") from error


def _draw(
    folder: Path, script: Any, experiment: experiments.Experiment, scale: str | None, overrides: list[str]
) -> list[figures.Claim]:
    scale = experiments.check_scale(scale)
    composer = Composer(experiments.folder("configs"))
    configs = [launch.run for launch in experiment.launches(composer, scale, overrides)]
    try:
        readings = runs.load_readings(configs, script.PROBES)
    except runs.StoreError as error:
        again = shlex.join(["depthlab", "train", f"experiment={experiment.name}", f"scale={scale}", *overrides])
        raise runs.StoreError(f"{error}; train them with: {again}") from None
    origin = {"experiment": experiment.name, "scale": scale, "overrides": overrides, **provenance()}
    with runs.writing(folder):
        return figures.write(folder, script, readings, {**origin, "runs": runs.cost(configs)})
