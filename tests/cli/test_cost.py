"""`depthlab cost`: what it says, and that it leaves nothing behind."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depthlab.cli import cost as module
from depthlab.cli.cost import _time
from depthlab.runs import Forecast
from depthlab.runs.packing import Packing

NOTHING = Forecast(0, 7, Packing(0, 1), 0, 0, 0, 0, 0, [])


def test_it_tells_what_is_missing_and_stores_nothing(
    depthlab: Callable[..., Any], tiny: list[str], folder: Path
) -> None:
    answer = depthlab("cost", *tiny, "seed=range(3)", "sweep.workers=2")
    assert answer.status == 0
    assert answer.error == ""
    assert re.fullmatch(
        r"3 runs to train; 0 are finished\n"
        r"about [\d.]+ core-(seconds|minutes); about [\d.]+ (seconds|minutes) with 2 at once\n"
        r"largest run: 0\.[2-9] GiB, and [\d.]+ GiB are free\n"
        r"estimated in [\d.]+ (seconds|minutes) from the first updates of 1 of 1 kinds of runs, "
        r"as if none diverged or stopped early\n",
        answer.out,
    )
    assert not (folder / "results").exists()
    assert depthlab("train", *tiny, "seed=1").status == 0
    depthlab("train", *tiny)
    assert depthlab("cost", *tiny, "seed=range(2)").out == "0 runs to train; 2 are finished\n"


def test_an_experiment_at_a_scale(depthlab: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(module.runs, "forecast", lambda configs, **how: asked.append((configs, how)) or NOTHING)
    answer = depthlab(
        "cost", "experiment=losses", "scale=smoke", "seed=0", "device=cpu", "sweep.threads=2", "--kinds", "5"
    )
    assert (answer.status, answer.out) == (0, "0 runs to train; 7 are finished\n")
    ((configs, how),) = asked
    assert {config.train.steps for config in configs} == {60}
    assert {config.seed for config in configs} == {0}
    assert (str(how["device"]), how["launch"].threads, how["most_kinds"]) == ("cpu", 2, 5)


def test_what_cannot_be_rehearsed_is_told(depthlab: Callable[..., Any], tiny: list[str], folder: Path) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "mnist.npz").write_bytes(b"not a data set")
    answer = depthlab("cost", *tiny, "data=mnist", "data.train_size=100", "seed=range(2)")
    assert answer.status == 1
    assert answer.error.startswith("2 runs are not counted, since one of them failed: DataError: ")


def test_one_device_for_all(depthlab: Callable[..., Any], tiny: list[str]) -> None:
    answer = depthlab("cost", *tiny, "sweep.threads=1,2")
    assert answer.status == 2
    assert "give each one value" in answer.error


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0 seconds"), (0.123, "0.12 seconds"), (59.4, "59 seconds"), (61, "1 minutes"), (7199, "2 hours"),
     (1234567, "340 hours")],
)  # fmt: skip
def test_two_digits_in_the_largest_unit(seconds: float, told: str) -> None:
    assert _time(seconds) == told
    assert _time(seconds, "core-") == told.replace(" ", " core-")
