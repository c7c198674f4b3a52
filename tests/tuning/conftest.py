"""Searches over runs of a moment, in a results folder of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from depthlab.tuning import Search

sys.path.insert(0, str(Path(__file__).parent))  # for tiny_runs, which started processes look for by its name


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$DEPTHLAB_RESULTS, empty."""
    monkeypatch.setenv("DEPTHLAB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("DEPTHLAB_DATA", str(tmp_path / "data"))
    return tmp_path / "results"


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Search]:
    """A search over two settings of a tiny run, with what a test changes."""
    tuning = pytest.importorskip("depthlab.tuning", reason="needs optuna: pip install 'depthlab[tune]'")
    from tiny_runs import RANGES, configured

    def make(**changes: Any) -> Search:
        given = {"folder": tmp_path / "results" / "tune" / "study", "ranges": RANGES, "configure": configured}
        given |= {"fixed": "", "trials": 6, "device": torch.device("cpu"), "pruner": "none"}
        found: Search = tuning.Search(**given | changes)
        return found

    return make
