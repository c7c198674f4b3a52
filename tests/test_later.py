"""A short start: Python looks for no garbage while it imports, and for none when a command's process ends."""

from __future__ import annotations

import gc
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from depthlab._later import uncollected


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    gc.enable()


def test_garbage_is_looked_for_again_after_an_error() -> None:
    inside = []
    with suppress(ImportError), uncollected():
        inside.append(gc.isenabled())
        raise ImportError
    assert (inside, gc.isenabled()) == ([False], True)


def test_who_looks_for_no_garbage_is_left_alone() -> None:
    gc.disable()
    with uncollected():
        pass
    assert not gc.isenabled()


@pytest.mark.parametrize(
    ("arguments", "is_alone", "is_frozen", "is_collected"),
    [(["runs"], True, True, False), (["runs"], False, False, True), (["train", "wrong=1"], True, True, True)],
)
def test_only_a_process_of_its_own_keeps_what_a_command_imports_and_looks_for_no_garbage_if_there_is_little(
    tmp_path: Path, arguments: list[str], is_alone: bool, is_frozen: bool, is_collected: bool
) -> None:
    program = (
        f"import gc, sys; from depthlab.cli import main; sys.argv = ['depthlab', *{arguments}]; "
        f"main({'' if is_alone else arguments}); print(gc.get_freeze_count() > 0, gc.isenabled())"
    )
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == f"{is_frozen} {is_collected}"
