"""One thread, a fixed seed, and no deadlines: a busy machine is no reason to fail."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # more threads on such small tensors are far slower
settings.register_profile("probes", deadline=None, max_examples=30)
settings.load_profile("probes")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
