"""What is told of a sweep while it runs: one bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from depthlab.config import RunConfig

LINE_EVERY = 60.0
"""Seconds between lines that tell how far a sweep is, where there is no terminal."""


class SweepProgress:
    """Updates done, of all runs together, and runs ended.

    `steps` is shared with the workers, who add to it, or is set by who watches them from afar; a run adds all its
    updates in the end, however early it ended.
    """

    def __init__(self, configs: Sequence[RunConfig]) -> None:
        self.steps = multiprocessing.get_context("spawn").Value("q", 0)
        self._total = sum(config.train.steps for config in configs)
        self._runs, self._ended, self._failed = len(configs), 0, 0
        self._next_line = time.monotonic() + LINE_EVERY
        # smoothing 0: the rate is that of the whole sweep, since runs of different depths come and go
        self._bar = tqdm(
            total=self._total, unit="step", disable=not sys.stderr.isatty(), dynamic_ncols=True, smoothing=0
        )

    def refresh(self) -> None:
        """Shows how far it is now."""
        done = min(self.steps.get_obj().value, self._total)
        if not self._bar.disable:
            failed = f", {self._failed} failed" if self._failed else ""
            self._bar.set_postfix_str(f"{self._ended} of {self._runs} runs{failed}", refresh=False)
            self._bar.update(done - self._bar.n)
            self._bar.refresh()
        elif time.monotonic() > self._next_line:
            self._next_line = time.monotonic() + LINE_EVERY
            tell(f"{done / self._total:.0%} of all updates, {self._ended} of {self._runs} runs")

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
