"""`depthlab` as typed, in this process and an empty working directory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from depthlab.cli import main

TINY = ["data=synthetic", "data.train_size=60", "model.depth=3", "model.width=8", "train.steps=20"]
TINY += ["train.batch_size=20", "train.eval_every=10", "probes.every=0"]


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    status: int
    out: str
    error: str


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory; results are in its `results`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEPTHLAB_RESULTS", raising=False)
    monkeypatch.setenv("DEPTHLAB_DATA", str(tmp_path / "data"))
    return tmp_path


@pytest.fixture
def depthlab(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs a command line in this process."""

    def run(*arguments: str) -> Answer:
        try:
            status = main(arguments)
        except SystemExit as end:
            status = int(end.code or 0)
        told = capsys.readouterr()
        return Answer(status, told.out, told.err)

    return run


@pytest.fixture
def tiny() -> list[str]:
    """Settings of a run of a moment."""
    return list(TINY)
