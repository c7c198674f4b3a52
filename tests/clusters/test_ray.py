"""hydra/launcher=ray: on a real Ray of two nodes, of which one dies, and on one of the sweep's own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ray_nodes import RayNodes, missing
from sweeps import Sweep

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(missing()), reason=missing())]

ENGINE = "hydra/launcher=ray"

Readings = Callable[[int], dict[str, bytes]]


@pytest.fixture
def cluster() -> Iterator[RayNodes]:
    with RayNodes(2) as nodes:
        yield nodes


def test_a_node_dies_in_the_midst_of_a_sweep(cluster: RayNodes, tmp_path: Path, undisturbed: Readings) -> None:
    """What it trained goes on on the other from its checkpoint, and the readings are the same, byte for byte."""
    joined = [ENGINE, f"sweep.ray.address={cluster.address}"]
    with Sweep(tmp_path / "results", 3000, joined, cluster.environment) as sweep:
        saved = sweep.until("two runs are saved", lambda: len(sweep.saved()) == 2 and sweep.saved())
        lost = saved[0]
        cluster.kill_node_of(lost.record()["pid"])
        assert sweep.ends() == 0, sweep.told
    assert sweep.counts() == (4, 0, 0)
    assert lost.record()["resumed_at_steps"]
    assert sweep.readings() == undisturbed(3000)


def test_a_run_that_is_killed_goes_on_and_ctrl_c_saves_all(tmp_path: Path, undisturbed: Readings) -> None:
    own = [ENGINE, "sweep.workers=2"]
    with Sweep(tmp_path / "results", 3000, own) as sweep:
        killed, *_ = sweep.until("a run is saved", sweep.saved)
        os.kill(pid := killed.record()["pid"], signal.SIGKILL)
        sweep.until("it goes on", lambda: killed.record().get("pid") != pid)
        sweep.until("two runs are being trained", lambda: len(sweep.saved()) == 2)
        sweep.process.send_signal(signal.SIGINT)
        assert sweep.ends() == 130, sweep.told
    assert "stopping: each run finishes its update and is saved" in sweep.told
    states = [run.record()["status"] for run in sweep.runs]
    assert "running" not in states
    assert states.count("interrupted") == 2
    with Sweep(tmp_path / "results", 3000, own) as again:
        assert again.ends() == 0, again.told
    assert again.readings() == undisturbed(3000)


def test_a_run_that_is_killed_over_and_over_fails_alone(tmp_path: Path, undisturbed: Readings) -> None:
    with Sweep(tmp_path / "results", 3000, [ENGINE, "sweep.workers=2", "sweep.ray.max_retries=0"]) as sweep:
        killed, *_ = sweep.until("a run is saved", sweep.saved)
        os.kill(killed.record()["pid"], signal.SIGKILL)
        assert sweep.ends() == 1, sweep.told
    assert sweep.counts() == (3, 0, 1)
    (line,) = [line for line in sweep.told.splitlines() if line.startswith(f"  {killed.key} ")]
    assert "failed: its job ended without a result: WorkerCrashedError after 0 retries" in line
