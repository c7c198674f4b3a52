"""A run of a moment, in a results folder of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from depthlab.config import DataConfig, ModelConfig, ProbesConfig, RunConfig, TrainConfig

sys.path.insert(0, str(Path(__file__).parent))  # for in_processes, which started processes look for by its name


@pytest.fixture(autouse=True)
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$DEPTHLAB_RESULTS, empty."""
    monkeypatch.setenv("DEPTHLAB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("DEPTHLAB_DATA", str(tmp_path / "data"))
    return tmp_path / "results"


@pytest.fixture
def tiny() -> RunConfig:
    """Six updates of three layers, evaluated after three and six."""
    return RunConfig(
        data=DataConfig(name="synthetic", train_size=60),
        model=ModelConfig(depth=3, width=8),
        train=TrainConfig(steps=6, batch_size=20, eval_every=3),
        probes=ProbesConfig(every=2, names=("grad_norm", "weight_norm")),
    )
