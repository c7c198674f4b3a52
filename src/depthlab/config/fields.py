"""Fields that know what they allow, and dataclasses of them to and from nested mappings."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    """Dotted names and values of nested dicts."""
    for name, value in mapping.items():
        if isinstance(value, dict):  # an abstract Mapping would be asked a hundred thousand times for a figure
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def differences(given: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """What of nested dicts is not as in others that have the same names."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if isinstance(value, dict):
            if inner := differences(value, default[name]):
                found[name] = inner
        elif value != default[name]:
            found[name] = value
    return found


def build(cls: type[Any], mapping: Mapping[str, Any], prefix: str) -> Any:
    """The dataclass that nested mappings describe; ConfigError where they describe none.

    A section may be there as the dataclass that was made of its mapping.
    """
    rules = _rules_of(cls)
    path = f"{prefix}." if prefix else ""
    values: dict[str, Any] = {}
    for name, value in mapping.items():
        if name not in rules:
            raise ConfigError(f"{path}{name} is not a setting{suggest(path + name, [path + known for known in rules])}")
        section = rules[name].section
        if section is not None and not isinstance(value, section):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{path}{name}={value!r} must hold settings, such as {path}{name}.NAME=VALUE")
            values[name] = build(section, value, path + name)
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return cls(**values)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, int, float)):  # almost all are, and the last question below is slow
        return value
    if isinstance(value, tuple):
        return list(value)
    return to_mapping(value) if dataclasses.is_dataclass(value) else value


@dataclass(frozen=True, slots=True)
class _Rule:
    """What a field may hold: a dataclass (`section`), or a value of one of the types `allowed`, or a list of these."""

    section: type[Any] | None
    is_list: bool
    allowed: tuple[type[Any], ...]
    limits: Mapping[str, Any]


_rules: dict[type[Any], dict[str, _Rule]] = {}
"""Those of the dataclasses seen so far: evaluating type hints again for each of a thousand runs takes seconds."""


def _rules_of(cls: type[Any]) -> dict[str, _Rule]:
    """By name of the field."""
    if cls not in _rules:
        hints = typing.get_type_hints(cls)
        _rules[cls] = {item.name: _rule(item, hints[item.name]) for item in dataclasses.fields(cls)}
    return _rules[cls]


def _rule(item: dataclasses.Field[Any], hint: Any) -> _Rule:
    section = hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None
    is_list = typing.get_origin(hint) is tuple
    held = typing.get_args(hint)[0] if is_list else hint
    allowed = typing.get_args(held) if isinstance(held, types.UnionType) else (held,)
    return _Rule(section, is_list, allowed, item.metadata)


def check_fields(config: Any, section: str) -> None:
    """Types, choices and ranges of one dataclass; whole numbers given for floats become floats."""
    for name, rule in _rules_of(type(config)).items():
        value, path = getattr(config, name), f"{section}.{name}" if section else name
        if rule.section is None:
            object.__setattr__(config, name, _checked(path, rule, value))
        elif not isinstance(value, rule.section):
            raise ConfigError(
                f"{path}={value!r} must be a {rule.section.__name__}; from mappings, from_mapping makes one"
            )


def _checked(path: str, rule: _Rule, value: Any) -> Any:
    if not rule.is_list:
        return _checked_value(path, rule, value)
    if not isinstance(value, (tuple, list)):
        raise ConfigError(f"{path}={value!r} must be a list, such as {path}=[A,B]")
    return tuple(_checked_value(path, rule, element) for element in value)


def _checked_value(path: str, rule: _Rule, value: Any) -> Any:
    if float in rule.allowed and isinstance(value, (int, float)) and not isinstance(value, bool):
        value = _as_float(value)
    if type(value) not in rule.allowed:
        given = "null" if value is None else repr(value)
        raise ConfigError(f"{path}={given} must be {' or '.join(KINDS[kind] for kind in rule.allowed)}")
    _check_limits(path, rule.limits, value)
    return value


def _as_float(value: float) -> float:
    """Whole numbers as floats; -0.0 as the 0.0 that it equals, since equal configurations have equal keys."""
    try:
        return float(value) + 0.0
    except OverflowError:
        return math.inf


def _check_limits(path: str, rules: Mapping[str, Any], value: Any) -> None:
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
