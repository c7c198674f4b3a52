"""`depthlab tune` as typed: what it says, what it leaves, and how it goes on."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import depthlab as package
from depthlab import runs
from depthlab.config import RunConfig
from depthlab.runs import packing
from depthlab.runs.rehearsal import Rehearsal

RATES = "train.lr=tag(log,interval(1e-3,1))"
TINY = ["data=synthetic", "data.train_size=60", "model.depth=3", "train.steps=20", "train.batch_size=20"]
TINY += ["train.eval_every=5", "probes.every=0", "sweep.workers=1"]


@pytest.fixture
def tune(depthlab: Callable[..., Any]) -> Callable[..., Any]:
    """Searches the rate and the width of a run of a moment."""
    pytest.importorskip("optuna", reason="needs optuna: pip install 'depthlab[tune]'")
    return lambda *more: depthlab("tune", RATES, "model.width=4,8", *TINY, *more)


def studies(folder: Path) -> list[Path]:
    return sorted((folder / "results" / "tune").iterdir())


def test_a_search_and_what_it_leaves(tune: Callable[..., Any], depthlab: Callable[..., Any], folder: Path) -> None:
    import optuna

    answer = tune("--trials", "8")
    assert answer.status == 0, answer.error
    (study,) = studies(folder)
    assert re.fullmatch(r"lr-width-[0-9a-f]{8}", study.name)
    names = {"study.db", "study.lock", "trials.csv", "table.md", "importance.png", "importance.svg"}
    assert {path.name for path in study.iterdir()} == names
    lines = answer.out.splitlines()
    assert re.fullmatch(r"8 trials: \d+ done(, \d+ pruned)?(, \d+ diverged)?", lines[0])
    assert re.fullmatch(r"importance: (train\.lr|model\.width) \d\.\d\d, (train\.lr|model\.width) \d\.\d\d", lines[1])
    assert lines[-1] == f"wrote {study}/trials.csv, table.md, importance.png, importance.svg"

    storage = optuna.storages.RDBStorage(f"sqlite:///{study}/study.db")
    stored = optuna.load_study(study_name=study.name, storage=storage)
    table = pd.read_csv(study / "trials.csv").set_index("trial")
    assert set(table.index) == {trial.number for trial in stored.trials}
    for trial in stored.trials:
        row = table.loc[trial.number]
        assert row["train.lr"] == trial.params["train.lr"], "to the last bit"
        assert str(row["model.width"]) == trial.params["model.width"]
        assert row["state"] == trial.user_attrs["state"]
        if trial.state is optuna.trial.TrialState.COMPLETE:
            assert row["validation_error"] == trial.value
    assert table.index[0] == min(stored.best_trials, key=lambda trial: trial.number).number
    done = table[table["state"] == "done"]
    assert list(done["validation_error"]) == sorted(done["validation_error"])
    storage.remove_session()
    storage.engine.dispose()
    assert len((study / "table.md").read_text().splitlines()) == 2 + 8
    assert "test" not in (study / "trials.csv").read_text(), "nothing but validation chooses"

    found = depthlab(*shlex.split(lines[-2].partition(": depthlab ")[2]))
    assert found.status == 0
    key = table.iloc[0]["run"]
    assert found.out.endswith(f"found {folder / 'results' / 'runs' / key}\n"), "the command is that of the best run"
    metrics = runs.Run(folder / "results" / "runs" / key).record()["metrics"]
    best = rf"best: trial {table.index[0]}, validation error {done['validation_error'].iloc[0]:.2%} after \d+ updates"
    assert re.fullmatch(rf"{best}; test error of these weights {metrics['chosen_test_error']:.2%}", lines[-3])


def test_typed_again_it_goes_on_with_the_same_study(
    tune: Callable[..., Any], depthlab: Callable[..., Any], folder: Path
) -> None:
    first = tune("--trials", "3")
    again = tune("--trials", "3")
    assert again.out == first.out
    assert again.error == ""
    shuffled = depthlab("tune", *reversed(TINY), "model.width=4,8", RATES, "--trials", "5", "--pruner", "none")
    assert "[4/5]" in shuffled.error
    assert "[3/5]" not in shuffled.error
    assert len(studies(folder)) == 1
    depthlab("tune", RATES, "model.width=4,8", *TINY, "train.momentum=0.5", "--trials", "1")
    depthlab("tune", RATES, "model.width=4,16", *TINY, "--trials", "1")
    assert len(studies(folder)) == 3, "other settings or ranges are another study"


def test_a_name_and_another_search_of_the_same_name(tune: Callable[..., Any], folder: Path) -> None:
    assert tune("--name", "mine", "--trials", "1").status == 0
    assert [path.name for path in studies(folder)] == ["mine"]
    refused = tune("--name", "mine", "train.momentum=0.5")
    assert refused.status == 2
    assert "the study mine searches other ranges, or with other settings" in refused.error


def test_short_of_memory_as_many_trials_run_at_once_as_fit_of_the_largest(
    depthlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning = pytest.importorskip("depthlab.tuning", reason="needs optuna: pip install 'depthlab[tune]'")
    rehearsed: list[RunConfig] = []
    asked: list[tuple[int, int]] = []

    def rehearse(configs: Sequence[RunConfig], *_: object) -> Iterator[Rehearsal]:
        rehearsed.extend(configs)
        yield Rehearsal(0, 1, 0, 0, 0, 0, 0, 1, 1, 2**30, 0)

    monkeypatch.setattr(packing, "available_cores", lambda: 8)
    monkeypatch.setattr(packing, "available_memory", lambda: 5 * 2**30)
    monkeypatch.setattr(packing, "rehearse", rehearse)
    monkeypatch.setattr(tuning, "search", lambda task, workers: asked.append((workers, task.threads)))
    settings = [setting for setting in TINY if setting != "sweep.workers=1"]
    ranges = (RATES, "model.width=8,4000,16", "train.batch_size=interval(10,30)")
    answer = depthlab("tune", *settings, *ranges, "train.compile=true", "--trials", "20")
    assert (answer.status, asked) == (1, [(4, 1)]), "of 1 GiB in 0.9 of 5"
    assert [(run.model.width, run.train.batch_size) for run in rehearsed] == [(4000, 30)]
    assert answer.error.splitlines()[0] == "4 at once (a run takes up to 1.0 GiB, and 5.0 GiB are free)"
    assert "train.compile=true: the second update of a run waits for the compiler" in answer.error

    depthlab("tune", *settings, *ranges, "sweep.workers=7", "--trials", "20")
    depthlab("tune", *settings, RATES, "--trials", "20")
    depthlab("tune", *settings, RATES, "--trials", "2")
    assert asked[1:] == [(7, 1), (8, 1), (2, 1)]
    assert len(rehearsed) == 1, "what is asked for wins, and small runs all fit"

    together = ("model.family=mlp,cnn", "model.depth=8,9", "model.width=2000")
    depthlab("tune", *settings, RATES, *together, "--trials", "20")
    largest = rehearsed[-1].model
    assert (largest.family, largest.depth) == ("cnn", 8), "a CNN of 9 layers is impossible"


def test_ctrl_c_tells_what_there_is(
    tune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, folder: Path, depthlab: Callable[..., Any]
) -> None:
    import os
    import signal

    from depthlab.tuning.study import Trial

    hopeless = Trial.is_hopeless

    def stopping(self: Any, step: int, error: float) -> bool:
        if self.number == 6:
            os.kill(os.getpid(), signal.SIGINT)
        return hopeless(self, step, error)

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "is_hopeless", stopping)
        answer = tune("--trials", "8", "--pruner", "none")
    assert answer.status == 130
    assert "stopped after update 6 of 20; what is trained is kept, type the same command to go on" in answer.error
    assert answer.out.startswith("6 trials: 6 done\n")
    assert "test error" not in answer.out, "there is still something to choose"
    assert (studies(folder)[0] / "importance.png").exists()
    assert "1 interrupted" in depthlab("runs").out
    answer = tune("--trials", "8", "--pruner", "none")
    assert answer.status == 0
    assert answer.out.startswith("8 trials: 8 done\n")
    assert "8 done" in depthlab("runs").out


def test_nothing_to_recommend(tune: Callable[..., Any], depthlab: Callable[..., Any], folder: Path) -> None:
    diverging = depthlab("tune", "train.lr=interval(1e30,1e31)", *TINY, "model.activation=relu", "--trials", "2")
    assert diverging.status == 1
    assert diverging.out.startswith("2 trials: 2 diverged\nno trial was brought to its end; raise --trials, or change")
    assert "best" not in diverging.out


def test_failed_trials_are_told(
    tune: Callable[..., Any], depthlab: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from depthlab.runs.trial import Trial

    def failing(self: Trial) -> dict[str, Any]:
        raise OSError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(Trial, "run", failing)
        failed = tune("--trials", "2")
    assert failed.status == 1
    assert failed.out.startswith("2 trials: 2 failed\n")
    assert json.loads(depthlab("runs", "--format", "json").out)[0]["status"] == "failed"
    assert tune("--trials", "2").status == 0, "typed again, they are run again"


def test_without_optuna_one_line_says_what_to_install(
    depthlab: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("depthlab.tuning")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(package, "tuning", raising=False)
    monkeypatch.setitem(sys.modules, "optuna", None)
    answer = depthlab("tune", "model.depth=5,10")
    assert answer.status == 2
    expected = "depthlab: depthlab tune needs optuna, which is not installed: pip install 'depthlab[tune]'\n"
    assert answer.error == expected
    assert list(folder.iterdir()) == []
    assert depthlab("tune", "--help").status == 0
