"""Which weights are trained, and which are watched: frozen, unused and chosen ones."""

from __future__ import annotations

import copy
import warnings

import pytest
from loop import BATCH, IN, OUT, STEPS, batch, bits, layers, mlp, train, values, watching
from torch import Tensor, nn
from torch.optim import SGD

from depthlab.probes import Signals


def test_frozen_layers_have_a_norm_and_no_gradient() -> None:
    model = mlp()
    model[0].requires_grad_(False)
    table = train(model, SGD([p for p in model.parameters() if p.requires_grad], lr=0.1))
    assert layers(table) == ["0", "2", "4"]
    assert {layer for _, layer in values(table, "grad_norm")} == {"2", "4"}
    assert {value for (_, layer), value in values(table, "update_ratio").items() if layer == "0"} == {0.0}
    assert {layer for _, layer in values(table, "backward_norm")} == {"2", "4"}
    assert {layer for _, layer in values(table, "activation_std")} == {"0", "2", "4"}


def test_a_frozen_layer_in_the_middle_still_passes_a_gradient_on() -> None:
    model = mlp()
    model[2].requires_grad_(False)
    table = train(model)
    assert {layer for _, layer in values(table, "grad_norm")} == {"0", "4"}
    assert {layer for _, layer in values(table, "backward_norm")} == {"0", "2", "4"}


def test_one_warning_names_the_weights_that_are_not_used() -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare, self.other = nn.Linear(IN, OUT), nn.Linear(IN, OUT), nn.Linear(IN, OUT)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    with pytest.warns(UserWarning, match="gradients of spare, other: none has reached") as caught:
        table = train(Half())
    assert len(caught) == 1
    assert set(table.layer) == {"used", "network"}


def test_layers_chooses_by_name() -> None:
    table = train(mlp(), layers=lambda name: name != "2")
    assert layers(table) == ["0", "4"]
    with pytest.raises(ValueError, match="no weight to watch"):
        watching(mlp(), layers=lambda name: False)


def test_of_layers_that_are_not_chosen_nothing_is_collected() -> None:
    """It would be dropped later, and has cost its time."""
    model = mlp()
    probes = ("output_std", "activation_std", "saturation", "dead_fraction", "backward_norm")
    found: dict[int, set[tuple[str, int]]] = {}
    for wanted in ({0, 1, 2}, {1}, set[int]()):
        signals = Signals(model, [model[index].weight for index in (0, 2, 4)], probes, examples=None, wanted=wanted)
        signals.open()
        model(batch()[0]).square().mean().backward()
        found[len(wanted)] = {(probe, position) for probe, positions, _ in signals.read() for position in positions}
        signals.close()
        assert list(signals.order) == [0, 1, 2]
    of_layers = {
        (probe, position) for probe in ("output_std", "activation_std", "backward_norm") for position in range(3)
    }
    assert found[3] == of_layers | {("saturation", 0), ("dead_fraction", 1)}
    assert found[1] == {(probe, position) for probe, position in found[3] if position == 1}
    assert found[0] == set()


def test_a_watcher_samples_only_the_layers_that_were_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[tuple[int, ...]] = []
    sample = Signals._sample

    def counted(self: Signals, tensor: Tensor, channels: int) -> Tensor:
        samples.append(tuple(tensor.shape))
        return sample(self, tensor, channels)

    monkeypatch.setattr(Signals, "_sample", counted)
    train(mlp(), probes=("output_std",), steps=1)
    assert len(samples) == 3
    samples.clear()
    train(mlp(), probes=("output_std",), steps=1, layers=["4"])
    assert samples == [(BATCH, OUT)]


def test_a_frozen_transformer_in_evaluation_mode_computes_the_same_bits() -> None:
    """A function mode keeps its layers from their fused kernels."""
    block = nn.TransformerEncoderLayer(IN, 2, 8, batch_first=True)
    body = nn.TransformerEncoder(block, 2).eval().requires_grad_(False)
    model = nn.Sequential(body, nn.Linear(IN, OUT))
    inputs = [(x.view(2, 4, IN), y.view(2, 4, OUT)) for x, y in map(batch, range(STEPS))]
    unwatched = copy.deepcopy(model)
    optimizer, its_twin = SGD(model[1].parameters(), lr=0.1), SGD(unwatched[1].parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "depthlab cannot read outputs")
        table = train(model, optimizer, inputs=lambda step: inputs[step])
    train(unwatched, its_twin, inputs=lambda step: inputs[step], watched=False)
    assert bits(model, optimizer) == bits(unwatched, its_twin)
    assert set(values(table, "grad_norm")) == {(step, "1") for step in range(STEPS)}
