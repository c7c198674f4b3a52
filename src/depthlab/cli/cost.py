"""`depthlab cost`: what a sweep would take, before it starts."""

from __future__ import annotations

import sys
import time
from argparse import Namespace

from tqdm import tqdm

from depthlab import runs
from depthlab.cli import experiments
from depthlab.cli.train import one_launch
from depthlab.training import available_memory, resolve_device

UNITS = (("hours", 3600.0), ("minutes", 60.0), ("seconds", 1.0))


def cost(options: Namespace) -> int:
    """Rehearses one run of each kind, and tells what all that are missing would take; 1 if one cannot be rehearsed."""
    launches, _ = experiments.launches(options.overrides, multirun=True)
    launch, began = one_launch(launches), time.monotonic()
    with tqdm(unit="kind", disable=not sys.stderr.isatty(), dynamic_ncols=True) as bar:

        def progress(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        found = runs.forecast(
            [each.run for each in launches],
            device=resolve_device(launch.device),
            launch=launch.sweep,
            most_kinds=options.kinds,
            progress=progress,
        )
    print(f"{found.missing} runs to train; {found.finished} are finished")
    if found.missing:
        _tell(found, time.monotonic() - began)
    return 1 if found.failures else 0


def _tell(found: runs.Forecast, taken: float) -> None:
    cores = found.packing.threads
    print(f"about {_time(cores * found.run_seconds, 'core-')}; about {_time(found.wall_seconds)} with {found.packing}")
    print(f"largest run: {found.memory / 2**30:.1f} GiB, and {available_memory() / 2**30:.1f} GiB are free")
    print(
        f"estimated in {_time(taken)} from the first updates of {found.rehearsed} of {found.kinds} kinds of runs, "
        f"as if none diverged or stopped early"
    )
    for reason, count in found.failures:
        print(f"{count} runs are not counted, since one of them failed: {reason}", file=sys.stderr)


def _time(seconds: float, prefix: str = "") -> str:
    """With two digits, in the largest unit of which there is one or more: 3.1 hours."""
    name, size = next((unit for unit in UNITS if seconds >= unit[1]), UNITS[-1])
    return f"{float(f'{seconds / size:.2g}'):g} {prefix}{name}"
