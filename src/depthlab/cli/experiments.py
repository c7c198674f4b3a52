"""Experiments: a YAML file that declares the runs, and a script of the same stem that draws them.

    title: what the figure shows
    settings:                 # overrides of every run
      train.steps: {smoke: 60, laptop: 2000, paper: 20000}
    grids:                    # the runs are the union of these products
      activations:
        model.activation: sigmoid,tanh,relu
        seed: range(3)

A value is one override, or a sweep in Hydra's own grammar (`5,10`, `range(3)`), or one of these for each scale.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from depthlab.cli.compose import Composer, Launch
from depthlab.config import ConfigError, suggest

SCALES = ("smoke", "laptop", "paper")


@dataclass(frozen=True)
class Experiment:
    """A declared sweep: overrides of every run, and named grids that add to them."""

    name: str
    title: str
    settings: Mapping[str, Any]
    grids: Mapping[str, Mapping[str, Any]]

    def launches(self, composer: Composer, scale: str, overrides: Sequence[str] = ()) -> list[Launch]:
        """The distinct runs at a scale. Overrides win; one of a swept setting replaces its values."""
        found: dict[str, Launch] = {}
        composer.parse(overrides)
        for grid in self.grids.values():
            given = {text.partition("=")[0]: text.partition("=")[2] for text in overrides}
            declared = {name: _at_scale(value, scale) for name, value in {**self.settings, **grid}.items()}
            lines = [f"{name}={value}" for name, value in {**declared, **given}.items() if value is not None]
            for launch in composer.sweep(lines):
                found.setdefault(launch.run.key(), launch)
        return list(found.values())


def folder(name: str) -> Path:
    """Where `configs` or `experiments` are: inside the installed package, or beside `src` in a checkout."""
    package = Path(__file__).parents[1]
    for parent in (package, package.parents[1]):
        if (parent / name).is_dir():
            return parent / name
    raise ConfigError(f"the folder {name} is missing from this installation; install depthlab again")


def names() -> list[str]:
    """All experiments there are."""
    return sorted(path.stem for path in (folder("configs") / "experiment").glob("*.yaml"))


def load(name: str) -> Experiment:
    """The declaration of an experiment."""
    if name not in names():
        raise ConfigError(f"experiment={name} must be one of {', '.join(names())}{suggest(name, names())}")
    path = folder("configs") / "experiment" / f"{name}.yaml"
    declared = yaml.safe_load(path.read_text())
    unknown = set(declared) - {"title", "settings", "grids"}
    if unknown or not declared.get("grids"):
        raise ConfigError(f"{path} must hold title, settings and grids; found {', '.join(declared)}")
    return Experiment(name, declared["title"], declared.get("settings", {}), declared["grids"])


def script(name: str) -> ModuleType:
    """The module that turns the experiment's readings into figure, table and claims."""
    path = folder("experiments") / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"depthlab_experiment_{name}", path)
    if spec is None or spec.loader is None or not path.exists():
        raise ConfigError(f"{path} is missing; an experiment is a YAML file and a script of the same name")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def check_scale(scale: str | None) -> str:
    """A known scale, laptop if none is given, or ConfigError."""
    if scale is None:
        return "laptop"
    if scale not in SCALES:
        raise ConfigError(f"scale={scale} must be one of {', '.join(SCALES)}{suggest(scale, SCALES)}")
    return scale


def launches(overrides: Sequence[str], multirun: bool) -> tuple[list[Launch], bool]:
    """The runs that a command line stands for, and whether it is a sweep."""
    composer = Composer(folder("configs"))
    name, rest = take(overrides, "experiment")
    scale, rest = take(rest, "scale")
    if name is None:
        if scale is not None:
            raise ConfigError(f"scale={scale} is that of an experiment; give experiment=NAME as well, or leave it out")
        found = list(composer.sweep(rest))
        if len(found) > 1 and not multirun:
            raise ConfigError(f"these settings stand for {len(found)} runs; give -m to train them as a sweep")
        return found, multirun
    return load(name).launches(composer, check_scale(scale), rest), True


def take(overrides: Sequence[str], name: str) -> tuple[str | None, list[str]]:
    """The value of one override, the last if it is given twice, and the others."""
    values = [text.partition("=")[2] for text in overrides if text.startswith(f"{name}=")]
    return (values[-1] if values else None), [text for text in overrides if not text.startswith(f"{name}=")]


def _at_scale(value: Any, scale: str) -> Any:
    """A setting's value at a scale, as an override writes it; None where it is not set at this scale."""
    if isinstance(value, Mapping):
        value = value.get(scale)
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(map(_element, value))}]" if isinstance(value, list) else value


def _element(value: Any) -> str:
    """An element of a list, in quotes where it holds a list itself."""
    return f"'{value}'" if "[" in str(value) else str(value)
