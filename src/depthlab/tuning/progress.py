"""What is told of a search while it runs: one bar on a terminal, a line for each trial elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from tqdm import tqdm

from depthlab.config import typed
from depthlab.runs.progress import tell
from depthlab.tuning.outcomes import Outcome
from depthlab.tuning.study import Study


class Progress:
    """Trials that have ended, by whatever command."""

    def __init__(self, study: Study, trials: int) -> None:
        self._study, self._trials = study, trials
        self._told = {outcome.number for outcome in study.outcomes()}
        self._bar = tqdm(
            total=trials, initial=len(self._told), unit="trial", disable=not sys.stderr.isatty(), dynamic_ncols=True
        )

    def refresh(self) -> None:
        """Shows what has ended since the last time."""
        ended = self._study.outcomes()
        new = sorted((outcome for outcome in ended if outcome.number not in self._told), key=lambda o: o.number)
        for outcome in new:
            self._told.add(outcome.number)
            if self._bar.disable:
                tell(f"[{len(self._told)}/{self._trials}] {line(outcome)}")
        if not self._bar.disable:
            self._bar.set_postfix_str(self._summary(ended), refresh=False)
            self._bar.update(len(ended) - self._bar.n)
            self._bar.refresh()

    def _summary(self, ended: list[Outcome]) -> str:
        best = f"best validation error {ended[0].error:.2%}" if ended and ended[0].state == "done" else ""
        running = self._study.running()
        return ", ".join(part for part in (best, f"{running} running" if running else "") if part)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


def line(outcome: Outcome) -> str:
    """A trial in one line."""
    settings = " ".join(typed(outcome.settings))
    error = "" if outcome.error is None else f"validation error {outcome.error:.2%}"
    about = " ".join(part for part in (error, outcome.about) if part)
    return f"trial {outcome.number} {outcome.state}: {about or 'nothing known'}; {settings}"
