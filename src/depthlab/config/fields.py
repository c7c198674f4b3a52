"""Fields that know what they allow, and dataclasses of them to and from nested mappings."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any

_hints: dict[type[Any], dict[str, Any]] = {}
"""Type hints of the dataclasses seen so far: evaluating them again for each of a thousand runs takes seconds."""

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
"""What types are called in errors."""


class ConfigError(ValueError):
    """A configuration that cannot run: says what was given, what is allowed and which override to change."""


def choice(default: str, names: tuple[str, ...], about: str) -> Any:
    """A field that holds one of some names."""
    return field(default=default, metadata={"choices": names, "about": about})


def number(
    default: float | None, about: str, *, low: float = 0, high: float = math.inf, below: float = math.inf
) -> Any:
    """A field with low <= value <= high and value < below."""
    return field(default=default, metadata={"low": low, "high": high, "below": below, "about": about})


def flag(default: bool, about: str) -> Any:
    """A field that is true or false."""
    return field(default=default, metadata={"about": about})


def text(default: str | None, about: str) -> Any:
    """A field that holds a word nobody can list, such as a name or an address."""
    return field(default=default, metadata={"about": about})


def to_mapping(config: Any) -> dict[str, Any]:
    """A configuration as nested dicts, lists and scalars, ready for YAML or JSON."""
    return {name: _plain(value) for name, value in vars(config).items()}


def suggest(given: str, names: Sequence[str]) -> str:
    """The end of an error about an unknown name: the nearest known one, if one is near."""
    near = difflib.get_close_matches(given, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def about(item: dataclasses.Field[Any]) -> str:
    """A field's line of help, with what it may hold."""
    choices = item.metadata.get("choices")
    return f"{item.metadata['about']}: {', '.join(choices)}" if choices else str(item.metadata["about"])


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested mappings."""
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def differences(given: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """What of nested mappings is not as in others that have the same names."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, Mapping):
            if inner := differences(value, default[name]):
                found[name] = inner
        elif value != default[name]:
            found[name] = value
    return found


def build(cls: type[Any], mapping: Mapping[str, Any], prefix: str) -> Any:
    """The dataclass that nested mappings describe; ConfigError where they describe none."""
    hints = _hints_of(cls)
    path = f"{prefix}." if prefix else ""
    values: dict[str, Any] = {}
    for name, value in mapping.items():
        if name not in hints:
            raise ConfigError(f"{path}{name} is not a setting{suggest(path + name, [path + known for known in hints])}")
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{path}{name}={value!r} must hold settings, such as {path}{name}.NAME=VALUE")
            values[name] = build(typing.cast("type[Any]", hints[name]), value, path + name)
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_mapping(value)
    return list(value) if isinstance(value, tuple) else value


def _hints_of(cls: type[Any]) -> dict[str, Any]:
    if cls not in _hints:
        _hints[cls] = typing.get_type_hints(cls)
    return _hints[cls]


def check_fields(config: Any, section: str) -> None:
    """Types, choices and ranges of one dataclass; whole numbers given for floats become floats."""
    hints = _hints_of(type(config))
    for item in dataclasses.fields(config):
        hint, value = hints[item.name], getattr(config, item.name)
        path = f"{section}.{item.name}" if section else item.name
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            if not isinstance(value, hint):
                raise ConfigError(f"{path}={value!r} must be a {hint.__name__}; from mappings, from_mapping makes one")
            continue
        value = _coerce(path, hint, value)
        object.__setattr__(config, item.name, value)
        for element in value if isinstance(value, tuple) else (value,):
            _check_value(path, item.metadata, element)


def _coerce(path: str, hint: Any, value: Any) -> Any:
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, (tuple, list)):
            raise ConfigError(f"{path}={value!r} must be a list, such as {path}=[A,B]")
        return tuple(_coerce(path, typing.get_args(hint)[0], element) for element in value)
    allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in allowed and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = _as_float(value)
    if type(value) not in allowed:
        given = "null" if value is None else repr(value)
        raise ConfigError(f"{path}={given} must be {' or '.join(KINDS[kind] for kind in allowed)}")
    return value


def _as_float(value: float) -> float:
    """Whole numbers as floats; -0.0 as the 0.0 that it equals, since equal configurations have equal keys."""
    try:
        return float(value) + 0.0
    except OverflowError:
        return math.inf


def _check_value(path: str, rules: Mapping[str, Any], value: Any) -> None:
    choices = rules.get("choices")
    if choices is not None and value not in choices:
        raise ConfigError(f"{path}={value} must be one of {', '.join(choices)}{suggest(str(value), choices)}")
    if "low" not in rules or value is None:
        return
    low, high, below = rules["low"], rules["high"], rules["below"]
    if not (low <= value <= high and value < below):
        bounds = [f"at least {low}"]
        bounds += [f"at most {high}"] if high < math.inf else []
        bounds += [f"less than {below}"] if below < math.inf else []
        bounds += ["finite"] if value == math.inf else []
        raise ConfigError(f"{path}={value} must be {' and '.join(bounds)}")
