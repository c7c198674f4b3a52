"""The ledger shows every run there is, the damaged ones too; provenance says where a result came from."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

from depthlab.config import RunConfig, TrainConfig
from depthlab.runs import Run, execute, ledger
from depthlab.runs import provenance as module

CPU = torch.device("cpu")


def test_an_empty_results_folder_has_no_entries(results: Path) -> None:
    assert ledger() == []
    (results / "runs").mkdir(parents=True)
    (results / "runs" / "note.txt").write_text("no directory")
    assert ledger() == []


def test_every_directory_has_an_entry(tiny: RunConfig, results: Path) -> None:
    done = execute(tiny, device=CPU)
    diverged = execute(dataclasses.replace(tiny, train=TrainConfig(steps=6, batch_size=20, lr=1e30)), device=CPU)
    failed, running, damaged, unreadable = (Run(results / "runs" / name) for name in ("fail", "run", "bad", "worse"))
    for run in (failed, running, damaged, unreadable):
        run.folder.mkdir()
    failed.end_early({"status": "failed", "error": "ValueError: no luck"}, None)
    here = {"host": socket.gethostname(), "pid": os.getpid(), "started": "2020-01-01T00:00:00+00:00"}
    running.begin(dataclasses.replace(tiny, seed=5), here)
    (running.folder / "lock").touch()
    (damaged.folder / "run.json").write_text("{")
    done_too = execute(dataclasses.replace(tiny, seed=9), device=CPU)
    (done_too.folder / "config.yaml").write_text("model: {depth: deep}")

    entries = {entry.key: entry for entry in ledger()}
    assert list(entries) == sorted(entries)
    error = done.record()["metrics"]["test_error"]
    assert (entries[done.key].status, entries[done.key].about) == ("done", f"test error {error:.2%}")
    assert "model.depth=3 model.width=8 train.steps=6" in entries[done.key].described
    assert "train.lr=" not in entries[done.key].settings
    assert entries[diverged.key].status == "diverged"
    assert entries[diverged.key].about == f"at step {diverged.record()['diverged_step']}"
    assert "train.lr=1e+30" in entries[diverged.key].described
    assert (entries["fail"].status, entries["fail"].about) == ("failed", "ValueError: no luck")
    assert entries["run"].status == "running"
    assert "since 2020-01-01" in entries["run"].about
    assert "seed=5" in entries["run"].described
    assert entries["bad"].status == "damaged"
    assert "delete" in entries["bad"].about
    assert entries["worse"].status == "missing"
    assert entries[done_too.key].described.endswith("seed=9")  # run.json holds the settings too
    record = {name: value for name, value in done_too.record().items() if name != "settings"}
    done_too._write_record(record)
    assert {entry.key: entry for entry in ledger()}[done_too.key].settings == {}


def test_given_runs_are_listed_once_the_missing_ones_too(tiny: RunConfig) -> None:
    execute(tiny, device=CPU)
    missing = dataclasses.replace(tiny, seed=1)
    entries = ledger([missing, tiny, missing])
    assert [(entry.key, entry.status) for entry in entries] == [(missing.key(), "missing"), (tiny.key(), "done")]
    assert entries[0].described.endswith("seed=1")


@pytest.fixture
def git(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """What git answers, by the subcommand."""
    answers: dict[str, str | None] = {"rev-parse": "c0ffee", "ls-files": "provenance.py", "status": ""}
    monkeypatch.setattr(module, "_git", lambda folder, command, *rest: answers[command])
    return answers


def code() -> tuple[object, object]:
    module._code.cache_clear()
    found = module.provenance()
    module._code.cache_clear()
    return found["commit"], found["dirty"]


def test_commit_and_whether_files_differ_from_it(git: dict[str, str | None]) -> None:
    assert code() == ("c0ffee", False)
    git["status"] = "M src/depthlab/config/schema.py"
    assert code() == ("c0ffee", True)
    git["status"] = None
    assert code() == ("c0ffee", None)


def test_another_project_around_an_installed_copy_is_not_its_commit(git: dict[str, str | None]) -> None:
    git["ls-files"] = None
    assert code() == (None, None)


def test_no_checkout_is_no_commit(git: dict[str, str | None]) -> None:
    git["rev-parse"] = None
    assert code() == (None, None)


def test_git_that_is_not_there_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert module._git(tmp_path, "rev-parse", "HEAD") is None
    monkeypatch.setenv("PATH", "")
    assert module._git(tmp_path, "--version") is None


@pytest.mark.parametrize("program", ["/usr/bin/depthlab", "/some/where/depthlab/__main__.py"])
def test_the_command_can_be_typed_again(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(sys, "argv", [program, "train", "seed=range(3)"])
    assert module.command_line() == "depthlab train 'seed=range(3)'"


def test_versions_and_machine_are_noted() -> None:
    found = module.provenance()
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["machine"]["processor"]


def test_ten_thousand_runs_are_listed_in_a_moment(results: Path) -> None:
    record = {
        "status": "done", "steps": 6, "wall_seconds": 1.0, "metrics": {"test_error": 0.5},
        "settings": {"model.depth": 3, "seed": 1},
    }  # fmt: skip
    for number in range(10_000):
        folder = results / "runs" / f"{number:016x}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps(record))
    began = time.process_time()
    entries = ledger()
    assert time.process_time() - began < 2
    assert len(entries) == 10_000
    assert all(entry.described == "model.depth=3 seed=1" for entry in entries)
