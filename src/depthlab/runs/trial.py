"""What a run has in memory: training and evaluating it, saving it and going on."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import pandas as pd
import torch

from depthlab import data, nets
from depthlab.config import DataConfig, RunConfig, TrainConfig
from depthlab.probes import InactiveUnits, Row, linear_regions, weight_distribution
from depthlab.runs.checkpoints import Checkpoints
from depthlab.runs.interrupts import Stop, Stopped
from depthlab.runs.plane import corners, decisions
from depthlab.runs.progress import tell
from depthlab.runs.store import COLUMNS, Status
from depthlab.runs.weights import Weights
from depthlab.training import Evaluation, Pretraining, Update, build_optimizer, evaluate, residuals, train

NETWORK = "network"
"""The layer name of readings of the whole network; their depth is 0."""

FETCH_EVERY = 50
"""Losses are fetched from the device, and looked at for divergence, in blocks of this many updates."""

EVALUATION_BATCH = 500

RESIDUAL_IMAGES = 50
"""Test images whose residuals are kept by the probe test_residual: the first ones."""

RESIDUAL_DIGITS = 2
"""Significant digits of them: rounding adds one part in some thousands to their mean square."""

Progress = Callable[[int, float | None, float | None], None]
"""Called with the number of updates done, and the last loss and validation error that are known."""


class Trial:
    """What a run has in memory while it is trained."""

    def __init__(
        self,
        config: RunConfig,
        device: torch.device,
        progress: Progress | None = None,
        *,
        checkpoints: Checkpoints | None = None,
        stop: Stop | None = None,
        origin: Mapping[str, str] | None = None,
        weights: Weights | None = None,
    ) -> None:
        self.config = config
        self.progress = progress
        self.splits = load_splits(config.data, device)
        self.model, copied = _network(config, self.splits, weights, device)
        self.batches = data.Batches(
            self.splits.train,
            config.data,
            batch_size=config.train.batch_size,
            seed=config.seed,
            mean=self.splits.mean,
            std=self.splits.std,
        )
        if config.model.init == "lsuv":
            inputs, _ = self.batches[0]
            nets.rescale(self.model, inputs)
        self.layers, self.states = nets.weight_layers(self.model), nets.time_steps(self.model)
        slow = nets.copied_parameters(self.model, copied)
        self.optimizer = build_optimizer(self.model, config.train, slow, config.transfer.backbone_lr_factor)
        self.pretraining: Pretraining | None = None
        if config.train.pretraining_steps:
            self.pretraining = Pretraining(self.model, self.batches, config.train, seed=config.seed)
        self.checkpoints, self.stop = checkpoints, stop
        self.started = time.perf_counter()
        self.seconds_before = 0.0
        self.resumed: list[int] = []
        self.origin = dict(origin or {})
        self.earlier: list[dict[str, str]] = []
        self.done = 0
        self.rows: list[tuple[int, str, int, str, float]] = []
        self.pending: list[Update] = []
        self.last_loss: float | None = None
        self.chosen: Chosen | None = None
        self.validation_error: float | None = None

    def run(self) -> dict[str, Any]:
        """Trains, evaluates, and returns status, metrics, the long table of readings and the last weights."""
        config = self.config.train
        self._resume()
        self._pretrain()
        if self.done == 0:
            self._note_regions(0)
        for update in self._updates():
            self.done = done = update.step + 1
            self._keep(update.step, update.rows)
            self.pending.append(update)
            evaluating = is_evaluated(done, config)
            saving = self._is_to_be_saved()
            if (evaluating or saving or len(self.pending) == FETCH_EVERY) and not self._fetch():
                return self._diverged()
            if evaluating and self._is_overdue(done):
                break
            if saving:
                self._save()
            if self.progress:
                self.progress(done, self.last_loss, self.validation_error)
        return self._finished(self.done)

    def _pretrain(self) -> None:
        """What is left of the phase before the first update; its readings have steps below 0, that update being 0."""
        for rows in self.pretraining.updates() if self.pretraining else ():
            for step, row in rows:
                self._keep(step, [row])
            if self._is_to_be_saved():
                self._save()
            if self.progress:
                self.progress(0, None, None)

    def _updates(self) -> Iterator[Update]:
        config = self.config
        return train(
            self.model,
            self.layers,
            self.batches,
            config.train,
            config.probes,
            seed=config.seed,
            states=self.states,
            start=self.done,
            optimizer=self.optimizer,
        )

    def _is_to_be_saved(self) -> bool:
        asked = self.stop is not None and self.stop.asked
        return asked or (self.checkpoints is not None and self.checkpoints.is_due())

    def _save(self) -> None:
        """Writes a checkpoint; if somebody has asked to stop, that was the last thing to do."""
        if self.done == self.config.train.steps:
            return  # what is left takes no longer than saving it
        if self.checkpoints is not None:
            self.checkpoints.save(self.done, self.state())
        if self.stop is not None and self.stop.asked:
            phase = self.pretraining
            before = "" if phase is None or phase.is_over else f", in pre-training: {phase.done} of {phase.total} done"
            raise Stopped(f"after update {self.done} of {self.config.train.steps}{before}", self.stop.by)

    def state(self) -> dict[str, Any]:
        """All that the updates to come depend on, and all that was read; data and dropout are functions of the step."""
        assert not self.pending
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "pretraining": None if self.pretraining is None else self.pretraining.state_dict(),
            "rows": [list(column) for column in zip(*self.rows, strict=True)],
            "chosen": None if self.chosen is None else vars(self.chosen),
            "last_loss": self.last_loss,
            "validation_error": self.validation_error,
            "seconds": self.seconds_before + time.perf_counter() - self.started,
            "resumed": self.resumed,
            "parts": [*self.earlier, self.origin],
        }

    def _resume(self) -> None:
        """Goes on from the last checkpoint, if there is one."""
        state = None if self.checkpoints is None else self.checkpoints.load()
        if state is None:
            return
        self.done = state["step"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.pretraining is not None:
            self.pretraining.load_state_dict(state["pretraining"])
        self.rows = list(zip(*state["rows"], strict=True))
        if (chosen := state["chosen"]) is not None:
            self.chosen = Chosen(chosen["step"], chosen["error"], chosen["weights"])
            self.chosen.evaluations_since = chosen["evaluations_since"]
        self.last_loss, self.validation_error = state["last_loss"], state["validation_error"]
        self.seconds_before, self.resumed = state["seconds"], [*state["resumed"], self.done]
        self.earlier = state["parts"]
        if self.origin != self.earlier[-1]:
            tell(f"going on from update {self.done}, which was trained with {self.earlier[-1]}; now {self.origin}")

    def _fetch(self) -> bool:
        """Moves losses to the host; False if one of them is not finite."""
        values = torch.stack([update.loss for update in self.pending] + [update.error for update in self.pending])
        losses, errors = values.view(2, -1).tolist()
        for update, loss, error in zip(self.pending, losses, errors, strict=True):
            self._note(update.step, "train_loss", loss)
            self._note(update.step, "batch_error", error)
        self.pending.clear()
        self.last_loss = losses[-1]
        return all(math.isfinite(loss) for loss in losses)

    def _is_overdue(self, done: int) -> bool:
        """Evaluates, keeps the best weights, and says whether early stopping has had enough."""
        result = self._validate(done)
        self._note(done, "validation_loss", result.loss)
        self._note(done, "validation_error", result.error)
        self.validation_error = result.error
        if self.chosen is None or result.error < self.chosen.error:
            self.chosen = Chosen(done, result.error, copy.deepcopy(self.model.state_dict()))
        else:
            self.chosen.evaluations_since += 1
        patience = self.config.train.early_stopping
        return patience is not None and self.chosen.evaluations_since >= patience

    def _validate(self, done: int) -> Evaluation:
        """Evaluates on the validation split, which is also the window over which inactive units are counted."""
        probe = "validation_inactive_fraction"
        if probe not in self.config.probes.names:
            return self.evaluate(self.splits.validation)
        with InactiveUnits(self.model, self.layers) as inactive:
            result = self.evaluate(self.splits.validation)
        self._keep(done, inactive.rows(probe))
        return result

    def _finished(self, done: int) -> dict[str, Any]:
        """Reads the test set, once: with the last weights and with those that validation chose."""
        assert self.chosen is not None
        assert self.validation_error is not None
        if "weight_distribution" in self.config.probes.names:
            self._keep(done, weight_distribution(self.layers))
        part = self.splits.train.first(len(self.splits.validation))
        last, training = self.evaluate(self.splits.test), self.evaluate(part)
        if "test_residual" in self.config.probes.names:
            self._note_residuals(done)
        self._note_regions(done)
        if "decision" in self.config.probes.names:
            self._note_decisions(done)
        chosen = last
        weights = copy.deepcopy(self.model.state_dict())
        if self.chosen.step != done:
            self.model.load_state_dict(self.chosen.weights)
            chosen = self.evaluate(self.splits.test)
        metrics = {
            "train_error": training.error,
            "test_loss": last.loss,
            "test_error": last.error,
            "chosen_test_error": chosen.error,
            "chosen_step": float(self.chosen.step),
        }
        for name, value in metrics.items():
            self._note(done, name, value)
        metrics["validation_error"] = self.validation_error
        # the last update can blow the weights up unseen: errors stay numbers, a test loss need not, and JSON has no NaN
        known = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        return {"status": Status.DONE, "steps": done, "metrics": known, "readings": self._table(), "weights": weights}

    def _diverged(self) -> dict[str, Any]:
        """The loss is no number: keeps what was read up to and at that update."""
        table = self._table()
        losses = table[table["probe"] == "train_loss"]
        step = int(losses.loc[~losses["value"].map(math.isfinite), "step"].min())
        return {"status": Status.DIVERGED, "diverged_step": step, "readings": table[table["step"] <= step]}

    def evaluate(self, images: data.Images) -> Evaluation:
        """Loss and error on a part of the data."""
        size = EVALUATION_BATCH
        if self.config.model.family == "torchvision":  # whose images may be large: what fits in training fits here
            size = min(size, self.config.train.batch_size)
        batches = data.evaluation_batches(images, batch_size=size, mean=self.splits.mean, std=self.splits.std)
        return evaluate(self.model, batches, self.config.train)

    def _note_residuals(self, done: int) -> None:
        """Outputs minus labels of single test images, with the last weights; a row's layer is test.IMAGE.CLASS."""
        images, labels = self.splits.test[:RESIDUAL_IMAGES]
        inputs = data.normalize(images, self.splits.mean, self.splits.std)
        for image, outputs in enumerate(residuals(self.model, inputs, labels, self.config.train).tolist()):
            for label, residual in enumerate(outputs):
                rounded = float(f"{residual:.{RESIDUAL_DIGITS}g}")
                self.rows.append((done, f"test.{image}.{label}", 0, "test_residual", rounded))

    def _note_regions(self, done: int) -> None:
        """How many linear regions the net has on the square of inputs, if that is to be read."""
        if "linear_regions" not in self.config.probes.names:
            return
        low, high = (corner.tolist() for corner in corners(self.splits))
        # the last update can blow the weights up unseen
        known = all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())
        self._note(done, "linear_regions", len(linear_regions(self.model, low, high)) if known else math.nan)

    def _note_decisions(self, done: int) -> None:
        """The class at each point of a lattice, with the last weights; a row's layer is plane.X.Y."""
        for (x, y), found in decisions(self.model, self.splits, self.config.train).items():
            self.rows.append((done, f"plane.{x}.{y}", 0, "decision", float(found)))

    def _note(self, step: int, probe: str, value: float) -> None:
        self.rows.append((step, NETWORK, 0, probe, value))

    def _keep(self, step: int, rows: Iterable[Row]) -> None:
        for row in rows:
            self.rows.append((step, row.layer, row.depth, row.probe, row.value))

    def _table(self) -> pd.DataFrame:
        table = pd.DataFrame(self.rows, columns=list(COLUMNS)).astype(COLUMNS)
        return table.sort_values(["step", "depth", "probe"], kind="stable", ignore_index=True)


def _network(
    config: RunConfig, splits: data.Splits, weights: Weights | None, device: torch.device
) -> tuple[nets.Network, int]:
    """The network before its first update, on the device; and how many of its blocks are copied, or count as such."""
    _, channels, size, _ = splits.train.pool.shape
    head, classes = config.transfer.head, len(splits.classes)
    model = nets.build(config.model, channels=channels, size=size, classes=classes, seed=config.seed, head=head)
    blocks = len(model.block_names())
    config.transfer.check_blocks(blocks)
    copied = config.transfer.copied_of(blocks)
    if weights is not None:
        nets.copy_blocks(model, weights.state, copied)
    nets.freeze(model, config.transfer.frozen_of(blocks))
    model = model.to(device)
    if config.model.family == "cnn":
        # a third of the step time of small convolutions on the CPU; of torchvision's models as often a loss
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model, copied


class Chosen:
    """The weights that did best on the validation split."""

    def __init__(self, step: int, error: float, weights: dict[str, Any]) -> None:
        self.step = step
        self.error = error
        self.weights = weights
        self.evaluations_since = 0


def is_evaluated(done: int, config: TrainConfig) -> bool:
    """Whether the validation error is measured after so many updates."""
    return done % config.eval_every == 0 or done == config.steps


@lru_cache(maxsize=2)
def load_splits(config: DataConfig, device: torch.device) -> data.Splits:
    """The data of a configuration; the last two are kept, since the runs of a sweep share them."""
    return data.load(config, device)
