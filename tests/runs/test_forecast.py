"""Forecasts: what is added up, of rehearsals that are made up."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from in_processes import CPU

from depthlab.config import ModelConfig, RunConfig, SweepConfig, TransferConfig
from depthlab.runs import Run, execute, forecast
from depthlab.runs.packing import Packing, work
from depthlab.runs.rehearsal import Failure, Rehearsal, kind

MODULE = sys.modules["depthlab.runs.forecasting"]


def deep(config: RunConfig, depth: int, seed: int = 0) -> RunConfig:
    return dataclasses.replace(config, model=ModelConfig(depth=depth, width=8), seed=seed)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is rehearsed: a run takes its depth in seconds; one of depth 13 cannot be. Two are trained at once."""
    asked: list[Any] = []

    def rehearse(configs: Sequence[RunConfig], device: Any, threads: int) -> Iterator[Rehearsal | Failure]:
        asked.append(([config.model.depth for config in configs], str(device), threads))
        for config in configs:
            seconds = config.model.depth
            yield Failure("no") if seconds == 13 else Rehearsal(seconds, 0, 0, 0, 0, 0, 0, 0, 0, 100 * seconds)

    monkeypatch.setattr(MODULE, "rehearse", rehearse)
    monkeypatch.setattr(MODULE, "pack", lambda configs, launch, device: Packing(2, 3))
    return asked


def test_each_kind_is_rehearsed_once_and_all_missing_runs_count(tiny: RunConfig, asked: list[Any]) -> None:
    execute(deep(tiny, 4, seed=1), device=CPU)
    told: list[tuple[int, int]] = []
    configs = [deep(tiny, depth, seed) for depth in (10, 4) for seed in range(3)]
    found = forecast(
        [*configs, configs[0]], device="cpu", launch=SweepConfig(), progress=lambda *how_far: told.append(how_far)
    )
    assert asked == [([4, 10], "cpu", 3)]
    assert told == [(1, 2), (2, 2)]
    assert (found.missing, found.finished, found.kinds, found.rehearsed) == (5, 1, 2, 2)
    assert found.run_seconds == pytest.approx(3 * 10 + 2 * 4)
    assert found.wall_seconds == pytest.approx(10 + 10)  # one worker: 10, 10; the other: 10, 4, 4
    assert found.memory == 1000
    assert found.packing == Packing(2, 3)
    assert not found.failures


def test_sources_that_are_missing_count_and_those_that_are_there_do_not(tiny: RunConfig, asked: list[Any]) -> None:
    source = ("data.name:synthetic", "train.steps:6", "train.batch_size:20")
    config = dataclasses.replace(deep(tiny, 4), transfer=TransferConfig(source=source))
    first = config.source()
    assert first is not None
    found = forecast([config], device="cpu", launch=SweepConfig())
    assert (found.missing, found.finished, found.run_seconds) == (2, 0, 8)
    execute(first, device=CPU)
    found = forecast([config], device="cpu", launch=SweepConfig())
    assert (found.missing, found.finished, found.run_seconds) == (2, 0, 8), "it has no weights yet"
    execute(first, device=CPU, keep_weights=True)
    found = forecast([config], device="cpu", launch=SweepConfig())
    assert (found.missing, found.finished, found.run_seconds) == (1, 0, 4)
    execute(config, device=CPU)
    Run.of(first).folder.joinpath("weights.pt").unlink()
    assert forecast([config], device="cpu", launch=SweepConfig()).missing == 0


def test_when_nothing_is_missing_nothing_is_rehearsed(tiny: RunConfig, asked: list[Any]) -> None:
    execute(tiny, device=CPU)
    found = forecast([tiny], device="cpu", launch=SweepConfig())
    assert (found.missing, found.finished, found.run_seconds, found.wall_seconds) == (0, 1, 0, 0)
    assert not asked


def test_a_run_whose_weights_are_wanted_and_were_not_kept_is_missing(tiny: RunConfig, asked: list[Any]) -> None:
    execute(tiny, device=CPU)
    assert forecast([tiny], device="cpu", launch=SweepConfig(keep_weights=True)).missing == 1
    execute(tiny, device=CPU, keep_weights=True)
    assert forecast([tiny], device="cpu", launch=SweepConfig(keep_weights=True)).missing == 0


def test_rehearsals_end_with_a_forecast_that_is_stopped(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[bool] = []

    def rehearse(configs: Sequence[RunConfig], *_: Any) -> Iterator[Failure]:
        try:
            for _config in configs:
                yield Failure("no")
        finally:
            ended.append(True)

    def stop(*_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(MODULE, "rehearse", rehearse)
    monkeypatch.setattr(MODULE, "pack", lambda *_: Packing(1, 1))
    with pytest.raises(KeyboardInterrupt) as stopped:
        forecast([deep(tiny, 4), deep(tiny, 5)], device="cpu", launch=SweepConfig(), progress=stop)
    assert ended == [True], stopped  # whose traceback would hold what is not closed


def test_of_many_kinds_some_are_rehearsed_and_the_others_are_in_proportion(tiny: RunConfig, asked: list[Any]) -> None:
    configs = [deep(tiny, depth) for depth in (2, 4, 6, 8, 90, 100)]
    found = forecast(configs, device="cpu", launch=SweepConfig(), most_kinds=3)
    assert [depths for depths, _, _ in asked] == [[2, 6, 100]]
    assert (found.kinds, found.rehearsed) == (6, 3)
    w = {config.model.depth: work(config) for config in configs}
    others = 6 * w[4] / w[6] + 6 * w[8] / w[6] + 100 * w[90] / w[100]
    assert found.run_seconds == pytest.approx(2 + 6 + 100 + others)
    one = forecast(configs, device="cpu", launch=SweepConfig(), most_kinds=1)
    assert one.run_seconds == pytest.approx(8 * sum(w.values()) / w[8])


def test_runs_that_cannot_be_rehearsed_are_told_and_not_counted(tiny: RunConfig, asked: list[Any]) -> None:
    configs = [deep(tiny, depth, seed) for depth in (13, 4) for seed in range(2)]
    found = forecast(configs, device="cpu", launch=SweepConfig())
    assert (found.missing, found.kinds, found.rehearsed) == (4, 2, 1)
    assert found.run_seconds == 8
    assert list(found.failures) == [("no", 2)]
    nothing = forecast(configs[:2], device="cpu", launch=SweepConfig())
    assert (nothing.run_seconds, nothing.memory, list(nothing.failures)) == (0, 0, [("no", 2)])


def test_the_kind_of_a_run_is_asked_for_once_however_many_kinds_there_are(
    tiny: RunConfig, asked: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a fifth of a millisecond: for each of a thousand runs and 64 kinds that is half a minute."""
    kinds: list[RunConfig] = []

    def counted(config: RunConfig) -> Any:
        kinds.append(config)
        return kind(config)

    monkeypatch.setattr(MODULE, "kind", counted)
    configs = [deep(tiny, depth, seed) for depth in range(2, 42, 2) for seed in range(3)]
    found = forecast(configs, device="cpu", launch=SweepConfig(), most_kinds=10)
    assert (found.missing, found.kinds, found.rehearsed) == (60, 20, 10)
    assert len(kinds) == 60 + 10
