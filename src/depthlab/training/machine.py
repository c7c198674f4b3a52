"""The machine: which device, how many threads, how memory is handed out."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from depthlab.config import ConfigError


def resolve_device(name: str) -> torch.device:
    """The device of a name such as "cpu" or "cuda:1"; "auto" is CUDA where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name} is not a device; choose auto, cpu, cuda or cuda:N") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={name}: this machine has {torch.cuda.device_count()} CUDA devices; choose auto or cpu"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name} is not supported; choose auto, cpu, cuda or cuda:N")
    return device


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare_process(threads: int) -> None:
    """Sets the number of threads, and keeps large freed buffers instead of handing them back to the system.

    A training step frees and asks for the same large buffers again; with glibc's default thresholds each of them is
    mapped, zeroed page by page and unmapped, which costs about a tenth of a convolutional step on the CPU.
    """
    torch.set_num_threads(threads)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            trim_threshold, mmap_threshold = -1, -3
            libc.mallopt(mmap_threshold, 1 << 30)
            libc.mallopt(trim_threshold, (1 << 31) - 1)
