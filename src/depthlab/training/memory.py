"""How much memory there is to be had: of the machine, of the containers around this process, of a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

MEMBERSHIP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
STATUS = Path("/proc/self/status")

ACCOUNTS = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of version 2 and of version 1 of Linux's control groups: limit, use, and what of memory.stat the system can drop."""


def available_memory() -> int:
    """Bytes that this process and its children can still take without swapping.

    That is what the system has available, or less where a container or a job of a cluster has a limit: in each control
    group that this process is in, directly or not, limit - (use - inactive pages of files), the second term being what
    Kubernetes calls the working set.
    """
    return min([int(psutil.virtual_memory().available), *_left_in_groups()])


def free_gpu_memory(device: torch.device) -> int:
    """Bytes that are free on a CUDA device, whoever uses the rest."""
    return torch.cuda.mem_get_info(device)[0]


def own_peak() -> int:
    """Bytes that this process had to itself when it was largest; mapped files and libraries, which others share, not.

    What it has from a process that it was forked from counts, though as long as neither writes there it is shared.

    On Linux the highest resident size since the process began its program (getrusage's is also that of the process it
    came from), less what it shares now; where the kernel tells none of these, as gVisor's, getrusage's with all that
    is shared. Elsewhere what the process has to itself now.
    """
    if sys.platform != "linux":
        return int(psutil.Process().memory_full_info().uss)
    lines = (line.split() for line in STATUS.read_text(encoding="utf-8").splitlines())
    kib = {words[0]: int(words[1]) for words in lines if words[-1] == "kB"}
    if not kib.keys() >= {"VmHWM:", "RssFile:", "RssShmem:"}:
        import resource  # noqa: PLC0415 - Windows has none

        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * (kib["VmHWM:"] - kib["RssFile:"] - kib["RssShmem:"])


def _left_in_groups() -> Iterator[int]:
    """What is left of each limit."""
    for folder in _groups():
        for limit, use, droppable in ACCOUNTS:
            try:
                text = (folder / limit).read_text(encoding="ascii").strip()
                if text == "max":
                    continue
                stat = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
                most = int(text)
                used = int((folder / use).read_text(encoding="ascii")) - int(stat[droppable])
            except (OSError, KeyError, ValueError):
                continue  # no such group, or not one of memory
            yield max(most - used, 0)


def _groups() -> Iterator[Path]:
    """The folders of the groups that this process is in, up to the outermost.

    Inside a container the path may be the host's, of which only the outermost folder, the container's own, is there.
    """
    try:
        lines = MEMBERSHIP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return  # not Linux
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        root = GROUPS / "memory" if controllers else GROUPS
        folder = root / path.lstrip("/")
        yield from (each for each in (folder, *folder.parents) if each == root or root in each.parents)
