"""Networks: the factors that they are points of.

Names that appear here as choices are the keys of dict literals in `nets`; a test holds the two together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields

from depthlab.config.fields import ConfigError, check_fields, choice, flag, number, text

ACTIVATIONS = (
    *("sigmoid", "tanh", "relu", "leaky_relu", "very_leaky_relu"),
    *("elu", "selu", "gelu", "silu", "identity"),
)
PIECEWISE_LINEAR = ("relu", "leaky_relu", "very_leaky_relu")
"""Of these: linear but for a kink at 0."""
NORMS = ("none", "batch", "layer", "group", "rms")
SKIPS = ("none", "residual", "preactivation", "highway")
BRANCHES = ("standard", "rezero", "fixup")
INITS = ("torch_default", "xavier", "he", "orthogonal", "delta_orthogonal", "gaussian", "lsuv")
FAMILIES = ("mlp", "cnn", "rnn", "torchvision")
OF_TORCHVISION = ("architecture", "image_size")
"""Fields of family=torchvision, which has no others, as no others have them."""
CELLS = ("rnn", "lstm", "gru")

GATE_BIAS = -2.0
"""Where gates start, below zero as Srivastava et al. 2015 advise: sigmoid(-2) lets 0.12 of the branch through."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A point of skip x norm x init x activation, at a depth and a width."""

    family: str = choice(
        "mlp",
        FAMILIES,
        "fully connected, He et al.'s CIFAR convolutional family, recurrent over rows, torchvision's",
    )
    architecture: str = text("resnet18", "family=torchvision: which of torchvision's classification models")
    image_size: int | None = number(
        None, "family=torchvision: pixels a side to which images are resized (null: as they are)", low=1
    )
    depth: int = number(20, "number of weight layers from input to logits (gates and shortcuts not counted)", low=2)
    width: int = number(100, "units of an MLP's hidden layers or of a cell; channels of a CNN's first stage", low=1)
    cell: str = choice("rnn", CELLS, "family=rnn: what takes the state from one row of an image to the next")
    forget_bias: float = number(0.0, "initial bias of the gate that keeps the state: lstm's forget, gru's update gate")
    stages: int = number(3, "CNN: stages; each but the first halves the resolution and doubles the width", low=1)
    activation: str = choice("relu", ACTIVATIONS, "nonlinearity")
    norm: str = choice("none", NORMS, "normalization after each hidden weight layer")
    norm_groups: int = number(4, "groups of norm=group", low=1)
    norm_affine: bool = flag(True, "learned scale and shift after the normalization (norm=rms: scale)")
    norm_noise: float = number(0.0, "strength of noise after the normalization, new at every update", high=2)
    skip: str = choice("none", SKIPS, "what bypasses a block of two weight layers")
    branch: str = choice("standard", BRANCHES, "how residual branches start; all but standard from 0")
    gate_bias: float = number(GATE_BIAS, "initial bias of the gates of highways; below 0: closed", low=-100, high=100)
    init: str = choice("he", INITS, "initialization of the weights")
    sigma_w: float | None = number(None, "gain of init=gaussian, orthogonal, delta_orthogonal (null: critical gain)")
    sigma_b: float = number(0.0, "standard deviation of the biases of the same three")
    bias: bool = flag(True, "biases in the hidden weight layers (the head always has one)")
    head_gain: float = number(1.0, "factor of the head's initial weights")
    head_bias: float = number(0.0, "initial bias of the head's first class: a net that begins sure of one answer")
    dropout: float = number(0.0, "probability of dropping a hidden activation", below=1)
    dropconnect: float = number(0.0, "probability of dropping a weight of a hidden layer at an update", below=1)

    def __post_init__(self) -> None:
        check_fields(self, "model")
        self._check_torchvision()
        self._check_recurrence()
        if self.family == "cnn":
            self._check_cnn_depth()
        elif self.skip != "none" and (self.depth - 2) % 2:
            raise ConfigError(
                f"model.depth={self.depth} does not fit model.skip={self.skip}: blocks hold two weight layers between "
                f"stem and head, so depth is even; choose {self.depth - 1} or {self.depth + 1}"
            )
        if self.norm == "group" and self.width % self.norm_groups:
            raise ConfigError(
                f"model.width={self.width} does not divide into model.norm_groups={self.norm_groups} groups; "
                f"change either"
            )
        if self.norm == "none" and (self.norm_noise or not self.norm_affine):
            raise ConfigError(
                f"model.norm_affine={str(self.norm_affine).lower()} and model.norm_noise={self.norm_noise} have no "
                f"effect with model.norm=none; choose a norm, or leave them at true and 0"
            )
        self._check_bypass()
        if self.init == "delta_orthogonal" and self.family != "cnn":
            raise ConfigError(
                f"model.init=delta_orthogonal is for convolutions; with model.family={self.family} choose "
                f"model.init=orthogonal"
            )
        if self.init not in ("gaussian", "orthogonal", "delta_orthogonal"):
            for name, unset in (("sigma_w", None), ("sigma_b", 0.0)):
                if getattr(self, name) != unset:
                    raise ConfigError(
                        f"model.{name}={getattr(self, name)} has no effect with model.init={self.init}; "
                        f"use it with model.init=gaussian, orthogonal or delta_orthogonal"
                    )
        if self.init == "lsuv" and (self.head_gain != 1 or self.head_bias):
            raise ConfigError(
                f"model.head_gain={self.head_gain} and model.head_bias={self.head_bias} would be undone by "
                f"model.init=lsuv, which rescales the head as well; choose another init, or leave them at 1 and 0"
            )
        if self.sigma_b > 0 and not self.bias:
            raise ConfigError(f"model.sigma_b={self.sigma_b} needs biases; set model.bias=true or model.sigma_b=0")

    def _check_bypass(self) -> None:
        if self.branch != "standard" and self.skip not in ("residual", "preactivation"):
            raise ConfigError(
                f"model.branch={self.branch} has no effect with model.skip={self.skip}, which has no residual "
                f"branches; choose model.skip=residual or preactivation, or model.branch=standard"
            )
        if self.gate_bias != GATE_BIAS and self.skip != "highway":
            raise ConfigError(
                f"model.gate_bias={self.gate_bias} has no effect with model.skip={self.skip}, which has no gates; "
                f"choose model.skip=highway, or leave it at {GATE_BIAS}"
            )
        if self.branch == "fixup" and (self.norm != "none" or self.init == "lsuv" or self.head_gain != 1):
            raise ConfigError(
                f"model.branch=fixup scales branches and starts the head from 0, which model.norm={self.norm}, "
                f"model.init={self.init} and model.head_gain={self.head_gain} must leave as it is; choose "
                f"model.norm=none, an init other than lsuv, and model.head_gain=1"
            )

    def _check_torchvision(self) -> None:
        """Factors of the other families are, in models of torchvision, as torchvision made them."""
        of_torchvision = self.family == "torchvision"
        for item in fields(self):
            given = getattr(self, item.name)
            if item.name == "family" or given == item.default or (item.name in OF_TORCHVISION) == of_torchvision:
                continue
            given, default = (value if isinstance(value, str) else json.dumps(value) for value in (given, item.default))
            other = "another family, such as cnn" if of_torchvision else "model.family=torchvision"
            raise ConfigError(
                f"model.{item.name}={given} has no effect with model.family={self.family}; leave it at {default}, or "
                f"choose {other}"
            )

    def _check_recurrence(self) -> None:
        """What only a recurrent net has, and what it has not."""
        if self.forget_bias and (self.cell == "rnn" or not self.bias):
            raise ConfigError(
                f"model.forget_bias={self.forget_bias} needs a gate with a bias; set model.cell=lstm or gru and "
                f"model.bias=true, or leave it at 0"
            )
        if self.family != "rnn":
            if self.cell != "rnn":
                raise ConfigError(
                    f"model.cell={self.cell} has no effect with model.family={self.family}; set model.family=rnn, or "
                    f"leave it at rnn"
                )
            return
        if self.depth != 2:
            raise ConfigError(
                f"model.depth={self.depth} does not fit model.family=rnn: it has a recurrent layer and a head, and is "
                f"as deep in time as images have rows; choose 2"
            )
        allowed = {"rnn": ("tanh", "relu")}.get(self.cell, ("tanh",))
        if self.activation not in allowed:
            raise ConfigError(
                f"model.activation={self.activation} is not what model.cell={self.cell} is made with; choose "
                f"model.activation={' or '.join(allowed)}"
            )
        for name, only in (("norm", "none"), ("skip", "none"), ("dropout", 0.0), ("dropconnect", 0.0)):
            if getattr(self, name) != only:
                raise ConfigError(
                    f"model.{name}={getattr(self, name)} has no place in model.family=rnn; leave it at {only}, or "
                    f"choose model.family=mlp or cnn"
                )
        if self.init == "lsuv":
            raise ConfigError(
                "model.init=lsuv rescales layers that pass a batch once, and a cell passes it at every time step; with "
                "model.family=rnn choose model.init=orthogonal"
            )

    @property
    def gains_from_threads(self) -> bool:
        """Whether its layers are so large that several threads work faster on one."""
        return self.family in ("cnn", "torchvision")

    @property
    def blocks(self) -> int | None:
        """How many blocks come before the head, the stem counted as one, though that of family=rnn has no weights.

        None: only the network tells, as that of family=torchvision.
        """
        if self.family == "torchvision":
            return None
        if self.family == "rnn":
            return 2
        return self.depth - 1 if self.skip == "none" else 1 + (self.depth - 2) // 2

    def _check_cnn_depth(self) -> None:
        period = 2 * self.stages
        if (self.depth - 2) % period or self.depth < period + 2:
            lower = max(1, (self.depth - 2) // period) * period + 2
            raise ConfigError(
                f"model.depth={self.depth} does not fit model.stages={self.stages}: a CNN of this family has "
                f"{period}n + 2 weight layers; choose {lower} or {lower + period}"
            )
