"""What the README shows is what happens: its script runs as it stands there."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def script() -> str:
    """The first block of Python that uses `depthlab.watch`."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if "depthlab.watch" in block)


def test_script_has_fifteen_lines() -> None:
    assert len([line for line in script().splitlines() if line.strip()]) <= 15


def test_ratios_are_those_of_the_benchmarks() -> None:
    spec = importlib.util.spec_from_file_location("headlines", ROOT / "benchmarks" / "headlines.py")
    assert spec is not None
    assert spec.loader is not None
    headlines = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(headlines)
    listed = headlines.listed(ROOT / "benchmarks" / "results")
    assert listed.count("\n") >= 2
    found = headlines.MARKED.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found is not None
    assert found.group().strip() == listed.strip(), "python benchmarks/headlines.py writes them"


@pytest.mark.slow
def test_script_draws_its_picture(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n{script()}\nprint(watcher, watcher.layers)"
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:depthlab", "-c", code],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "120 steps, 21 weight layers" in result.stdout
    assert "'layer4.1.conv2', 'fc'" in result.stdout
    picture = (tmp_path / "gradients.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 20_000
