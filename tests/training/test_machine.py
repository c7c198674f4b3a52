from __future__ import annotations

import ctypes
import os
import sys
from types import SimpleNamespace

import pytest
import torch

from depthlab.config import ConfigError
from depthlab.training import available_cores, prepare_process, resolve_device


def test_auto_is_cuda_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda")


def test_named_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("cuda") == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(ConfigError, match="device=cuda:2: this machine has 2 CUDA devices; choose auto or cpu"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("name", ["cuda", "cuda:0"])
def test_cuda_without_cuda(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ConfigError, match=f"device={name}: this machine has 0 CUDA devices; choose auto or cpu"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cpu cuda"])
def test_no_device(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device={name} is not a device; choose auto, cpu, cuda or cuda:N"):
        resolve_device(name)


@pytest.mark.parametrize("name", ["mps", "meta"])
def test_device_that_is_not_supported(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device={name} is not supported; choose auto, cpu"):
        resolve_device(name)


def test_cores_are_those_this_process_may_use() -> None:
    assert 1 <= available_cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sched_setaffinity"):
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(allowed)})
        try:
            assert available_cores() == 1
        finally:
            os.sched_setaffinity(0, allowed)


def test_process_can_be_prepared_again_and_again() -> None:
    before = torch.get_num_threads()
    try:
        for threads in (2, 2, 1):
            prepare_process(threads)
            assert torch.get_num_threads() == threads
            assert torch.ones(1 << 20).sum() == 1 << 20
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="the thresholds are glibc's")
def test_large_freed_buffers_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=lambda *call: calls.append(call)))
    prepare_process(1)
    assert sorted(calls) == [(-3, 1 << 30), (-1, (1 << 31) - 1)]  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of malloc.h
