"""Rehearsals: what they find of a run whose parts are known, and that nothing is left of them."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from in_processes import CPU, LONG, rehearsal_killed_at_seed_1, rehearsal_without_end

from depthlab import _processes
from depthlab.config import DataConfig, ModelConfig, ProbesConfig, RunConfig, TrainConfig, flat
from depthlab.runs import rehearsal
from depthlab.runs.rehearsal import SAME_COST, Failure, Rehearsal, evaluations, kind, readings, rehearse
from depthlab.runs.store import Status
from depthlab.runs.trial import is_evaluated
from depthlab.training.loop import is_read


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 12, 13])
@pytest.mark.parametrize("every", [1, 2, 3, 4, 12, 50])
def test_evaluations_and_readings_are_counted_as_they_happen(steps: int, every: int) -> None:
    train = TrainConfig(steps=steps, eval_every=every)
    assert evaluations(train) == sum(is_evaluated(done, train) for done in range(1, steps + 1))
    for between in (every, 0):
        probes = ProbesConfig(every=between)
        assert readings(train, probes) == sum(is_read(step, train, probes) for step in range(steps))


def test_seconds_of_a_run_are_those_of_its_parts() -> None:
    """Ten updates, of which 0, 4, 8 and 9 are read; evaluated after 5 and 10, and 8 of 300 last images in `end`."""
    found = Rehearsal(
        start=100, update=10, reading=3, pretraining=1000, image=0.01, end=7, evaluated=8, last_images=300,
        validation_images=50, memory=0,
    )  # fmt: skip
    train = TrainConfig(steps=10, eval_every=5)
    config = RunConfig(train=train, probes=ProbesConfig(every=4))
    assert found.seconds(config) == pytest.approx(100 + 10 * 10 + 4 * 3 + (2 * 50 + 300 - 8) * 0.01 + 7)
    model = ModelConfig(activation="sigmoid", init="xavier")
    pretrained = RunConfig(model=model, train=dataclasses.replace(train, pretraining_steps=2))
    assert found.seconds(pretrained) == pytest.approx(100 + 2000 + 10 * 10 + 2 * 3 + (2 * 50 + 300 - 8) * 0.01 + 7)


class Images:
    """So many."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def first(self, count: int) -> Images:
        return Images(min(count, self.count))


@dataclasses.dataclass
class Splits:
    train: Images
    validation: Images
    test: Images


Timed = Callable[[RunConfig, int], Rehearsal]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Timed:
    """Rehearses a trial of known times, in this process, by a clock that stands still between them.

    To build it takes 5 s, before the first update 2 s, an update 1 s, with a reading 1.5 s, 500 validation images 4 s,
    what comes last 8 s, an update of pre-training 0.1 s times its layer's number, 3 s more for the first and last. To
    compile takes 30 s of update 1 and 4 s of update 2.
    """
    now = [0.0]

    class Trial:
        def __init__(self, config: RunConfig, device: Any, progress: Any) -> None:
            now[0] += 5
            self.config, self.progress = config, progress
            self.splits: Any = Splits(Images(400), Images(600), Images(2000))

        def run(self) -> dict[str, Any]:
            train, probes = self.config.train, self.config.probes
            for layer in range(1, self.config.model.depth):
                for update in range(train.pretraining_steps):
                    now[0] += 0.1 * layer + (3 if update in (0, train.pretraining_steps - 1) else 0)
                    self.progress(0, None, None)
            now[0] += 2
            for step in range(train.steps):
                now[0] += 1.5 if is_read(step, train, probes) else 1
                now[0] += {1: 30, 2: 4}.get(step, 0) if train.compile else 0
                if step == 49 and self.config.train.loss == "mse":
                    return {"status": Status.DIVERGED}
                if step == train.steps - 1:
                    self.evaluate(self.splits.validation)
                self.progress(step + 1, None, None)
            now[0] += 8
            return {"status": Status.DONE}

        def evaluate(self, images: Images) -> None:
            now[0] += 4 * len(images) / 500

        def state(self) -> dict[str, Any]:
            return {}

    def made(config: RunConfig, steps: int) -> Rehearsal:
        return rehearsal._timed(config, CPU, steps)

    monkeypatch.setattr(rehearsal, "Trial", Trial)
    monkeypatch.setattr(rehearsal, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(rehearsal, "own_peak", lambda: 123)
    return made


def test_each_second_is_put_down_to_its_part(timed: Timed) -> None:
    for steps in (5, 6, 100):
        found = timed(RunConfig(), steps)
        assert found == Rehearsal(
            start=pytest.approx(7), update=1, reading=0.5, pretraining=0, image=pytest.approx(0.008), end=8,
            evaluated=900, last_images=4400, validation_images=600, memory=123,
        )  # fmt: skip


def test_compiling_is_part_of_the_start(timed: Timed) -> None:
    for steps in (8, 9, 100):
        found = timed(RunConfig(train=TrainConfig(compile=True)), steps)
        assert (found.start, found.update, found.reading) == (pytest.approx(7 + 34), 1, 0.5)
        assert found.memory == 123 + rehearsal.COMPILER


def test_pretraining_is_an_update_of_each_hidden_layer(timed: Timed) -> None:
    model = ModelConfig(depth=4, activation="sigmoid", init="xavier")
    for steps, read in ((1, 9), (2, 9), (3, 0), (50, 0)):
        found = timed(RunConfig(model=model, train=TrainConfig(pretraining_steps=steps)), 5)
        assert found.pretraining == pytest.approx(0.1 + 0.2 + 0.3 + read)
        assert found.start == pytest.approx(7)


def test_a_net_that_diverges_at_once_is_timed_all_the_same(timed: Timed) -> None:
    found = timed(RunConfig(train=TrainConfig(loss="mse")), 200)
    assert (found.update, found.reading, found.image) == (1, 0.5, pytest.approx(0.008))


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [(10.0, [5]), (2.0, [5]), (1.9, [5, 5]), (0.1, [5, 5]), (0.01, [5, 50]), (0.0001, [5, 200])],
)
def test_half_a_second_of_updates_is_timed_in_memory_that_is_warm_by_then(
    monkeypatch: pytest.MonkeyPatch, seconds: float, steps: list[int]
) -> None:
    """Five to 200 of them; where five take ten seconds, waiting for memory no longer counts."""
    timed: list[int] = []

    def noted(_config: RunConfig, _device: torch.device, steps: int) -> Rehearsal:
        timed.append(steps)
        return Rehearsal(0, seconds, 0, 0, 0, 0, 0, 0, 0, memory=len(timed))

    monkeypatch.setattr(rehearsal, "_timed", noted)
    found = rehearsal._rehearse(RunConfig(), CPU)
    assert isinstance(found, Rehearsal)
    assert found.memory == len(timed), "the last one counts"
    assert timed == steps


def test_a_rehearsed_run_is_short_and_slow_to_learn(tiny: RunConfig) -> None:
    """Warming up would take more updates than there are, and a large rate could diverge."""
    model = ModelConfig(depth=3, width=8, activation="sigmoid", init="xavier")
    train = TrainConfig(steps=100, batch_size=20, lr=0.1, warmup_steps=50, pretraining_steps=50, eval_every=7)
    short = rehearsal._shortened(dataclasses.replace(tiny, model=model, train=train), 9)
    wanted = TrainConfig(steps=9, batch_size=20, lr=1e-8, warmup_steps=0, pretraining_steps=3, eval_every=9)
    assert short == dataclasses.replace(
        tiny, model=model, train=wanted, probes=ProbesConfig(every=3, names=tiny.probes.names)
    )
    still = dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, lr=0.0))
    assert rehearsal._shortened(still, 9).train.lr == 0.0


def test_on_a_gpu_every_lap_waits_for_it_and_its_memory_is_read(timed: Timed, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 456)
    assert rehearsal._timed(RunConfig(), torch.device("cuda"), 5).gpu_memory == 456
    assert len(waited) == 5 + 3  # the updates; what is before the first, after the last, and the evaluation
    assert timed(RunConfig(), 5).gpu_memory == 0


@pytest.mark.parametrize("error", [BrokenProcessPool(), EOFError(), ConnectionResetError()])
def test_the_others_go_on_when_a_process_or_that_which_forks_it_has_died(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The latter is told by the pipe to it. A signal waits until the process is there."""
    given: list[Any] = []

    class Pool:
        def __init__(self, count: int, _context: Any, *, initializer: Callable[..., None], initargs: Any) -> None:
            given.append((count, initializer, initargs))

        def __enter__(self) -> Pool:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def submit(self, _rehearse: Any, config: RunConfig, device: torch.device) -> Future[Any]:
            if hasattr(signal, "pthread_sigmask"):
                assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
            if config.seed == 1:
                raise error
            found: Future[Any] = Future()
            found.set_result((config.seed, device))
            return found

    monkeypatch.setattr(rehearsal, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(_processes, "warm_up", lambda: None)
    found = list(rehearse([dataclasses.replace(tiny, seed=seed) for seed in range(3)], "cpu", 3))
    assert found[0::2] == [(0, CPU), (2, CPU)]
    assert isinstance(found[1], Failure)
    assert found[1].killed
    assert given == [(1, rehearsal._prepare, (dict(os.environ), 3))] * 2


def test_its_process_has_the_threads_and_the_environment_of_a_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    monkeypatch.setattr(rehearsal, "prepare_worker", done.append)
    monkeypatch.setattr(_processes, "settle", done.append)
    rehearsal._prepare({"TOLD": "1"}, 3)
    assert done == [3, {"TOLD": "1"}]


def test_ctrl_c_ends_the_process_of_a_rehearsal_and_no_other(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "_rehearse", rehearsal_without_end)
    other = _processes.context().Process(target=time.sleep, args=(LONG,))
    other.start()
    try:
        monkeypatch.setattr(Future, "result", interrupted)
        began = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            next(rehearse([tiny], "cpu", 1))
        assert time.perf_counter() - began < LONG / 2, "it was waited for"
        assert multiprocessing.active_children() == [other]
    finally:
        other.kill()
        other.join()


def interrupted(future: Future[Any], timeout: float | None = None) -> None:
    """Stands in for Future.result: Ctrl-C comes while a rehearsal runs."""
    while not future.running():
        time.sleep(0.01)
    raise KeyboardInterrupt


def test_a_rehearsal_is_found_and_nothing_is_left(
    tiny: RunConfig, results: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a run, of one that cannot be, and of one whose process is killed; the others go on."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(rehearsal, "_rehearse", rehearsal_killed_at_seed_1)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mnist.npz").write_bytes(b"not a data set")
    killed = dataclasses.replace(tiny, seed=1)
    damaged = dataclasses.replace(tiny, data=DataConfig(name="mnist", train_size=100))
    exploding = dataclasses.replace(tiny, model=ModelConfig(depth=20, width=8, init="gaussian", sigma_w=1e4))
    began = time.perf_counter()
    found = list(rehearse([tiny, killed, damaged, exploding], "cpu", 1))
    taken = time.perf_counter() - began
    first, lost, failed, last = found
    assert lost == Failure("its process was killed, perhaps for want of memory", killed=True)
    assert isinstance(failed, Failure)
    assert "mnist.npz" in failed.reason
    assert not failed.killed
    for each in (first, last):
        assert isinstance(each, Rehearsal)
        assert 0 < each.update < taken
        assert 2**27 < each.memory < 2**30
        assert (each.validation_images, each.last_images, each.evaluated) == (100, 460, 260)
    assert not results.exists()
    assert not list(tmp_path.glob("tmp*"))


def test_kinds_differ_in_what_changes_the_cost_of_an_update(tiny: RunConfig) -> None:
    assert set(flat(tiny)) >= SAME_COST, "a slip, or a setting that is called otherwise by now"
    same = dataclasses.replace(
        tiny, seed=5, train=dataclasses.replace(tiny.train, lr=0.1, steps=100, eval_every=7, schedule="cosine")
    )
    assert kind(same) == kind(tiny)
    assert hash(kind(tiny)) == hash(kind(same))
    for other in (
        dataclasses.replace(tiny, model=dataclasses.replace(tiny.model, depth=4)),
        dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, batch_size=21)),
        dataclasses.replace(tiny, train=dataclasses.replace(tiny.train, compile=True)),
        dataclasses.replace(tiny, probes=ProbesConfig(every=2, names=("grad_norm",))),
        dataclasses.replace(tiny, data=DataConfig(name="synthetic", train_size=60, flip=True)),
    ):
        assert kind(other) != kind(tiny)
