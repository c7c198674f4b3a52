"""What a search may choose a setting's value from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass

from depthlab.config.fields import ConfigError

PRUNERS = ("median", "halving", "none")
"""What can stop a trial that does worse than others: the keys of a dict literal in `tuning`."""

Value = float | int | str
"""A chosen value; one of a `Choice` stays the text that an override has."""


@dataclass(frozen=True)
class Interval:
    """Numbers from low to high, both included; `log`: uniform in their logarithm; `step`: low, low + step, ..."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        _check(self)

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that stand for the others in a first check."""
        return self.low, self.high


@dataclass(frozen=True)
class WholeInterval:
    """Whole numbers from low to high, both included."""

    low: int
    high: int
    step: int | None = None
    log: bool = False

    def __post_init__(self) -> None:
        _check(self)

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values that stand for the others in a first check."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of some values, without order, each as the text of an override."""

    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ConfigError(f"{','.join(self.values)} leaves nothing to choose; give two values or more")
        if len(set(self.values)) < len(self.values):
            raise ConfigError(f"the values {','.join(self.values)} are not all different; give each once")

    @property
    def ends(self) -> tuple[Value, ...]:
        """All of them: none stands for another."""
        return self.values


Range = Interval | WholeInterval | Choice


def typed(values: Mapping[str, Value]) -> list[str]:
    """Overrides that set the values, to the last bit."""
    return [f"{name}={value if isinstance(value, str) else repr(value)}" for name, value in values.items()]


def declared(ranges: Mapping[str, Range]) -> str:
    """Canonical JSON of ranges: equal for equal ranges, in whatever order they were given."""
    content = {name: {type(found).__name__: dataclasses.asdict(found)} for name, found in ranges.items()}
    return json.dumps(content, sort_keys=True)


def _check(found: Interval | WholeInterval) -> None:
    if not found.low < found.high:
        raise ConfigError(f"{found.low:g} to {found.high:g} holds nothing to choose from; the lower end stands first")
    if found.log and found.low <= 0:
        raise ConfigError(f"a range on a log scale starts above 0, not at {found.low:g}")
    if found.log and found.step is not None:
        raise ConfigError(f"a range on a log scale has no step, here {found.step:g}; leave out the step or the tag")
