"""Where a run's first weights come from when they are not drawn, and which of them are trained."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from depthlab.config.fields import ConfigError, check_fields, choice, number

HEADS = ("linear", "mlp")
NAMED = frozenset({"run", "file", "torchvision"})
"""Parts that name weights; a source without them is settings of a run."""
KEY = re.compile(r"[0-9a-f]{16}")
SHA256 = re.compile(r"[0-9a-f]{64}")
WEIGHTS = re.compile(r"[A-Z][A-Z0-9_]*")


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """What is taken over from a network that was trained on something else.

    A network is counted in blocks, from the input: the stem, each block, and last the head, which is always drawn anew.
    """

    source: tuple[str, ...] = field(
        default=(),
        metadata={
            "about": "whose last weights are taken: [run:KEY], [file:PATH,sha256:HEX], [torchvision:WEIGHTS] such as "
            "IMAGENET1K_V1, or settings of a run of this model and seed, trained first if missing, such as "
            "[data.name:mnist,train.steps:600]"
        },
    )
    copied: int | None = number(
        None, "blocks that are copied, counted from the input, the stem first (null: all but the head)", low=1
    )
    trained: int | None = number(
        None, "of these, how many of the last are trained (null: all; 0: the copied ones are frozen)"
    )
    head: str = choice("linear", HEADS, "what is trained behind the last block: one weight layer or two")
    backbone_lr_factor: float = number(1.0, "learning rate of the copied blocks over that of the others")

    def __post_init__(self) -> None:
        check_fields(self, "transfer")
        object.__setattr__(self, "source", _canonical(self.source))
        if self.backbone_lr_factor == 0:
            raise ConfigError(
                "transfer.backbone_lr_factor=0 would train the copied blocks in vain; freeze them with "
                "transfer.trained=0"
            )
        if self.backbone_lr_factor != 1 and self.trained == 0:
            raise ConfigError(
                f"transfer.backbone_lr_factor={self.backbone_lr_factor} has no effect with transfer.trained=0, which "
                f"freezes all copied blocks; leave it at 1, or train some of them"
            )
        if self.copied is not None and self.trained is not None and self.trained > self.copied:
            raise ConfigError(
                f"transfer.trained={self.trained} must be at most transfer.copied={self.copied}, of whose blocks it "
                f"counts the last"
            )
        if self.copied is not None and not self.source and self.trained is None and self.backbone_lr_factor == 1:
            raise ConfigError(
                f"transfer.copied={self.copied} has no effect without transfer.source, transfer.trained or "
                f"transfer.backbone_lr_factor; set one of them"
            )

    @property
    def parts(self) -> dict[str, str]:
        """The source's parts by name; empty: no source.

        {"run": KEY}, {"file": PATH, "sha256": HEX}, {"torchvision": WEIGHTS}, or settings.
        """
        return {name: value for name, _, value in (item.partition(":") for item in self.source)}

    @property
    def settings(self) -> dict[str, Any] | None:
        """The settings of the source as nested mappings, where it is given by them."""
        if not self.source or NAMED & set(self.parts):
            return None
        nested: dict[str, Any] = {}
        for name, text in self.parts.items():
            *section, last = name.split(".")
            inner = nested
            for step in section:
                inner = inner.setdefault(step, {})
            inner[last] = _value(text)
        return nested

    def check_blocks(self, blocks: int) -> None:
        """Raises ConfigError unless a network that has so many blocks before its head has those that are counted."""
        for name in ("copied", "trained"):
            count = getattr(self, name)
            if count is not None and count > blocks:
                raise ConfigError(
                    f"transfer.{name}={count} is more than the {blocks} blocks that the network has before its head; "
                    f"choose at most {blocks}"
                )

    def copied_of(self, blocks: int) -> int:
        """How many blocks are copied of a network that has so many before its head."""
        return blocks if self.copied is None else self.copied

    def frozen_of(self, blocks: int) -> int:
        """How many of its blocks are frozen."""
        return 0 if self.trained is None else self.copied_of(blocks) - self.trained


def _canonical(source: tuple[str, ...]) -> tuple[str, ...]:
    """The same with names in order and values in one spelling, since equal sources have equal keys."""
    named: dict[str, str] = {}
    for item in source:
        name, colon, text = item.partition(":")
        if not (name and colon and text) or name in named:
            raise ConfigError(
                f"transfer.source holds {item!r}; give each part once and as NAME:VALUE, such as run:KEY or "
                f"data.name:mnist"
            )
        named[name] = text
    _check(named)
    if not NAMED & set(named):
        named = {name: _text(_value(text)) for name, text in named.items()}
    return tuple(f"{name}:{named[name]}" for name in sorted(named))


def _check(named: Mapping[str, str]) -> None:
    names = set(named)
    if "run" in names and (names != {"run"} or not KEY.fullmatch(named["run"])):
        raise ConfigError(
            f"transfer.source has run:{named['run']} and {len(names) - 1} other parts; give run:KEY alone, with the "
            f"16 digits of a run's key, as depthlab runs lists them"
        )
    if "file" in names or "sha256" in names:
        if names != {"file", "sha256"} or not SHA256.fullmatch(named["sha256"]):
            raise ConfigError(
                "transfer.source of a file is [file:PATH,sha256:HEX] with the 64 digits that sha256sum PATH tells: the "
                "file's content says what the run gives, and its name does not"
            )
    elif "torchvision" in names:
        _check_torchvision(named)
    elif names and "run" not in names and "data.name" not in names:
        raise ConfigError(
            f"transfer.source={list(named)} does not say what was trained on; add data.name:NAME, or give run:KEY "
            f"or torchvision:WEIGHTS"
        )
    if wrong := [name for name in named if name.startswith("transfer.")]:
        raise ConfigError(
            f"transfer.source holds {wrong[0]}; a source that is itself a transfer is given as run:KEY, trained before"
        )


def _check_torchvision(named: Mapping[str, str]) -> None:
    weights = named["torchvision"]
    if set(named) != {"torchvision"} or not WEIGHTS.fullmatch(weights):
        raise ConfigError(
            f"transfer.source has torchvision:{weights} and {len(named) - 1} other parts; give torchvision:WEIGHTS "
            f"alone, with the name that torchvision has for weights of model.architecture, such as IMAGENET1K_V1"
        )
    if weights == "DEFAULT":
        raise ConfigError(
            "transfer.source=[torchvision:DEFAULT] means other weights in other versions of torchvision, and a run's "
            "key cannot say which; name them, such as torchvision:IMAGENET1K_V1"
        )


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
