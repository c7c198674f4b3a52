"""From Hydra's overrides to runs. The only importer of hydra."""

from __future__ import annotations

import functools
import itertools
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, ValueType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from depthlab.config import (
    ENGINES,
    Choice,
    ConfigError,
    Interval,
    Range,
    RunConfig,
    SweepConfig,
    Value,
    WholeInterval,
    build_section,
    build_sweep,
    describe_fields,
    from_mapping,
    suggest,
    typed,
)


@dataclass(frozen=True)
class Launch:
    """A run, and how it is launched."""

    run: RunConfig
    device: str
    sweep: SweepConfig


SECTIONS = ("data", "model", "train", "probes", "transfer")
"""The parts of a run."""

ALIASES = {"hydra/launcher": "sweep.engine"}
"""What Hydra calls things, for those who know it."""


@dataclass(frozen=True)
class Searched:
    """Overrides of which some hold a range: `fixed` are the others. Called with a value for each, it gives the run."""

    configs: Path
    fixed: tuple[str, ...]
    ranges: Mapping[str, Range]

    def __call__(self, values: Mapping[str, Value]) -> RunConfig:
        """The run of one choice; ConfigError if its settings do not go together."""
        return self.launch(values).run

    def launch(self, values: Mapping[str, Value]) -> Launch:
        """The same, and how it is launched."""
        return _composer(self.configs).compose([*self.fixed, *typed(values)])


class Composer:
    """Composes configurations from the YAML files of a folder."""

    def __init__(self, configs: Path) -> None:
        self._configs = configs
        self._groups = sorted(path.name for path in configs.iterdir() if path.is_dir() and path.name != "experiment")
        self._names = {name for name, _, _ in describe_fields()} | {"device"}
        self._bases: dict[tuple[str, ...], dict[str, Any]] = {}
        self._parts: dict[tuple[str, str], Any] = {}
        ConfigStore.instance().store(name="schema", node=_schema())

    def sweep(self, overrides: Sequence[str]) -> Iterator[Launch]:
        """Every run that overrides such as `model.depth=5,10 seed=range(3)` stand for, the last one varying fastest."""
        parsed = self.parse(overrides)
        choices = [_choices(override) for override in parsed]
        for chosen in itertools.product(*choices):
            yield self.compose(chosen)

    def searched(self, overrides: Sequence[str]) -> Searched:
        """What is fixed and what is a range: interval, range, choice or a list of values, in Hydra's grammar."""
        last = {override.key_or_group: override for override in self.parse(overrides)}
        ranges = {name: _range(override) for name, override in last.items() if override.is_sweep_override()}
        fixed = tuple(str(override.input_line) for name, override in last.items() if name not in ranges)
        return Searched(self._configs, fixed, ranges)

    def parse(self, overrides: Sequence[str]) -> list[Override]:
        """Checked overrides: their grammar, and that what they set is there."""
        parsed = [_read(text) for text in overrides]
        for override in parsed:
            self._check(override)
        return parsed

    def compose(self, overrides: Sequence[str]) -> Launch:
        """The run of overrides that hold one value each."""
        groups = tuple(text for text in overrides if text.partition("=")[0] in self._groups)
        values = [text for text in overrides if text not in groups]
        try:
            mapping = _copy(self._base(groups))
            for override in map(_read, values):
                _put(mapping, override.key_or_group.split("."), override.value())
            if "${" in repr(mapping):  # not always: an experiment has a thousand runs
                resolved = OmegaConf.to_container(OmegaConf.create(mapping), resolve=True)
                mapping = typing.cast("dict[str, Any]", resolved)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(_plain_words(error)) from None
        device, sweep = mapping.pop("device"), self._part("sweep", mapping.pop("sweep"))
        parts = {name: self._part(name, value) if name in SECTIONS else value for name, value in mapping.items()}
        return Launch(from_mapping(parts), str(device), sweep)

    def _part(self, name: str, content: Mapping[str, Any]) -> Any:
        """A part of a run, or how it is launched: the runs of an experiment have few, each made and checked once."""
        same = name, repr(content)  # a text, since 1, 1.0 and True are equal, and not all of them may be allowed
        if same not in self._parts:
            self._parts[same] = build_sweep(content) if name == "sweep" else build_section(name, content)
        return self._parts[same]

    def _base(self, groups: tuple[str, ...]) -> dict[str, Any]:
        """What Hydra composes for a choice of files; each choice is composed once."""
        if groups not in self._bases:
            with initialize_config_dir(config_dir=str(self._configs), version_base="1.3"):
                composed = compose("config", overrides=list(groups))
            self._bases[groups] = typing.cast("dict[str, Any]", OmegaConf.to_container(composed))
        return self._bases[groups]

    def _check(self, override: Override) -> None:
        name = override.key_or_group
        if override.is_add() or override.is_delete() or override.package is not None:
            raise ConfigError(
                f"{override.input_line}: settings can be changed, not added or removed; write {name}=VALUE"
            )
        if name in self._groups:
            allowed = sorted(path.stem for path in (self._configs / name).glob("*.yaml"))
            for value in (choice.partition("=")[2] for choice in _choices(override)):
                if value not in allowed:
                    raise ConfigError(f"{name}={value} must be one of {', '.join(allowed)}{suggest(value, allowed)}")
        elif name.startswith("hydra"):
            raise ConfigError(
                f"{name} is not a setting, since Hydra's own sweeps are not used; hydra/launcher={'|'.join(ENGINES)} "
                f"chooses what trains a sweep, whose settings are under sweep, such as sweep.workers=4"
            )
        elif name not in self._names:
            near = suggest(name, [*self._groups, *sorted(self._names)])
            raise ConfigError(f"{name} is not a setting{near or '; depthlab train --help lists them all'}")


def _copy(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings whose values may be replaced without changing the original's."""
    return {name: _copy(value) if isinstance(value, dict) else value for name, value in mapping.items()}


def _put(mapping: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        mapping = mapping[name]
    mapping[path[-1]] = value


@functools.cache
def _read(text: str) -> Override:
    """An override; the runs of a sweep share most of them, and parsing takes longer than all else."""
    name, equals, value = text.partition("=")
    try:
        override = _grammar().parse_override(f"{ALIASES.get(name, name)}{equals}{value}")
    except HydraException:
        override = None
    if override is None or not override.key_or_group:
        raise ConfigError(f"cannot read {text!r}; settings are given as NAME=VALUE, such as model.depth=50")
    return override


@functools.cache
def _grammar() -> OverridesParser:
    """Hydra's, with its functions."""
    return OverridesParser.create()


@functools.cache
def _composer(configs: Path) -> Composer:
    return Composer(configs)


def _range(override: Override) -> Range:
    """What a search may choose from; of a setting that is a whole number, an interval's whole numbers."""
    given, name = override.value(), override.get_key_element()
    if unknown := sorted(getattr(given, "tags", set()) - {"log"}):
        raise ConfigError(f"{override.input_line}: the tag {unknown[0]} is not known; tag(log, ...) is")
    is_log = "log" in getattr(given, "tags", ())
    try:
        if isinstance(given, IntervalSweep) and given.start is not None and given.end is not None:
            if _is_whole(name) or isinstance(given.start, int):
                return WholeInterval(_whole(given.start), _whole(given.end), log=is_log)
            return Interval(float(given.start), float(given.end), log=is_log)
        if isinstance(given, RangeSweep):
            return _steps(override, given, is_log)
        if isinstance(given, ChoiceSweep) and not is_log:
            texts = [text.partition("=")[2] for text in _choices(override)]
            return Choice(tuple(text.lower() if text in ("True", "False") else text for text in texts))
    except ConfigError as error:
        raise ConfigError(f"{override.input_line}: {error}") from None
    raise ConfigError(
        f"{override.input_line} is no range; write {name}=A,B,C or {name}=interval(LOW,HIGH) or "
        f"{name}=tag(log,interval(LOW,HIGH)) or {name}=range(START,STOP,STEP)"
    )


def _steps(override: Override, given: RangeSweep, is_log: bool) -> Range:
    """range(START,STOP,STEP), which never is STOP, as the interval from its first to its last value."""
    values = [text.partition("=")[2] for text in _choices(override)]
    numbers = sorted(float(value) for value in values)
    if all(isinstance(part, int) for part in (given.start, given.stop, given.step)):
        step = abs(int(given.step))
        return WholeInterval(int(numbers[0]), int(numbers[-1]), step=None if step == 1 else step, log=is_log)
    return Interval(numbers[0], numbers[-1], step=abs(float(given.step)), log=is_log)


def _is_whole(name: str) -> bool:
    """Whether a setting holds whole numbers, or null."""
    section, _, field = name.rpartition(".")
    owner = typing.get_type_hints(RunConfig).get(section, RunConfig) if section else RunConfig
    hint = typing.get_type_hints(owner).get(field)
    return hint in (int, int | None)


def _whole(value: float) -> int:
    if value != int(value):
        raise ConfigError(f"{value:g} is not a whole number, which this setting is")
    return int(value)


def _choices(override: Override) -> list[str]:
    """The overrides of one value each that a sweep such as a=1,2 or a=range(3) stands for."""
    if not override.is_sweep_override():
        return [str(override.input_line)]
    name = override.get_key_element()
    if override.value_type in (ValueType.GLOB_CHOICE_SWEEP, ValueType.INTERVAL_SWEEP):
        raise ConfigError(f"{override.input_line}: values are listed, such as {name}=A,B or {name}=range(3)")
    try:
        found = [f"{name}={value}" for value in override.sweep_string_iterator()]
    except ValueError as error:  # a step of 0; words beside functions
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{override.input_line}: {reason}; write {name}=A,B or {name}=range(3)") from None
    if not found:
        raise ConfigError(f"{override.input_line} stands for no value; write {name}=range(START,STOP)")
    return found


def _schema() -> Any:
    """The dataclasses, typed. OmegaConf makes frozen ones read-only, and then nothing could be merged into them."""
    run = OmegaConf.structured(RunConfig)
    schema = OmegaConf.create({"device": "auto", "seed": run.seed, "sweep": OmegaConf.structured(SweepConfig)})
    for name in SECTIONS:
        schema[name] = run[name]
    for section in (
        *map(schema.get, (*SECTIONS, "sweep")),
        schema.sweep.slurm,
        schema.sweep.ray,
    ):
        OmegaConf.set_readonly(section, False)
    OmegaConf.set_struct(schema, True)
    return schema


def _plain_words(error: Exception) -> str:
    """A message of Hydra's or OmegaConf's in one line, with the setting's name in front."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = re.search(r"full_key: (\S+)", str(error))
    return f"{named.group(1)}: {lines[0]}" if named else lines[0]
