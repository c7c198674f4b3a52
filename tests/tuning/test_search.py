"""The search: trials are runs like others, and whatever happens to one the others go on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="needs optuna: pip install 'depthlab[tune]'")

import tiny_runs
from tiny_runs import RANGES, configured

from depthlab import _processes, runs, tuning
from depthlab.config import Choice, Interval
from depthlab.runs.locks import LeaseLostError
from depthlab.runs.trial import Trial
from depthlab.tuning import Outcome, Search, Study, search
from depthlab.tuning.study import Trial as Claimed

LONG = 120
"""Seconds that processes get; on a busy machine importing torch takes long."""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of the runs that are trained, each as far as this process goes."""
    keys: list[str] = []
    train = Trial.run

    def counted(self: Trial) -> dict[str, Any]:
        keys.append(self.config.key())
        return train(self)

    monkeypatch.setattr(Trial, "run", counted)
    return keys


def outcomes(task: Search) -> list[Outcome]:
    with task.study() as study:
        return study.outcomes()


def test_trials_are_runs_of_the_ledger(
    task: Callable[..., Search], trained: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    search(task())
    found = outcomes(task())
    assert len(found) == 6
    entries = {entry.key: entry for entry in runs.ledger()}
    assert {outcome.key for outcome in found} == set(entries)
    for outcome in found:
        config = configured(outcome.settings)
        assert outcome.key == config.key()
        assert outcome.state == entries[outcome.key].status
        table = runs.Run.of(config).readings().query("probe == 'validation_error'")
        assert list(table["step"]) == [5, 10, 15, 20]
        assert outcome.error == table["value"].min()
        assert outcome.step == table["step"][table["value"].idxmin()]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("6 of 6 trials to run, 1 at once; the study is in ")
    assert [line[:12] for line in lines[1:]] == [f"[{n}/6] trial " for n in range(1, 7)]
    search(task())
    assert len(trained) == 6, "the study is complete"
    search(task(trials=8))
    assert len(trained) == 8


def test_a_finished_run_is_not_trained_again(task: Callable[..., Search], trained: list[str], tmp_path: Path) -> None:
    search(task())
    search(task(folder=tmp_path / "results" / "tune" / "other", pruner="median"))
    assert len(trained) == 6
    first, second = outcomes(task()), outcomes(task(folder=tmp_path / "results" / "tune" / "other"))
    assert first == second
    with task().study() as one, task(folder=tmp_path / "results" / "tune" / "other").study() as other:
        reported = [[trial.intermediate_values for trial in study._current()] for study in (one, other)]
    assert reported[0] == reported[1]
    assert all(list(values) == [5, 10, 15, 20] for values in reported[0])


def test_a_pruned_run_stops_early_and_can_be_gone_on_with(
    task: Callable[..., Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third trial is hopeless from its second evaluation on."""
    monkeypatch.setattr(
        Claimed,
        "is_hopeless",
        lambda self, step, error: self.number == 2 and self._report({step: error}) is None and step >= 10,
    )
    search(task(trials=4))
    (pruned,) = (outcome for outcome in outcomes(task()) if outcome.state == "pruned")
    assert pruned.number == 2
    assert pruned.about == "after update 11 of 20"
    entry = next(entry for entry in runs.ledger() if entry.key == pruned.key)
    assert entry.status == "interrupted"
    assert entry.about.startswith("after 11 updates")
    run = runs.Run.of(configured(pruned.settings))
    assert [path.name for path in run.folder.glob("checkpoint-*")] == ["checkpoint-000000011.pt"]
    alone = runs.execute(configured(pruned.settings), root=run.folder.parents[1] / "alone", device=task().device)
    assert runs.execute(configured(pruned.settings), device=task().device).readings().equals(alone.readings())


def test_the_pruner_is_fed_and_asked(task: Callable[..., Search]) -> None:
    """Without a monkey's help: the median of the others ends what learns nothing."""
    search(task(trials=12, pruner="median"))
    found = outcomes(task())
    pruned = [outcome for outcome in found if outcome.state == "pruned"]
    assert pruned
    states = {entry.key: entry.status for entry in runs.ledger()}
    assert {states[outcome.key] for outcome in pruned} == {"interrupted"}
    assert {states[outcome.key] for outcome in found if outcome.state == "done"} == {"done"}


def test_whatever_happens_to_a_trial_the_others_go_on(
    task: Callable[..., Search], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train = Trial.run

    def failing(self: Trial) -> dict[str, Any]:
        if self.config.train.lr > 0.1:
            raise OSError("no more")
        return train(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "run", failing)
        search(task(configure=tiny_runs.unfit, trials=10))
    found = outcomes(task())
    assert len(found) == 10
    for outcome in found:
        lr, activation = float(outcome.settings["train.lr"]), outcome.settings["model.activation"]
        assert outcome.state == ("impossible" if activation == "tanh" else "failed" if lr > 0.1 else "done")
    assert {o.about for o in found} == {"", "tanh does not fit", "OSError: no more"}
    assert "failed: OSError: no more; train.lr=" in capsys.readouterr().err

    search(task(configure=tiny_runs.unfit, trials=10))
    assert {o.state for o in outcomes(task())} == {"done", "impossible"}, "what failed is run again"
    told = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"\d trials that failed are run again", told[0])
    assert told[-1].startswith("[10/10] trial ")


def test_a_run_that_diverges_is_a_trial_to_stay_away_from(task: Callable[..., Search]) -> None:
    ranges = {"train.lr": Interval(1e29, 1e31, log=True), "model.activation": Choice(("relu", "leaky_relu"))}
    search(task(ranges=ranges, trials=2))
    found = outcomes(task(ranges=ranges))
    assert {outcome.state for outcome in found} == {"diverged"}
    assert {outcome.about[:8] for outcome in found} == {"at step "}
    assert {entry.status for entry in runs.ledger()} == {"diverged"}


def test_a_full_disk_stops_the_search(task: Callable[..., Search], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Trial) -> dict[str, Any]:
        raise runs.DiskFullError("no space")

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "run", full)
        with pytest.raises(runs.DiskFullError):
            search(task())
    assert outcomes(task()) == []
    search(task())
    assert len(outcomes(task())) == 6


def test_a_run_that_was_taken_over_is_waited_for(task: Callable[..., Search], monkeypatch: pytest.MonkeyPatch) -> None:
    train, lost = Trial.run, iter([True])

    def losing(self: Trial) -> dict[str, Any]:
        if next(lost, False):
            raise LeaseLostError("taken over")
        return train(self)

    monkeypatch.setattr(Trial, "run", losing)
    search(task(trials=2))
    assert {outcome.state for outcome in outcomes(task())} == {"done"}
    assert len(outcomes(task())) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_keeps_everything(
    task: Callable[..., Search], trained: list[str], monkeypatch: pytest.MonkeyPatch, number: int, tmp_path: Path
) -> None:
    """The third trial is stopped at its first evaluation; it goes on from there, and the choices are the same."""
    hopeless = Claimed.is_hopeless

    def stopping(self: Any, step: int, error: float) -> bool:
        if self.number == 2:
            os.kill(os.getpid(), number)
        return hopeless(self, step, error)

    with monkeypatch.context() as patch:
        patch.setattr(Claimed, "is_hopeless", stopping)
        with pytest.raises(KeyboardInterrupt):
            search(task())
    assert Counter(entry.status for entry in runs.ledger()) == {"done": 2, "interrupted": 1}
    assert len(outcomes(task())) == 2
    search(task())
    (stopped,) = (key for key, count in Counter(trained).items() if count == 2)
    assert runs.Run(runs.runs_root() / stopped).record()["resumed_at_steps"] == [6]
    monkeypatch.setenv("DEPTHLAB_RESULTS", str(tmp_path / "unstopped"))
    search(task(folder=tmp_path / "unstopped" / "study"))
    unstopped = outcomes(task(folder=tmp_path / "unstopped" / "study"))
    assert [(o.settings, o.error, o.key) for o in outcomes(task())] == [(o.settings, o.error, o.key) for o in unstopped]


def test_a_terminal_shows_one_bar(
    task: Callable[..., Search], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    search(task(trials=2))
    told = capsys.readouterr().err
    best = min(outcome.error for outcome in outcomes(task()) if outcome.error is not None)
    assert f"best validation error {best:.2%}" in told
    assert "2/2" in told
    assert "[1/2]" not in told


SCRIPT = """
import sys
sys.path[:0] = {paths!r}
import tiny_runs, torch
from pathlib import Path
from depthlab import tuning
if __name__ == "__main__":
    torch.set_num_threads(1)
    tuning.search(tuning.Search(
        folder=Path({folder!r}), ranges=tiny_runs.RANGES, configure=tiny_runs.{configure}, fixed="", trials={trials},
        device=torch.device("cpu"), pruner="none"), workers={workers})
"""


def started(task: Search, workers: int, configure: str, folder: Path) -> subprocess.Popen[str]:
    """A search in a process of its own; it can start workers, since it is a file."""
    paths = [str(Path(__file__).parent), str(Path(tuning.__file__).parents[2])]
    text = SCRIPT.format(paths=paths, folder=str(task.folder), configure=configure, trials=task.trials, workers=workers)
    (folder / "search.py").write_text(text)
    return subprocess.Popen([sys.executable, str(folder / "search.py")], stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_commands_of_two_workers_each_share_a_study(task: Callable[..., Search], tmp_path: Path) -> None:
    commands = [started(task(trials=24), 2, "slow", tmp_path) for _ in range(2)]
    for command in commands:
        _, told = command.communicate(timeout=LONG)
        assert command.returncode == 0, told
    found = outcomes(task())
    assert len(found) == 24
    assert {outcome.state for outcome in found} == {"done"}
    began = Counter(tiny_runs.began())
    assert sum(began.values()) == 24, "no trial was run twice"
    assert len(began) > 1, "several processes worked on it"
    assert len(runs.ledger()) == len({outcome.key for outcome in found})


@pytest.mark.slow
def test_a_search_goes_on_after_it_was_killed(task: Callable[..., Search], tmp_path: Path) -> None:
    """By SIGKILL, in the middle: its workers end with it, and what they had begun is begun again."""
    command = started(task(trials=16), 2, "slow", tmp_path)
    until = time.monotonic() + LONG
    while len(tiny_runs.began()) < 6 and time.monotonic() < until:
        time.sleep(0.02)
    command.kill()
    command.communicate(timeout=LONG)
    before = len(outcomes(task()))
    assert 0 < before < 16
    search(task(trials=16))
    found = outcomes(task())
    assert len(found) == 16
    assert {outcome.state for outcome in found} == {"done"}
    with task().study() as study:
        states = Counter(trial.state.name for trial in study._study.trials)
    assert states["COMPLETE"] == 16
    assert states["RUNNING"] == states["WAITING"] == 0
    assert 1 <= states["FAIL"] <= 2, "one for each worker that was killed"


@pytest.mark.slow
def test_a_killed_worker_is_replaced(task: Callable[..., Search], capfd: pytest.CaptureFixture[str]) -> None:
    search(task(configure=tiny_runs.deadly), workers=2)
    assert {outcome.state for outcome in outcomes(task())} == {"done"}
    assert len(outcomes(task())) == 6
    assert "was ended by SIGKILL; its trial is begun again" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_no_trial_is_lost_when_the_process_that_workers_are_forked_from_is_killed(
    task: Callable[..., Search], tmp_path: Path
) -> None:
    command = started(task(trials=12), 2, "orphaning", tmp_path)
    _, told = command.communicate(timeout=LONG)
    assert command.returncode == 0, told
    assert "the process that those of the search are forked from was killed" in told
    found = outcomes(task())
    assert len(found) == 12
    assert {outcome.state for outcome in found} == {"done"}
    assert len(tiny_runs.began()) == 12, "no trial was run twice"


@pytest.mark.slow
def test_a_trial_that_always_kills_its_process_fails(task: Callable[..., Search]) -> None:
    search(task(configure=tiny_runs.always_deadly, trials=4), workers=2)
    found = outcomes(task())
    assert len(found) == 4
    for outcome in found:
        assert outcome.state == ("failed" if outcome.settings["model.activation"] == "tanh" else "done")
    assert {o.about for o in found if o.state == "failed"} == {
        "its process was killed 3 times, perhaps for want of memory"
    }


@pytest.mark.slow
def test_ctrl_c_stops_all_workers(task: Callable[..., Search], tmp_path: Path) -> None:
    command = started(task(trials=40), 2, "slow", tmp_path)
    until = time.monotonic() + LONG
    while len(tiny_runs.began()) < 5 and time.monotonic() < until:
        time.sleep(0.02)
    command.send_signal(signal.SIGINT)
    _, told = command.communicate(timeout=LONG)
    assert "KeyboardInterrupt" in told
    assert "stopping: each run finishes its update and is saved" in told
    ended = len(outcomes(task()))
    assert 0 < ended < 40
    time.sleep(0.5)
    assert len(outcomes(task())) == ended, "nobody works on"


@pytest.mark.slow
def test_a_worker_that_cannot_go_on_ends_the_search(
    task: Callable[..., Search], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with task().study():
        pass
    # what forked processes say comes where the process that they are forked from was started, which is another test
    monkeypatch.setattr(_processes, "ARE_FORKED", False)
    # the workers find a study that is over other ranges than the one that this process has opened
    monkeypatch.setattr(Study, "_check", lambda *_: None)
    ranges = RANGES | {"train.lr": Interval(0.5, 1.0)}
    with pytest.raises(runs.StoreError, match="could not go on, for the reason above"):
        search(task(ranges=ranges), workers=2)
    assert "choose another --name" in capfd.readouterr().err
