"""The house of docs/architecture.md: who may import whom, and what stays unimported until it is needed.

Each rule is a function from a tree of sources to the sentences that name its breaches, so that the same rule reads the
real tree, where it finds none, and small trees with a planted fault, where it must find one.
"""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FLOORS = [
    {"config", "theory", "_torchvision", "_processes", "_later"},
    {"nets", "data", "probes", "_forked"},
    {"training", "diagnosis"},
    {"figures", "runs"},
    {"experiments", "instrument", "tuning"},
    {"cli"},
    {"__init__", "__main__"},  # the face of the package and of its command
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS, 1) for room in rooms}

ONLY_IN = {
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "matplotlib": {"figures", "experiments", "instrument"},
    "optuna": {"tuning"},
    "pandas": {"figures", "runs", "experiments", "instrument", "tuning"},
    "sqlalchemy": {"tuning"},
}
MATPLOTLIB_TYPES = ("matplotlib.figure", "matplotlib.axes")
THIRD_PARTY = {  # rooms that work without the rest of what depthlab installs
    "config": set(),
    "theory": {"torch", "numpy", "scipy"},
    "probes": {"torch", "numpy", "scipy"},
}
FORBIDDEN = {
    name + plural for name in ("util", "helper", "manager", "callback", "registry", "common") for plural in ("", "s")
}


@dataclass(frozen=True)
class Import:
    """`target`: the full name of what is imported, such as depthlab.data.splits; `room` and `module` import it."""

    room: str
    module: str
    target: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"

    @property
    def top(self) -> str:
        return self.target.split(".")[0]


def modules(root: Path) -> dict[str, Path]:
    """Files by name: depthlab.data.splits, depthlab.data.__init__, experiments.quickstart."""
    found = {}
    for base in (root / "src", root):
        package = "depthlab" if base.name == "src" else "experiments"
        for path in sorted((base / package).rglob("*.py")):
            found[".".join(path.relative_to(base).with_suffix("").parts)] = path
    return found


def imports(root: Path) -> Iterator[Import]:
    """Every import statement, wherever it stands: one inside a function is a dependence too."""
    known = modules(root)
    for name, path in known.items():
        room = name.split(".")[1] if name.startswith("depthlab.") else "experiments"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for target in targets(node, name, known):
                    yield Import(room, name, target, node.lineno)


def targets(node: ast.Import | ast.ImportFrom, importer: str, known: dict[str, Path]) -> Iterator[str]:
    """`from a import b` is an import of a.b where that is a module, else of a; a package stands for its __init__."""
    if isinstance(node, ast.Import):
        base, names = "", [alias.name for alias in node.names]
    else:
        above = importer.split(".")[: -node.level] if node.level else []
        base = ".".join([*above, *([node.module] if node.module else [])])
        names = [f"{base}.{alias.name}" for alias in node.names]
    for name in names:
        candidates = (name, f"{name}.__init__", base, f"{base}.__init__")
        yield next((each for each in candidates if each in known), base or name)


def against_direction(root: Path) -> Iterator[str]:
    """A room imports only itself and rooms of lower floors."""
    for each in imports(root):
        if each.room not in FLOOR:
            yield f"{each.module} is in no room of FLOORS; give {each.room} a floor"
        elif each.top in ("depthlab", "experiments"):
            room = each.target.split(".")[1] if each.top == "depthlab" else "experiments"
            itself = each.room == room and room != "experiments"
            if not itself and FLOOR.get(room, len(FLOORS)) >= FLOOR[each.room]:
                yield f"{each}, which is not on a lower floor"


def out_of_place(root: Path) -> Iterator[str]:
    """Heavy packages stay in their rooms, and the instrument needs no more than torch, numpy and scipy."""
    for each in imports(root):
        if each.room not in ONLY_IN.get(each.top, {each.room}):
            yield f"{each}; {each.top} is for {', '.join(sorted(ONLY_IN[each.top]))} only"
        allowed = THIRD_PARTY.get(each.room)
        if allowed is not None and each.top not in {"depthlab", *allowed, *sys.stdlib_module_names}:
            yield f"{each}; {each.room} may import {', '.join(sorted(allowed)) or 'the standard library'} only"
        takes_types_only = each.room in ("experiments", "instrument")
        if takes_types_only and each.top == "matplotlib" and each.target not in MATPLOTLIB_TYPES:
            yield f"{each}; it takes types from {' and '.join(MATPLOTLIB_TYPES)} and draws with depthlab.figures"


def circles(root: Path) -> Iterator[str]:
    """No module imports itself by way of others."""
    known = modules(root)
    graph: dict[str, set[str]] = {name: set() for name in known}
    for each in imports(root):
        if each.target in known:
            graph[each.module].add(each.target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield " -> ".join(reversed(error.args[1]))


def empty_names(root: Path) -> Iterator[str]:
    """A module is named after its concept."""
    for name in modules(root):
        for part in name.split("."):
            if FORBIDDEN & set(part.lower().split("_")):
                yield f"{name}: {part} names no concept; a function lives with the concept that it serves"


Rule = Callable[[Path], Iterator[str]]


@pytest.mark.parametrize("rule", [against_direction, out_of_place, circles, empty_names])
def test_house(rule: Rule) -> None:
    assert len(modules(ROOT)) > 40  # the rule has read the tree
    assert list(rule(ROOT)) == []


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (against_direction, "src/depthlab/theory/depth.py", "from depthlab.nets import build"),
        (against_direction, "src/depthlab/config/schema.py", "import depthlab.theory"),
        (against_direction, "src/depthlab/data/splits.py", "from ..probes.reading import Reader"),
        (against_direction, "src/depthlab/figures/axes.py", "def f():\n    from depthlab import runs"),
        (against_direction, "src/depthlab/runs/run.py", "from depthlab import RunConfig"),
        (against_direction, "src/depthlab/training/loop.py", "from depthlab.cli.main import main"),
        (against_direction, "src/depthlab/attic/box.py", "import math"),
        (against_direction, "experiments/one.py", "from depthlab.cli import main"),
        (against_direction, "experiments/one.py", "import experiments.other"),
        (out_of_place, "src/depthlab/probes/reading.py", "import tqdm"),
        (out_of_place, "src/depthlab/theory/depth.py", "def f():\n    import sklearn.datasets"),
        (out_of_place, "src/depthlab/config/schema.py", "from torch import nn"),
        (out_of_place, "src/depthlab/runs/store.py", "import matplotlib.pyplot as plt"),
        (out_of_place, "src/depthlab/data/splits.py", "import pandas as pd"),
        (out_of_place, "src/depthlab/runs/run.py", "from omegaconf import OmegaConf"),
        (out_of_place, "src/depthlab/cli/main.py", "def f():\n    import optuna"),
        (against_direction, "src/depthlab/runs/sweep.py", "from depthlab.tuning import Study"),
        (out_of_place, "experiments/one.py", "from matplotlib import pyplot as plt"),
        (out_of_place, "src/depthlab/instrument/watcher.py", "import matplotlib.pyplot"),
        (against_direction, "src/depthlab/training/loop.py", "from depthlab.instrument import watch"),
        (circles, "src/depthlab/nets/heads.py", "from depthlab.nets.blocks import Block"),
        (circles, "src/depthlab/nets/heads.py", "from depthlab.nets import build"),
        (circles, "src/depthlab/nets/heads.py", "def f():\n    from . import blocks"),
        (empty_names, "src/depthlab/data/utils.py", ""),
        (empty_names, "src/depthlab/common/__init__.py", ""),
        (empty_names, "src/depthlab/nets/_block_helpers.py", ""),
    ],
)
def test_rules_find_planted_faults(rule: Rule, path: str, source: str, tmp_path: Path) -> None:
    tree = {
        "src/depthlab/__init__.py": "",
        "src/depthlab/probes/reading.py": "",
        "src/depthlab/theory/__init__.py": "",
        "src/depthlab/nets/__init__.py": "from depthlab.nets.blocks import Block as build",
        "src/depthlab/nets/blocks.py": "from depthlab.nets.heads import Head",
        "src/depthlab/nets/heads.py": "",
        "src/depthlab/runs/__init__.py": "",
        "src/depthlab/cli/main.py": "",
        "experiments/other.py": "from matplotlib.figure import Figure",
    }
    for name, text in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert list(rule(tmp_path)) == []
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(source)
    assert len(list(rule(tmp_path))) == 1


def loaded_by(code: str) -> set[str]:
    """Top-level packages that a fresh interpreter has imported after it ran the code."""
    report = "import sys; print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'src')!r})\n{code}\n{report}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rpartition("LOADED")[2].split())


@pytest.mark.parametrize("face", ["depthlab", "depthlab.nets", "depthlab.runs"])
def test_a_face_whose_names_are_imported_late_has_these_and_no_others(face: str) -> None:
    module = importlib.import_module(face)
    assert sorted(module.__all__) == dir(module)
    assert all(getattr(module, name) is not None for name in module.__all__)
    assert not hasattr(module, "nothing")
    with pytest.raises(AttributeError, match=f"module '{face}' has no attribute 'nothing'"):
        _ = module.nothing


HEAVY = {"torch", "torchvision", "matplotlib", "pandas", "sklearn", "scipy", "pyarrow", "hydra", "optuna"}


def test_importing_depthlab_loads_nothing_heavy() -> None:
    loaded = loaded_by("import depthlab")
    assert "depthlab" in loaded
    assert loaded & (HEAVY - {"torch"}) == set()


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["cost", "--help"], ["figure", "--help"], ["runs", "--help"], ["tune", "--help"]],
)
def test_help_answers_without_torch(arguments: list[str]) -> None:
    loaded = loaded_by(
        f"import runpy\nsys.argv = {['depthlab', *arguments]}\n"
        "try:\n    runpy.run_module('depthlab', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code"
    )
    assert "depthlab" in loaded
    assert loaded & HEAVY == set()


WITH_TORCH = {"depth_or_width", "regularization"}
"""Experiments whose figures need a net, data or a probe; the others are drawn without torch."""


def test_experiments_load_no_torch_but_where_they_need_it() -> None:
    names = {path.stem for path in (ROOT / "experiments").glob("*.py")} - WITH_TORCH
    assert len(names) > 10
    load_all = f"for name in {sorted(names)}:\n    experiments.script(name)"
    loaded = loaded_by(f"from depthlab.cli import experiments, figure, report, runs\n{load_all}")
    assert {"depthlab", "matplotlib"} <= loaded
    assert "torch" not in loaded


def test_the_instrument_needs_only_torch_numpy_and_scipy() -> None:
    """torch itself may look for others; what is blocked here is as if it were not installed."""
    blocked = HEAVY - {"torch", "scipy"} | {"omegaconf", "yaml", "tqdm", "filelock", "platformdirs", "tabulate"}
    loaded = loaded_by(
        f"for name in {sorted(blocked)}:\n    sys.modules[name] = None\nimport depthlab.probes, depthlab.theory"
    )
    assert {"depthlab", "torch"} <= loaded
