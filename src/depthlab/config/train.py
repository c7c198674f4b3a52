"""Training, and what is read meanwhile.

Names that appear here as choices are the keys of dict literals in `training` and `probes`; a test holds the two
together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from depthlab.config.fields import ConfigError, check_fields, choice, flag, number

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("constant", "step", "cosine")
LOSSES = ("cross_entropy", "mse", "brier")
PRECISIONS = ("float32", "bf16")
L1_STEPS = ("subgradient", "proximal")
PRETRAINING_LR = 1e-3
READ_BY_DEFAULT = (
    "grad_norm",
    "weight_norm",
    "update_ratio",
    "backward_norm",
    "activation_mean",
    "activation_std",
    "saturation",
    "dead_fraction",
)
"""Part of old runs' keys: a probe that is new is read when it is named, and never joins these."""
PLANE_PROBES = ("linear_regions", "decision")
"""Probes of nets with two inputs, read all over the square of these and not at examples."""
PROBES = (
    *READ_BY_DEFAULT,
    "activation_sparsity",
    "validation_inactive_fraction",
    "weight_distribution",
    "test_residual",
    *PLANE_PROBES,
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the weights are changed, and for how long."""

    steps: int = number(600, "number of updates", low=1)
    batch_size: int = number(128, "images in a batch", low=1)
    loss: str = choice("cross_entropy", LOSSES, "loss; mse is of logits, brier the squared error of softmax")
    label_smoothing: float = number(0.0, "share of the target spread over all classes", below=1)
    optimizer: str = choice("sgd", OPTIMIZERS, "optimiser")
    lr: float = number(0.05, "peak learning rate")
    momentum: float = number(0.9, "momentum of sgd, beta1 of adam and adamw", below=1)
    nesterov: bool = flag(False, "Nesterov's form of momentum")
    weight_decay: float = number(0.0, "L2 penalty of sgd and adam, decoupled decay of adamw")
    l1: float = number(0.0, "factor of the L1 penalty on the weights")
    l1_step: str = choice("subgradient", L1_STEPS, "how its kink is met; proximal makes weights exactly 0 (sgd only)")
    clip_norm: float | None = number(None, "largest norm of the whole gradient (null: no clipping)")
    schedule: str = choice("constant", SCHEDULES, "how the learning rate falls")
    milestones: tuple[float, ...] = field(
        default=(0.5, 0.75), metadata={"about": "schedule=step: parts of the training after which the rate falls"}
    )
    lr_decay: float = number(0.1, "schedule=step: the factor by which it falls", high=1)
    warmup_steps: int = number(0, "steps over which the learning rate rises linearly to its peak")
    eval_every: int = number(100, "steps between evaluations on the validation split", low=1)
    early_stopping: int | None = number(None, "stop after this many evaluations without a better one", low=1)
    precision: str = choice("float32", PRECISIONS, "arithmetic of the forward and backward pass")
    activation_checkpointing: bool = flag(False, "compute activations again in the backward pass, to save memory")
    compile: bool = flag(False, "run updates that are not read through torch.compile, which first takes a minute or so")
    pretraining_steps: int = number(0, "updates of each hidden layer as an autoencoder, before training (0: none)")
    pretraining_lr: float = number(PRETRAINING_LR, "learning rate of these updates, by Adam")
    corruption: float = number(0.0, "share of an autoencoder's inputs set to 0 in these updates", below=1)

    def __post_init__(self) -> None:
        check_fields(self, "train")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ConfigError(
                f"train.nesterov=true needs train.optimizer=sgd with momentum; given {self.optimizer} with "
                f"train.momentum={self.momentum}"
            )
        if self.l1_step == "proximal" and (self.l1 == 0 or self.optimizer != "sgd"):
            raise ConfigError(
                f"train.l1_step=proximal needs train.l1 above 0 and train.optimizer=sgd; given train.l1={self.l1} and "
                f"{self.optimizer}. Set both, or leave it at subgradient"
            )
        if self.compile and self.activation_checkpointing:
            raise ConfigError(
                "train.compile=true decides itself which activations are kept, and would undo "
                "train.activation_checkpointing=true; set one of them to false"
            )
        if self.pretraining_steps == 0 and (self.corruption or self.pretraining_lr != PRETRAINING_LR):
            raise ConfigError(
                f"train.corruption={self.corruption} and train.pretraining_lr={self.pretraining_lr} have no effect "
                f"with train.pretraining_steps=0; set that, or leave them at 0 and {PRETRAINING_LR}"
            )
        if self.warmup_steps >= self.steps:
            raise ConfigError(f"train.warmup_steps={self.warmup_steps} must be less than train.steps={self.steps}")
        if list(self.milestones) != sorted(set(self.milestones)) or not all(0 < part < 1 for part in self.milestones):
            raise ConfigError(
                f"train.milestones={list(self.milestones)} must rise and lie between 0 and 1, such as [0.5,0.75]"
            )


@dataclass(frozen=True, kw_only=True)
class ProbesConfig:
    """Which per-layer numbers are read, and when. The first and the last update are always read."""

    every: int = number(100, "updates from one reading to the next (0: only the first and the last)")
    names: tuple[str, ...] = field(
        default=READ_BY_DEFAULT, metadata={"choices": PROBES, "about": "which probes are read"}
    )

    def __post_init__(self) -> None:
        check_fields(self, "probes")
