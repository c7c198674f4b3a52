"""Greedy layer-wise pre-training: each hidden layer as an autoencoder of what the layers below make of the images.

Hinton & Salakhutdinov 2006; Bengio et al. 2007; with corrupted inputs, Vincent et al. 2008. No label is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthlab.config import TrainConfig, stream_seed
from depthlab.data import Batches
from depthlab.nets import Network
from depthlab.probes import Row
from depthlab.training.optimizers import uncompiled

PROBE = "reconstruction_error"


class Autoencoder(nn.Module):
    """A layer and its activation as encoder, and a decoder with the same weights, transposed, and a bias of its own.

    r = g(W^T f(W x + b) + c)                                  (Vincent et al. 2008, section 2.2, with tied weights)

    linear: W and b, trained in place. c starts at 0.
    in_unit_interval: whether x are outputs of sigmoids: g is then the sigmoid and the loss the cross-entropy, else g
        is the identity and the loss the squared error.
    """

    def __init__(self, linear: nn.Linear, activation: nn.Module, *, in_unit_interval: bool) -> None:
        super().__init__()
        self.linear, self.activation = linear, activation
        self.offset = nn.Parameter(linear.weight.new_zeros(linear.in_features))
        self.in_unit_interval = in_unit_interval

    def forward(self, x: Tensor) -> Tensor:
        """Inputs (b, inputs) -> their reconstruction, (b, inputs)."""
        decoded = self._decode(x)
        return decoded.sigmoid() if self.in_unit_interval else decoded

    def loss(self, corrupted: Tensor, x: Tensor) -> Tensor:
        """How badly x (b, inputs) is made out of corrupted (b, inputs): a sum over inputs, a mean over the batch.

        -sum_j x_j ln r_j + (1 - x_j) ln(1 - r_j) in the unit interval, else sum_j (r_j - x_j)^2.
        """
        decoded = self._decode(corrupted)
        if self.in_unit_interval:
            return F.binary_cross_entropy_with_logits(decoded, x, reduction="sum") / len(x)
        return F.mse_loss(decoded, x, reduction="sum") / len(x)

    def _decode(self, x: Tensor) -> Tensor:
        code = self.activation(self.linear(x))
        return F.linear(code, self.linear.weight.t(), self.offset)


@torch.no_grad()
def reconstruction_error(autoencoder: Autoencoder, x: Tensor) -> float:
    """Squared error over the inputs' variance: sum |r - x|^2 / sum |x - mean x|^2 over (b, inputs), at least 0.

    The share of variance that is lost: 1 is what the mean of the inputs alone would do. nan where inputs do not vary.
    """
    lost = (autoencoder(x) - x).double().square().sum()
    present = (x.double() - x.double().mean(dim=0)).square().sum()
    return float(lost / present)


class Pretraining:
    """The phase before the first update: config.pretraining_steps updates for each hidden layer, from the first up.

    model: a plain fully connected net of this package; its hidden layers are changed in place, its head is not.

    The autoencoder of a layer sees training images as the layers below give them on, uncorrupted and without dropout:
    each layer the batches from 0 on. A share config.corruption of its inputs is set to 0, drawn anew at every update
    from the stream corruption/LAYER/STEP of the seed; what it is to reconstruct is whole. Adam takes the updates, in
    float32, whatever trains the net later, and anew for each layer: losses of layers differ in scale, which it does
    not mind.
    """

    def __init__(self, model: Network, batches: Batches, config: TrainConfig, *, seed: int) -> None:
        self._model, self._batches, self._config, self._seed = model, batches, config, seed
        blocks = [name for (name,) in model.block_names()]
        self._hidden = [model.get_submodule(name) for name in blocks]
        self._names = [f"{name}.linear" for name in blocks]
        self.done, self.total = 0, config.pretraining_steps * len(self._hidden)
        self._begin()

    @property
    def is_over(self) -> bool:
        """Whether all updates are done."""
        return self.done == self.total

    def updates(self) -> Iterator[Sequence[tuple[int, Row]]]:
        """The updates that are left, one an item: what was read at it, each with its step, from -total up to 0.

        `reconstruction_error` is read for each layer before its first update and after its last, on the batch that
        follows those it learns from. Whoever saves between two items goes on from there (see `state_dict`).
        """
        self._model.eval()
        while not self.is_over:
            layer, step = divmod(self.done, self._config.pretraining_steps)
            rows = [self._read(layer)] if step == 0 else []
            self._update(layer, step)
            self.done += 1
            if step + 1 == self._config.pretraining_steps:
                rows.append(self._read(layer))
                self._begin()
            yield rows

    def state_dict(self) -> dict[str, Any]:
        """All that the updates to come depend on, beside the model."""
        if self.is_over:
            return {"done": self.done}
        return {
            "done": self.done,
            "offset": self._autoencoder.offset.detach().clone(),
            "optimizer": self._optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to that state; the model's own weights are loaded by who has them."""
        self.done = state["done"]
        if not self.is_over:
            self._begin()
            with torch.no_grad():
                self._autoencoder.offset.copy_(state["offset"])
            self._optimizer.load_state_dict(state["optimizer"])

    def _begin(self) -> None:
        """A decoder and an optimiser for the layer that is next, if there is one."""
        if self.is_over:
            return
        layer = self.done // self._config.pretraining_steps
        linear, activation = (self._hidden[layer].get_submodule(name) for name in ("linear", "activation"))
        assert isinstance(linear, nn.Linear)
        self._autoencoder = Autoencoder(
            linear, activation, in_unit_interval=layer > 0 and isinstance(activation, nn.Sigmoid)
        )
        self._optimizer = uncompiled(torch.optim.Adam)(
            self._autoencoder.parameters(), lr=self._config.pretraining_lr, fused=True
        )

    def _update(self, layer: int, step: int) -> None:
        x = self._inputs(layer, step)
        self._autoencoder.loss(self._corrupted(x, layer, step), x).backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _read(self, layer: int) -> tuple[int, Row]:
        error = reconstruction_error(self._autoencoder, self._inputs(layer, self._config.pretraining_steps))
        return self.done - self.total, Row(self._names[layer], layer + 1, PROBE, error)

    @torch.no_grad()
    def _inputs(self, layer: int, step: int) -> Tensor:
        """What enters a layer of a batch, (b, inputs)."""
        x, _ = self._batches[step]
        x = x.flatten(1)
        for below in self._hidden[:layer]:
            x = below(x)
        return x

    def _corrupted(self, x: Tensor, layer: int, step: int) -> Tensor:
        """A share of the entries of x set to 0; drawn on the CPU, so that a GPU sees the same."""
        if self._config.corruption == 0:
            return x
        stream = torch.Generator().manual_seed(stream_seed(self._seed, f"corruption/{layer}/{step}"))
        is_kept = torch.rand(x.shape, generator=stream) >= self._config.corruption
        return x * is_kept.to(x.device)
