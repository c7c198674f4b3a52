"""Networks and trainings that several tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))  # for loop and fleet, which started processes look for by its name


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
