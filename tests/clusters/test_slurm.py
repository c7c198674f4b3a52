"""hydra/launcher=submitit_slurm on a real Slurm: node failures, time limits, preemption, lost jobs, Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from slurm import Slurm, missing
from sweeps import Sweep

from depthlab.runs import Run

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(missing()), reason=missing())]

ENGINE = "hydra/launcher=submitit_slurm"
URGENT = """PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE State=UP"""

Readings = Callable[[int], dict[str, bytes]]


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Slurm]:
    pytest.importorskip("submitit")
    folder = tmp_path / "slurm"
    folder.mkdir()
    with Slurm(folder, 3, lines=URGENT) as slurm:
        yield slurm


def sweep_on(cluster: Slurm, tmp_path: Path, steps: int, *more: str) -> Sweep:
    return Sweep(tmp_path / "results", steps, [ENGINE, *more], cluster.environment)


def running(cluster: Slurm) -> dict[str, str]:
    """Nodes of the jobs that run, by number."""
    return {number: node for number, (state, node) in cluster.jobs().items() if state == "RUNNING"}


def resumed(runs: list[Run]) -> int:
    """How many runs went on from a checkpoint."""
    return sum("resumed_at_steps" in run.record() for run in runs)


def test_a_node_dies_in_the_midst_of_a_sweep(cluster: Slurm, tmp_path: Path, undisturbed: Readings) -> None:
    """Its job is queued again, goes on elsewhere from its checkpoint, and the readings are the same, byte for byte."""
    with sweep_on(cluster, tmp_path, 3000) as sweep:
        sweep.until("three runs are saved", lambda: len(sweep.saved()) == 3)
        lost = next(iter(running(cluster).values()))
        cluster.kill_node(lost)
        assert sweep.ends() == 0, sweep.told + cluster.log()
    assert sweep.counts() == (4, 0, 0)
    assert resumed(sweep.runs) >= 1
    assert sweep.readings() == undisturbed(3000)
    assert not list((sweep.results / "submitit").iterdir())


def test_a_time_limit_is_no_end(cluster: Slurm, tmp_path: Path, undisturbed: Readings) -> None:
    """A minute, of which Slurm takes up to another off: the run is saved, its job queued again, until it is through."""
    limits = ["sweep.slurm.timeout_min=1", "sweep.slurm.parameters=[signal:USR2@20]"]
    with sweep_on(cluster, tmp_path, 24_000, *limits) as sweep:
        assert sweep.ends() == 0, sweep.told + cluster.log()
    assert sweep.counts() == (4, 0, 0)
    assert resumed(sweep.runs) >= 1
    assert sweep.readings() == undisturbed(24_000)


def test_a_job_that_is_more_urgent_goes_first(cluster: Slurm, tmp_path: Path, undisturbed: Readings) -> None:
    with sweep_on(cluster, tmp_path, 3000) as sweep:
        sweep.until("three runs are saved", lambda: len(sweep.saved()) == 3)
        cluster.run("sbatch", "--partition=urgent", "--nodes=2", "--output=/dev/null", "--wrap=sleep 3")
        sweep.until("two jobs have left", lambda: list(cluster.jobs().values()).count(("PENDING", "")) >= 2)
        assert sweep.ends() == 0, sweep.told + cluster.log()
    assert sweep.counts() == (4, 0, 0)
    assert resumed(sweep.runs) >= 2
    assert sweep.readings() == undisturbed(3000)


def test_a_run_that_is_killed_or_fails_stops_no_other(cluster: Slurm, tmp_path: Path, undisturbed: Readings) -> None:
    with sweep_on(cluster, tmp_path, 3000) as sweep:
        killed, *_ = sweep.until("a run is saved", sweep.saved)
        os.kill(killed.record()["pid"], signal.SIGKILL)
        assert sweep.ends() == 1, sweep.told + cluster.log()
    assert sweep.counts() == (3, 0, 1)
    (line,) = [line for line in sweep.told.splitlines() if line.startswith(f"  {killed.key} ")]
    assert "failed: its job ended without a result: FAILED; its log is" in line
    assert Path(line.rpartition(" ")[2]).is_file()
    whole = {run.key for run in sweep.runs if run.status().finished}
    assert len(whole) == 3
    with sweep_on(cluster, tmp_path, 3000) as again:
        assert again.ends() == 0, again.told
    assert again.counts() == (1, 3, 0)
    assert again.readings() == undisturbed(3000)


def test_ctrl_c_cancels_the_jobs_and_saves_the_runs(cluster: Slurm, tmp_path: Path, undisturbed: Readings) -> None:
    with sweep_on(cluster, tmp_path, 3000, "sweep.checkpoint_seconds=0", "sweep.workers=2") as sweep:
        sweep.until("two runs have begun", lambda: len([each for each in sweep.records() if each]) == 2)
        assert len(running(cluster)) == 2  # of three nodes
        sweep.process.send_signal(signal.SIGINT)
        assert sweep.ends() == 130, sweep.told
    assert "stopping: job" in sweep.told
    assert cluster.jobs() == {}
    assert {record["status"] for record in sweep.records()} == {"interrupted"}
    assert all(any(run.folder.glob("checkpoint-*.pt")) for run in sweep.runs)
    with sweep_on(cluster, tmp_path, 3000) as again:
        assert again.ends() == 0, again.told
    assert resumed(again.runs) == 2
    assert again.readings() == undisturbed(3000)


def test_what_slurm_refuses_is_told_in_a_line(cluster: Slurm, tmp_path: Path) -> None:
    with sweep_on(cluster, tmp_path, 100, "sweep.slurm.partition=none") as sweep:
        assert sweep.ends() == 1
    told = sweep.told.splitlines()
    assert told[-1].startswith("depthlab: the jobs cannot be submitted: sbatch: error: ")
    assert "invalid partition" in told[-1]
    assert "Traceback" not in sweep.told
    shutil.rmtree(sweep.results)
