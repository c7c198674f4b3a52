"""For all tests: one thread, the same examples every time, no deadlines; a GPU is asked for by name."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # more are far slower on small tensors, and pytest -n runs a process on every core
settings.register_profile("depthlab", derandomize=True, deadline=None)
settings.load_profile("depthlab")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as shells start what is put into the background
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked gpu need one."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture
def without_compiler() -> Iterator[None]:
    """No C++ compiler is found by torch.compile, and whether there is one is asked anew."""
    from torch._inductor import config

    from depthlab.training import check_compiler

    check_compiler.cache_clear()
    with config.patch({"cpp.cxx": (None, "no-such-compiler")}):
        yield
    check_compiler.cache_clear()
