"""What the benchmarks share: contenders that are timed in turn, in one process, and tables of their ratios.

In turn is round by round, or, where a few hundredths matter, every fraction of a second (`Turns`): what slows the
machine for seconds then slows both of two alike.
"""

from __future__ import annotations

import datetime
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from depthlab.figures.tables import pipe_table
from depthlab.runs.provenance import provenance
from depthlab.training import available_cores

Contender = Callable[[], float]
"""Does a stretch of work, and returns what one piece of it took, in seconds."""


TURN = 0.3
"""Seconds after which one of two contenders lets the other go on; a piece of work that takes longer is a turn."""


@dataclass
class Turns:
    """What one of two contenders has done in its turns so far."""

    pieces: int = 0
    seconds: float = 0.0

    def add(self, pieces: int, seconds: float) -> None:
        """One turn more."""
        self.pieces += pieces
        self.seconds += seconds

    def take(self, piece: Callable[[], object], wait: Callable[[], object] = lambda: None) -> None:
        """Takes one; wait: returns when the device has done its work."""
        wait()
        begin = time.perf_counter()
        done = 0
        while done == 0 or time.perf_counter() - begin < TURN:
            piece()
            done += 1
        wait()
        self.add(done, time.perf_counter() - begin)

    @property
    def mean(self) -> float:
        """Seconds of one piece."""
        return self.seconds / self.pieces


def interleaved(contenders: Mapping[str, Contender], rounds: int, title: str = "") -> dict[str, list[float]]:
    """Seconds of every contender in every round, each in an order of its own: what slows the machine slows all."""
    order, shuffle = list(contenders), random.Random(0).shuffle
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with tqdm(total=rounds * len(order), desc=title) as progress:
        for _ in range(rounds):
            shuffle(order)
            for name in order:
                progress.set_postfix_str(name)
                seconds[name].append(contenders[name]())
                progress.update()
    return seconds


def ratios(seconds: Mapping[str, Sequence[float]], name: str, over: str) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the speed of one contender over that of another, round by round."""
    each = sorted(slow / fast for slow, fast in zip(seconds[over], seconds[name], strict=True))
    low, middle, high = statistics.quantiles(each, n=4, method="inclusive") if len(each) > 1 else each * 3
    return low, middle, high


def speed(seconds: Mapping[str, Sequence[float]], name: str, over: str) -> str:
    """The median of these, for a headline."""
    return f"{ratios(seconds, name, over)[1]:.2g}"


def speed_table(seconds: Mapping[str, Sequence[float]], over: Sequence[str], unit: str, pieces: float = 1) -> str:
    """Markdown: pieces a second (median), and for each contender its speed over those of `over`."""
    heads = ["", f"{unit}/s", *(f"speed over {name}" for name in over)]
    rows = []
    for name, times in seconds.items():
        row = [name, f"{pieces / statistics.median(times):,.3g}"]
        for other in over:
            low, middle, high = ratios(seconds, name, other)
            row.append("1" if name == other else f"{middle:.3g} [{low:.3g}, {high:.3g}]")
        rows.append(row)
    return pipe_table(heads, rows, ["left", *["right"] * (1 + len(over))])


def circumstances(device: torch.device | None = None, more: Mapping[str, str] | None = None) -> str:
    """Machine, versions, commit and date, in Markdown; more: versions of other packages."""
    code = provenance()
    name = torch.cuda.get_device_name(device) if device is not None and device.type == "cuda" else "CPU"
    versions = {**code["versions"], **(more or {})}
    return (
        f"- machine: {code['machine']['processor']}, {available_cores()} cores, {torch.get_num_threads()} used\n"
        f"- device: {name}\n"
        f"- versions: {', '.join(f'{package} {version}' for package, version in versions.items())}\n"
        f"- commit: {code['commit']}{' with changes' if code['dirty'] else ''}\n"
        f"- date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}\n"
    )
