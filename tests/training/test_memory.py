"""Memory that is left: of the system, of control groups as they look on disk, and what a process had at its largest."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from depthlab.training import available_memory, free_gpu_memory, memory

GIB = 2**30
ROOT = Path(__file__).parents[2]


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the control groups are, none so far; the system has 100 GiB."""
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100 * GIB))
    return tmp_path / "cgroup"


def group(folder: Path, version: int, limit: str, used: int, droppable: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    names = ("memory.max", "memory.current", "inactive_file"), (
        "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    )  # fmt: skip
    of_limit, of_use, of_stat = names[0 if version == 2 else 1]
    (folder / of_limit).write_text(f"{limit}\n")
    (folder / of_use).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 1\n{of_stat} {droppable}\nfile 7\n")


def test_without_a_limit_it_is_what_the_system_has(groups: Path) -> None:
    assert available_memory() == 100 * GIB  # no control groups at all: not Linux
    memory.MEMBERSHIP.write_text("0::/user.slice/session\n")
    group(groups / "user.slice" / "session", 2, "max", 5 * GIB, 0)
    assert available_memory() == 100 * GIB


def test_a_limit_counts_and_pages_that_can_be_dropped_are_free(groups: Path) -> None:
    memory.MEMBERSHIP.write_text("0::/job\n")
    group(groups / "job", 2, str(8 * GIB), 5 * GIB, 2 * GIB)
    assert available_memory() == 5 * GIB
    group(groups / "job", 2, str(200 * GIB), 5 * GIB, 2 * GIB)
    assert available_memory() == 100 * GIB
    group(groups / "job", 2, str(2 * GIB), 5 * GIB, 2 * GIB)
    assert available_memory() == 0


def test_the_tightest_of_all_groups_around_counts(groups: Path) -> None:
    memory.MEMBERSHIP.write_text("0::/slurm/job/step\n")
    group(groups / "slurm" / "job" / "step", 2, "max", GIB, 0)
    group(groups / "slurm" / "job", 2, str(6 * GIB), 2 * GIB, 0)
    group(groups / "slurm", 2, str(64 * GIB), 32 * GIB, 0)
    group(groups.parent, 2, str(GIB), 0, 0)  # no group is above the outermost
    assert available_memory() == 4 * GIB


@pytest.mark.parametrize("path", ["/docker/0123abcd", "/"])
def test_version_1_whose_path_may_be_the_hosts(groups: Path, path: str) -> None:
    memory.MEMBERSHIP.write_text(f"6:name=memory2:/other\n5:cpu,cpuacct:/other\n4:hugetlb,memory:{path}\n0::/\n")
    group(groups / "memory", 1, str(3 * GIB), 2 * GIB, GIB)
    group(groups / "memory" / "other", 1, "1", 0, 0)  # where another controller has this process, not that of memory
    assert available_memory() == 2 * GIB


@pytest.mark.parametrize(
    ("name", "content"), [("memory.max", "much"), ("memory.current", ""), ("memory.stat", "anon 1\n")]
)
def test_a_group_whose_files_say_something_else_is_passed_over(groups: Path, name: str, content: str) -> None:
    memory.MEMBERSHIP.write_text("0::/job/step\n")
    group(groups / "job", 2, str(8 * GIB), 5 * GIB, 0)
    group(groups / "job" / "step", 2, str(GIB), 0, 0)
    assert available_memory() == GIB
    (groups / "job" / "step" / name).write_text(content)
    assert available_memory() == 3 * GIB


def test_memory_of_this_machine_is_what_the_system_says() -> None:
    assert 0 < available_memory() <= psutil.virtual_memory().total


def test_free_gpu_memory_is_the_first_of_what_cuda_says(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (3 * GIB, 80 * GIB))
    assert free_gpu_memory(torch.device("cuda:1")) == 3 * GIB
    assert asked == [torch.device("cuda:1")]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is what the process has now")
def test_own_peak_where_the_kernel_tells_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = memory.own_peak()
    (tmp_path / "status").write_text("Name:\tpython\nVmSize:\t 9000 kB\nVmRSS:\t 8000 kB\nThreads:\t1\n")
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert exact < memory.own_peak() < psutil.virtual_memory().total


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is what the process has now")
def test_own_peak_is_the_highest_less_what_is_shared_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "Name:\tpython\nVmHWM:\t 9000 kB\nVmRSS:\t 5000 kB\nRssFile:\t 300 kB\nRssShmem:\t 20 kB\nThreads:\t1\n"
    (tmp_path / "status").write_text(lines)
    monkeypatch.setattr(memory, "STATUS", tmp_path / "status")
    assert memory.own_peak() == 1024 * (9000 - 300 - 20)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is what the process has now")
def test_own_peak_counts_what_was_freed_and_not_what_is_mapped(tmp_path: Path) -> None:
    """64 MiB that are there for a moment, and 64 MiB of a file that is mapped all along."""
    (tmp_path / "file").write_bytes(bytes(64 * 2**20))
    code = f"""
import numpy as np
from depthlab.training import own_peak
before = own_peak()
mapped = np.memmap({str(tmp_path / "file")!r}, mode="r")
mapped[::4096].sum()
with_file = own_peak()
np.ones(8 * 2**20).sum()
print(with_file - before, own_peak() - before)
"""
    told = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    with_file, with_both = (int(word) / 2**20 for word in told.split())
    assert abs(with_file) < 8
    assert 60 < with_both < 80
