"""The readings of a sweep that nothing disturbed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for sweeps, slurm and nodes, which tests look for by their names


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, bytes]]:
    """The readings of the sweep of so many steps, from the processes of this machine."""
    from sweeps import Sweep

    found: dict[int, dict[str, bytes]] = {}

    def readings(steps: int) -> dict[str, bytes]:
        if steps not in found:
            with Sweep(tmp_path_factory.mktemp("undisturbed"), steps, ["sweep.workers=2"]) as sweep:
                assert sweep.ends() == 0, sweep.told
            found[steps] = sweep.readings()
            assert len(found[steps]) == 4
        return found[steps]

    return readings
