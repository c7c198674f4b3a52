"""Every file of a run directory, cut off anywhere: recovered or told, and never taken for a result."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from depthlab.config import RunConfig
from depthlab.runs import Run, Status, StoreError, execute, ledger, load_readings

CPU = torch.device("cpu")
FILES = ["run.json", "readings.parquet", "config.yaml"]


def cut(path: Path, seed: int) -> int:
    """Leaves a part of a file, of a length that is drawn; 0 and all but the last byte among them."""
    content = path.read_bytes()
    length = {0: 0, 1: len(content) - 1}.get(seed, random.Random(seed).randrange(len(content)))
    path.write_bytes(content[:length])
    return length


def asked(question: Callable[[], Any]) -> tuple[Any, str]:
    """The answer, or what was told instead of it; any other exception is a failure."""
    try:
        return question(), ""
    except StoreError as error:
        return None, str(error)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", FILES)
def test_a_finished_run_of_which_a_file_was_cut_off(tiny: RunConfig, tmp_path: Path, name: str, seed: int) -> None:
    expected = execute(tiny, root=tmp_path / "whole", device=CPU).readings()
    run = execute(tiny, device=CPU)
    cut(run.folder / name, seed)
    (entry,) = ledger()
    found, told = asked(lambda: load_readings([tiny]))
    # the last byte of run.json is a line feed, and config.yaml holds nothing that is needed
    if name == "config.yaml" or (name == "run.json" and seed == 1):
        assert found["value"].tolist() == expected["value"].tolist()
        assert entry.status == Status.DONE
    else:
        assert run.key in told
        assert "delete" in told or "not finished" in told
        assert entry.status in ("damaged", "done")
    # asked for again, a run whose record is damaged says so, and does not train over what may be a result
    again, told = asked(lambda: execute(tiny, device=CPU))
    assert again == run or (name == "run.json" and "delete" in told)


@pytest.mark.parametrize("seed", range(4))
def test_a_deleted_run_is_trained_again(tiny: RunConfig, seed: int) -> None:
    run = execute(tiny, device=CPU)
    expected = run.readings()
    cut(run.folder / "run.json", seed)
    for path in run.folder.iterdir():
        path.unlink()
    assert Run.of(tiny).status() is Status.MISSING
    assert execute(tiny, device=CPU).readings().equals(expected)
