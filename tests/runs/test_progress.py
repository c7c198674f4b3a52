"""What a sweep tells of itself while it runs."""

from __future__ import annotations

import dataclasses
import sys
import time

import pytest

from depthlab.config import RunConfig, TrainConfig
from depthlab.runs.progress import SweepProgress


def seeds(count: int) -> list[RunConfig]:
    train = TrainConfig(steps=100)
    return [dataclasses.replace(RunConfig(), train=train, seed=seed) for seed in range(count)]


def test_a_log_has_a_line_a_minute_with_all_that_a_bar_would_show(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = SweepProgress(seeds(10), at_once=4)
    progress.refresh()
    now += 61
    progress.refresh()  # nothing is known yet of how long it takes
    now += 1
    progress.steps.value = 248
    progress.ended("a" * 16, "done", failed=False)
    progress.ended("b" * 16, "failed: no data", failed=True)
    now += 62
    progress.refresh()
    progress.steps.value = 1000
    for _ in range(7):
        progress.ended("c" * 16, "done", failed=False)
    now += 61
    progress.refresh()
    progress.close()
    assert capsys.readouterr().err.splitlines() == [
        "0% of all updates, 0 of 10 runs, 4 under way, 0 steps/s",
        "[1/10] aaaaaaaaaaaaaaaa done",
        "[2/10] bbbbbbbbbbbbbbbb failed: no data",
        "25% of all updates, 2 of 10 runs, 4 under way, 1 failed, 2 steps/s, 06:16 left",
        *(f"[{number}/10] cccccccccccccccc done" for number in range(3, 10)),
        "100% of all updates, 9 of 10 runs, 1 under way, 1 failed, 5.41 steps/s, 00:00 left",
    ]


def test_a_terminal_has_one_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = SweepProgress(seeds(3), at_once=2)
    progress.steps.value = 150
    progress.ended("a" * 16, "done", failed=True)
    progress.close()
    shown = capsys.readouterr().err.split("\r")[-1]
    assert "150/300" in shown
    assert "1 of 3 runs, 2 under way, 1 failed" in shown
    assert "step/s" in shown
