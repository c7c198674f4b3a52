"""What is told of a sweep while it runs: one bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Iterable, Sequence

from tqdm import tqdm

from depthlab.config import RunConfig

LINE_EVERY = 60.0
"""Seconds between lines that tell how far a sweep is, where there is no terminal."""


class SweepProgress:
    """Updates done, of all runs together, and runs ended.

    `steps` is shared with the workers, who add to it, or is set by who watches them from afar; a run adds all its
    updates in the end, however early it ended. at_once: how many runs are trained at once while there are so many.
    """

    def __init__(self, configs: Sequence[RunConfig], at_once: int) -> None:
        self.steps = multiprocessing.get_context("spawn").Value("q", 0)
        self._total = sum(config.train.steps for config in configs)
        self._runs, self._ended, self._failed, self._at_once = len(configs), 0, 0, at_once
        self._begun = time.monotonic()
        self._next_line = self._begun + LINE_EVERY
        # smoothing 0: the rate is that of the whole sweep, since runs of different depths come and go
        self._bar = tqdm(
            total=self._total, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True, smoothing=0
        )

    def refresh(self) -> None:
        """Shows how far it is now."""
        done = min(self.steps.get_obj().value, self._total)
        if not self._bar.disable:
            self._bar.set_postfix_str(self._summary(), refresh=False)
            self._bar.update(done - self._bar.n)
            self._bar.refresh()
        elif (now := time.monotonic()) > self._next_line:
            self._next_line = now + LINE_EVERY
            rate = done / (now - self._begun)
            left = f", {tqdm.format_interval((self._total - done) / rate)} left" if rate else ""
            tell(f"{done / self._total:.0%} of all updates, {self._summary()}, {rate:.3g} steps/s{left}")

    def _summary(self) -> str:
        running = min(self._at_once, self._runs - self._ended)
        failed = f", {self._failed} failed" if self._failed else ""
        return f"{self._ended} of {self._runs} runs, {running} under way{failed}"

    def ended(self, key: str, line: str, *, failed: bool) -> None:
        """Counts a run that has ended."""
        self._ended += 1
        self._failed += failed
        if self._bar.disable:
            tell(f"[{self._ended}/{self._runs}] {key} {line}")
        self.refresh()

    def close(self) -> None:
        """Leaves the terminal as it should be."""
        self._bar.close()


def tell(line: str) -> None:
    """A plain line of progress; results go to stdout."""
    print(line, file=sys.stderr, flush=True)


def tell_of_compiling(configs: Iterable[RunConfig]) -> None:
    """Why nothing moves at first, where runs are compiled."""
    if any(config.train.compile for config in configs):
        tell(
            "train.compile=true: the second update of a run waits for the compiler, about a minute; deep nets, minutes"
        )
