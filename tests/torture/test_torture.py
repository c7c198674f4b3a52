"""The short form of the torture; `make torture` is the long one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).parent / "harness.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the harness finds workers in /proc")
def test_a_sweep_that_is_killed_at_random_moments_gives_the_same_readings() -> None:
    command = [sys.executable, str(HARNESS), "--kills", "6", "--seed", "3"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.startswith("6 kills")
    assert "nothing to complain of" in ended.stdout
