"""What is installed is what was tested, works outside a clone, and says nothing of the machine it was made on."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [Requirement(text) for text in (*PROJECT["dependencies"], *EXTRAS["dev"])]
ENGINES = [Requirement(text) for extra in ("joblib", "slurm", "ray") for text in EXTRAS[extra]]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml"))

FOREIGN = re.compile(
    r"""(?<![\w.~}])/(?:home|Users|root|tmp|work|opt|mnt|var)/\w   # a path of one machine
    |   (?:pypi|pythonhosted|download\.pytorch|anaconda)\.org      # a registry
    |   --(?:extra-)?index-url|--find[-]links|PIP_[A-Z]+""",
    re.VERBOSE,
)


def run(command: Sequence[str | Path], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a folder, with more environment variables."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def pins() -> dict[str, str]:
    """Versions in constraints.txt by normalized name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith("#"):
            name, equals, version = line.partition("==")
            assert equals, f"{line} is not exact; write NAME==VERSION"
            assert canonicalize_name(name) not in found, f"{name} is pinned twice"
            found[canonicalize_name(name)] = version
    return found


def installed_with(requirements: Sequence[Requirement]) -> set[str]:
    """Normalized names of all that the requirements bring along in this environment."""
    names: set[str] = set()
    waiting = list(requirements)
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name not in names:
            names.add(name)
            below = map(Requirement, importlib.metadata.requires(name) or [])
            waiting += [each for each in below if each.marker is None or each.marker.evaluate({"extra": ""})]
    return names


@pytest.mark.parametrize("requirement", [*REQUIREMENTS, *ENGINES], ids=lambda requirement: str(requirement.name))
def test_tested_versions_are_accepted_versions(requirement: Requirement) -> None:
    pinned = Version(pins()[canonicalize_name(requirement.name)])
    assert pinned.local is None, "a local version such as +cpu is not in every registry"
    assert requirement.specifier.contains(pinned)


def test_all_that_is_installed_is_pinned() -> None:
    cuda = re.compile("nvidia-|cuda-|triton")  # of CUDA builds of torch, which pin them themselves
    assert {name for name in installed_with(REQUIREMENTS) if not cuda.match(name)} - set(pins()) == set()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_script(name: str) -> None:
    assert (ROOT / "experiments" / f"{name}.py").is_file()


def test_every_script_is_an_experiment() -> None:
    assert sorted(path.stem for path in (ROOT / "experiments").glob("*.py")) == EXPERIMENTS


needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@needs_make
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_a_target(name: str) -> None:
    planned = run(["make", "--dry-run", name, "SCALE=paper", "ARGS=seed=7", "PYTHON=python3"], ROOT)
    assert f"depthlab train experiment={name} scale=paper seed=7" in planned.stdout, planned.stderr
    assert f"depthlab figure {name} scale=paper seed=7" in planned.stdout
    assert "dev]" not in planned.stdout, "an experiment needs no development tools"


@needs_make
def test_make_alone_lists_all_targets() -> None:
    listed = run(["make"], ROOT).stdout
    phony = re.search(r"^\.PHONY: (.*) \$\(EXPERIMENTS\)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    for target in [*phony.group(1).split(), *EXPERIMENTS]:
        assert re.search(rf"^  {target}  +\w", listed, re.MULTILINE), f"{target} is not explained"


@needs_make
@pytest.mark.parametrize(
    ("interpreter", "answer"),
    [
        ('case "$2" in *version_info*) exit 1;; esac', "needs Python 3.11 or newer"),
        ('case "$2" in *ensurepip*) exit 1;; esac', "cannot make virtual environments"),
    ],
)
def test_an_unfit_python_is_named(interpreter: str, answer: str, tmp_path: Path) -> None:
    """And nothing is left behind that a second `make` would take for an environment."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    python = tmp_path / "unfit"
    python.write_text(f"#!/bin/sh\n{interpreter}\n")
    python.chmod(0o755)
    refused = run(["make", "test", f"PYTHON={python}"], tmp_path)
    assert refused.returncode != 0
    assert answer in refused.stderr
    assert str(python) in refused.stderr
    assert not (tmp_path / ".venv").exists()


def foreign_lines(files: Mapping[str, bytes]) -> list[str]:
    """Lines of text files that name a path of one machine, or a registry."""
    found = []
    for name, content in files.items():
        if b"\0" not in content[:8192]:
            lines = enumerate(content.decode(errors="replace").splitlines(), 1)
            found += [f"{name}:{number}: {line.strip()}" for number, line in lines if FOREIGN.search(line)]
    return found


def test_nothing_names_a_machine_or_a_registry() -> None:
    listed = (
        run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], ROOT)
        if shutil.which("git")
        else None
    )
    if listed is None or listed.returncode:
        pytest.skip("needs a git checkout")
    names = [name for name in listed.stdout.split("\0") if (ROOT / name).is_file()]
    assert "pyproject.toml" in names
    assert foreign_lines({name: (ROOT / name).read_bytes() for name in names}) == []


@pytest.mark.parametrize(
    ("line", "is_foreign"),
    [
        ("data = '/" + "home/someone/data'", True),
        ("see /" + "tmp/run.log", True),
        ("https://pypi" + ".org/simple", True),
        ("pip install --" + "index-url X", True),
        ("#!/usr/bin/env bash", False),
        ("results/tmp/x and ~/work/x", False),
        ("https://github.com/pytorch/vision", False),
    ],
)
def test_foreign_lines_are_told_from_others(line: str, is_foreign: bool) -> None:
    assert bool(foreign_lines({"file": line.encode()})) is is_foreign


def build(kind: str, source: Path, target: Path) -> Path:
    """The sdist or wheel of a source tree, built with what is installed here."""
    built = run([sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", target], source)
    assert built.returncode == 0, built.stderr
    (archive,) = target.iterdir()
    return archive


def test_an_editable_install_copies_nothing(tmp_path: Path) -> None:
    """A copy of configs/ in site-packages would grow stale."""
    code = f"from hatchling.build import build_editable; build_editable({str(tmp_path)!r})"
    built = run([sys.executable, "-c", code], ROOT)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        (path_file,) = (name for name in archive.namelist() if ".dist-info/" not in name)
        assert Path(archive.read(path_file).decode().strip()) == ROOT / "src"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the wheel of the sdist is installed, without what it depends on."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(build("sdist", ROOT, folder / "sdist")) as archive:
        archive.extractall(folder / "source", filter="data")
    (source,) = (folder / "source").iterdir()
    wheel = build("wheel", source, folder / "wheel")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target"]
    done = run([*command, folder / "site", wheel], folder)
    assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.mark.slow
def test_the_wheel_holds_every_declaration(installed: Path) -> None:
    for name in ("configs", "experiments"):
        expected = {path.relative_to(ROOT) for path in (ROOT / name).rglob("*") if path.suffix in (".yaml", ".py")}
        found = {path.relative_to(installed / "depthlab") for path in (installed / "depthlab" / name).rglob("*.*")}
        assert found - {path for path in found if path.suffix == ".pyc"} == expected


@pytest.mark.slow
def test_an_installed_depthlab_works_outside_a_clone(installed: Path, tmp_path: Path) -> None:
    """In an empty folder with an empty home: a run, an experiment and its figure."""
    home, folder = tmp_path / "home", tmp_path / "folder"
    home.mkdir()
    folder.mkdir()
    environment = {"HOME": str(home), "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    environment |= {"DEPTHLAB_RESULTS": "", "DEPTHLAB_DATA": "", "PYTHONDONTWRITEBYTECODE": "1"}

    def depthlab(*arguments: str) -> str:
        done = run([installed / "bin" / "depthlab", *arguments], folder, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    place = run([sys.executable, "-c", "import depthlab; print(depthlab.__file__)"], folder, **environment)
    assert place.stdout.startswith(str(installed))
    assert "test error" in depthlab("train", "train.steps=10", "model.depth=4")
    small = ("seed=0,1", "train.steps=4", "sweep.workers=1")
    assert "0 failed" in depthlab("train", "experiment=quickstart", *small)
    depthlab("figure", "quickstart", *small)
    assert (folder / "results" / "quickstart" / "figure.png").stat().st_size > 10_000
