"""`depthlab runs`: selecting, exporting, training again and deleting."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from depthlab import runs
from depthlab.config import RunConfig
from depthlab.runs.trial import Trial


@pytest.fixture
def four(depthlab: Callable[..., Any], tiny: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys of a run that is done, one that failed, one that was interrupted and one that is damaged."""
    train = Trial.run

    def eventful(self: Trial) -> dict[str, Any]:
        if self.config.seed == 1:
            raise ValueError("no luck")
        if self.config.seed == 2:
            raise KeyboardInterrupt
        return train(self)

    monkeypatch.setattr(Trial, "run", eventful)
    assert depthlab("train", *tiny, "seed=0").status == 0
    with pytest.raises(ValueError, match="no luck"):
        depthlab("train", *tiny, "seed=1")
    assert depthlab("train", *tiny, "seed=2").status == 130
    assert depthlab("train", *tiny, "seed=3").status == 0
    monkeypatch.setattr(Trial, "run", train)
    keys = {entry.settings.get("seed", 0): entry.key for entry in runs.ledger()}
    (folder / "results" / "runs" / keys[3] / "run.json").write_text("{")
    return [keys[seed] for seed in range(4)]


def listed(answer: Any) -> list[str]:
    return [line.split()[0] for line in answer.out.splitlines()[:-1]]


def test_selects_by_state_and_setting(depthlab: Callable[..., Any], four: list[str]) -> None:
    assert set(listed(depthlab("runs"))) == set(four)
    assert listed(depthlab("runs", "--status", "failed")) == [four[1]]
    assert set(listed(depthlab("runs", "--status", "failed,interrupted"))) == set(four[1:3])
    assert listed(depthlab("runs", "--where", "seed=2")) == [four[2]]
    assert listed(depthlab("runs", "--where", "seed=2", "--where", "model.depth=3")) == [four[2]]
    assert listed(depthlab("runs", "--where", "model.depth=4")) == []
    assert four[0] in listed(depthlab("runs", "--where", "model.norm=none"))  # a default


def test_exports(depthlab: Callable[..., Any], four: list[str]) -> None:
    rows = {row["key"]: row for row in csv.DictReader(io.StringIO(depthlab("runs", "--format", "csv").out))}
    assert set(rows) == set(four)
    assert (rows[four[0]]["status"], rows[four[0]]["model.depth"]) == ("done", "3")
    assert 0 <= float(rows[four[0]]["test_error"]) <= 1
    assert rows[four[1]]["about"] == "ValueError: no luck"
    entries = {entry["key"]: entry for entry in json.loads(depthlab("runs", "--format", "json").out)}
    assert entries[four[2]]["status"] == "interrupted"
    assert entries[four[2]]["settings"]["seed"] == 2
    assert depthlab("runs", "--where", "seed=99", "--format", "csv").out == "key,status,about\n"


def test_trains_failed_runs_again(
    depthlab: Callable[..., Any], four: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RunConfig] = []

    def sweep(configs: list[RunConfig], **_: Any) -> runs.Outcome:
        asked.extend(configs)
        return runs.Outcome(len(configs), 0, [])

    monkeypatch.setattr(runs, "sweep", sweep)
    answer = depthlab("runs", "--retry-failed")
    assert (answer.status, answer.out) == (0, "1 runs trained, 0 found finished, 0 failed\n")
    assert [config.key() for config in asked] == [four[1]]


def test_deletes_what_has_nothing_worth_keeping(depthlab: Callable[..., Any], four: list[str], folder: Path) -> None:
    answer = depthlab("runs", "--clean")
    assert answer.status == 0
    assert answer.out.endswith("2 runs deleted\n")
    left = {path.name for path in (folder / "results" / "runs").iterdir()}
    assert left == {four[0], four[2]}
    assert depthlab("runs", "--clean", "--status", "interrupted").out.endswith("1 runs deleted\n")
    assert {path.name for path in (folder / "results" / "runs").iterdir()} == {four[0]}


def test_what_is_being_trained_is_not_deleted(depthlab: Callable[..., Any], four: list[str], folder: Path) -> None:
    with runs.Run(folder / "results" / "runs" / four[1]).locked():
        answer = depthlab("runs", "--clean")
    assert answer.status == 1
    assert "is being trained; it was left as it is" in answer.error
    assert (folder / "results" / "runs" / four[1]).is_dir()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--status", "faild"], "--status faild must be among missing, running, .*, damaged; did you mean failed"),
        (["--where", "model.dept=3"], "--where model.dept: there is no such setting; did you mean model.depth"),
        (["model.depth=3"], "to select by a setting, give --where model.depth=3"),
    ],
)
def test_mistakes_are_named(depthlab: Callable[..., Any], arguments: list[str], error: str) -> None:
    answer = depthlab("runs", *arguments)
    assert answer.status == 2
    assert answer.error.count("\n") == 1
    import re

    assert re.search(error, answer.error), answer.error
