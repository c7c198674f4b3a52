"""The training loop: a generator that yields once for every update."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthlab.config import ProbesConfig, TrainConfig, stream_seed
from depthlab.data import Batches
from depthlab.nets import allocate_gradients, is_random
from depthlab.probes import Reading, Row
from depthlab.training.compiled import Outcome, compiled, passes
from depthlab.training.optimizers import build_optimizer, set_learning_rate


@dataclass(frozen=True, slots=True)
class Update:
    """One update. `step` counts from 0: the readings are of the weights after `step` updates, on the batch `step`.

    `loss` (the mean over the batch, before the update) and `error` (share of the batch classified wrongly, in
    training mode) stay on the device, so that nothing waits for it.
    """

    step: int
    loss: Tensor
    error: Tensor
    rows: Sequence[Row] = field(default=())


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Mean loss, and the share of images classified wrongly, in [0, 1]."""

    loss: float
    error: float


def train(
    model: nn.Module,
    layers: Sequence[tuple[str, nn.Module]],
    batches: Batches,
    config: TrainConfig,
    probes: ProbesConfig,
    *,
    seed: int,
    states: Sequence[tuple[str, nn.Module]] = (),
    start: int = 0,
    optimizer: torch.optim.Optimizer | None = None,
) -> Iterator[Update]:
    """Trains a model in place, one update an item, from update `start` on.

    model: one of `depthlab.nets`, if the configuration asks for activation checkpointing; else any.
    states: of a recurrent net, the modules that its states pass, to be read.
    optimizer: that of the updates before `start`; a new one, without momentum, if there is none.

    Everything random in an update is a function of (seed, step): the batch and its augmentation, and dropout,
    DropConnect and noise, for which torch's global generator is seeded anew at each update.

    With config.compile, updates that the probes read run the model as it is, since nothing inside of compiled code can
    be read, and all others its compiled forward and backward pass, which shares its parameters. Compiled arithmetic
    rounds differently, and draws other random numbers for the same seed; so a run's last digits depend on which of its
    updates are read. Raises ConfigError at the first update that is not read if the model cannot be compiled.
    """
    optimizer = optimizer or build_optimizer(model, config)
    weights = [weight for _, layer in layers for weight in _weights(layer)]
    known = {id(weight) for weight in weights}
    draws = is_random(model)
    gradients = allocate_gradients(model) if config.activation_checkpointing else None
    outcome = _forward_pass(model, config)
    plain = partial(passes, outcome)
    model.train()
    with compiled(outcome, _device(model)) if config.compile else nullcontext(plain) as unread:
        for step in range(start, config.steps):
            set_learning_rate(optimizer, config, step)
            if draws:
                torch.manual_seed(stream_seed(seed, f"dropout/{step}"))
            inputs, labels = batches[step]
            reads = is_read(step, config, probes)
            with Reading(model, layers, probes.names, states) if reads else nullcontext() as reading:
                loss, error = (plain if reads else unread)(inputs, labels)
            if reading:
                reading.before_update()
            if config.l1 and config.l1_step == "subgradient":
                add_l1_gradient(weights, config.l1)
            if config.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            if config.l1_step == "proximal":
                for group in optimizer.param_groups:  # whose rates differ; what is frozen is in none
                    penalized = [weight for weight in group["params"] if id(weight) in known]
                    soft_threshold(penalized, group["lr"] * config.l1 / (1 - config.momentum))
            if gradients is None:
                optimizer.zero_grad(set_to_none=True)
            else:
                gradients.fill_(-0.0)
            yield Update(step, loss, error, reading.rows() if reading else ())


def _forward_pass(model: nn.Module, config: TrainConfig) -> Outcome:
    """What an update computes before its backward pass, in one function, which may be compiled."""
    forward = partial(model, activation_checkpointing=True) if config.activation_checkpointing else model

    def outcome(inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with forward_precision(config, inputs.device):
            logits = forward(inputs)
        logits = logits.float()
        with torch.no_grad():
            error = (logits.argmax(dim=1) != labels).float().mean()
        return criterion(logits, labels, config), error

    return outcome


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _weights(layer: nn.Module) -> list[nn.Parameter]:
    names = ("weight_ih", "weight_hh") if isinstance(layer, nn.RNNCellBase) else ("weight",)
    return [layer.get_parameter(name) for name in names]


def is_read(step: int, config: TrainConfig, probes: ProbesConfig) -> bool:
    """Whether the probes read this update: the first, the last, and every so many between."""
    return step in (0, config.steps - 1) or (probes.every > 0 and step % probes.every == 0)


def criterion(logits: Tensor, labels: Tensor, config: TrainConfig) -> Tensor:
    """Loss of logits (n, classes) against labels (n,), a mean over the batch.

    mse is the mean over batch and classes of (logits - targets)^2, targets one-hot. brier is the mean over the batch
    of sum_k (p_k - target_k)^2, p = softmax(logits), in [0, 2] (Brier 1950, eq. 2). Label smoothing e makes the target
    (1 - e) one-hot + e / classes in all three (Szegedy et al. 2016, section 7).
    """
    if config.loss == "cross_entropy":
        return F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    classes = logits.shape[1]
    one_hot = F.one_hot(labels, classes).to(logits.dtype)
    targets = one_hot * (1 - config.label_smoothing) + config.label_smoothing / classes
    if config.loss == "brier":
        return (logits.softmax(dim=1) - targets).square().sum(dim=1).mean()
    return F.mse_loss(logits, targets)


@torch.no_grad()
def add_l1_gradient(weights: Iterable[nn.Parameter], factor: float) -> None:
    """Adds the subgradient factor * sign(w) of the penalty factor * sum |w| to each weight's gradient."""
    for weight in weights:
        if weight.grad is not None:
            weight.grad.add_(weight.sign(), alpha=factor)


@torch.no_grad()
def soft_threshold(weights: Iterable[nn.Parameter], by: float) -> None:
    """Moves each weight towards 0 by so much, and no further: sign(w) max(|w| - by, 0), in place.

    It is the proximal step of the penalty by * sum |w|: after a gradient step of the rest of the loss it descends the
    sum of both, and weights that the data do not hold up come to be exactly 0 (Duchi & Singer 2009, FOBOS; Tsuruoka et
    al. 2009 clip at 0 the penalty that a weight has been owed so far). A subgradient step carries them over 0 and back.
    With momentum m the loss moves a weight by lr / (1 - m) times a gradient that lasts: lr l1 / (1 - m) is the
    threshold that keeps the minimum of loss + l1 sum |w| where it is.
    """
    for weight in weights:
        weight.sub_(weight.clamp(-by, by))  # NaN stays NaN


def forward_precision(config: TrainConfig, device: torch.device) -> AbstractContextManager[object]:
    """The autocast context of the forward pass; for float32 one that does nothing, as entering autocast takes time."""
    return torch.autocast(device.type, torch.bfloat16) if config.precision == "bf16" else nullcontext()


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], config: TrainConfig) -> Evaluation:
    """Loss and error over batches of (inputs, labels), in evaluation mode; the model's own mode is put back."""
    was_training = model.training
    model.eval()
    count = 0
    totals: list[Tensor] = []
    for inputs, labels in batches:
        with forward_precision(config, inputs.device):
            logits = model(inputs)
        logits = logits.float()
        mean_loss = criterion(logits, labels, config).double()
        totals.append(torch.stack([mean_loss * len(labels), (logits.argmax(dim=1) != labels).double().sum()]))
        count += len(labels)
    model.train(was_training)
    loss, wrong = torch.stack(totals).sum(dim=0).tolist()
    return Evaluation(loss / count, wrong / count)


@torch.no_grad()
def residuals(model: nn.Module, inputs: Tensor, labels: Tensor, config: TrainConfig) -> Tensor:
    """Outputs minus one-hot labels, float32 (n, classes), in evaluation mode; the model's own mode is put back.

    Outputs are what the loss squares: logits for mse, else probabilities, softmax(logits). Over models that were
    trained on different data, the mean of residuals is a bias and their spread a variance.
    """
    logits = _evaluated(model, inputs, config)
    outputs = logits if config.loss == "mse" else logits.softmax(dim=1)
    return outputs - F.one_hot(labels, outputs.shape[1])


@torch.no_grad()
def predictions(model: nn.Module, inputs: Tensor, config: TrainConfig) -> Tensor:
    """The class of the largest logit, int64 (n,), in evaluation mode; the model's own mode is put back."""
    return _evaluated(model, inputs, config).argmax(dim=1)


def _evaluated(model: nn.Module, inputs: Tensor, config: TrainConfig) -> Tensor:
    """Logits in evaluation mode, float32 (n, classes)."""
    was_training = model.training
    model.eval()
    with forward_precision(config, inputs.device):
        logits: Tensor = model(inputs)
    model.train(was_training)
    return logits.float()
