"""Optimisers as configured, and schedules against their closed forms."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from depthlab.config import OPTIMIZERS, SCHEDULES, TrainConfig
from depthlab.training import build_optimizer, learning_rate, set_learning_rate


def rates(**config: Any) -> list[float]:
    settings = TrainConfig(**config)
    return [learning_rate(settings, step) for step in range(settings.steps)]


class TestSchedules:
    def test_constant(self) -> None:
        assert rates(steps=5, lr=0.3) == [0.3] * 5

    def test_step_falls_when_each_part_is_over(self) -> None:
        found = rates(steps=8, lr=1.0, schedule="step", milestones=(0.5, 0.75), lr_decay=0.1)
        assert found == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01], rel=1e-12)

    def test_step_is_he_et_al(self) -> None:
        """He et al. 2015, section 4.2: 64k iterations, divided by 10 at 32k and 48k."""
        config = TrainConfig(steps=64_000, lr=0.1, schedule="step")
        marks = {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
        assert {step: learning_rate(config, step) for step in marks} == pytest.approx(marks, rel=1e-12)

    def test_cosine(self) -> None:
        found = rates(steps=100, lr=0.4, schedule="cosine")
        assert found == pytest.approx([0.4 * math.cos(math.pi * step / 200) ** 2 for step in range(100)], rel=1e-12)
        assert found[0] == 0.4
        assert found[50] == pytest.approx(0.2, rel=1e-12)
        assert found == sorted(found, reverse=True)
        assert learning_rate(TrainConfig(steps=100, lr=0.4, schedule="cosine"), 100) == pytest.approx(0, abs=1e-15)
        # each pair about the middle adds up to the peak
        assert [a + b for a, b in zip(found[1:], found[:0:-1], strict=True)] == pytest.approx([0.4] * 99, rel=1e-12)

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_warm_up_reaches_the_peak_with_its_last_step(self, schedule: str) -> None:
        found = rates(steps=50, lr=0.8, schedule=schedule, warmup_steps=4, milestones=(0.5,))
        assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8], rel=1e-12)
        assert max(found) == 0.8

    def test_warm_up_does_not_move_milestones_but_squeezes_the_cosine(self) -> None:
        step = rates(steps=20, lr=1.0, schedule="step", warmup_steps=8, milestones=(0.5,))
        assert step[8:] == pytest.approx([1, 1] + [0.1] * 10)
        cosine = rates(steps=20, lr=1.0, schedule="cosine", warmup_steps=8)
        assert cosine[8:] == pytest.approx(rates(steps=12, lr=1.0, schedule="cosine"), rel=1e-12)

    def test_one_step(self) -> None:
        assert rates(steps=1, lr=0.3) == rates(steps=1, lr=0.3, schedule="cosine") == [0.3]


class TestOptimizers:
    def build(self, **config: Any) -> tuple[nn.Linear, torch.optim.Optimizer]:
        model = nn.Linear(2, 2)
        return model, build_optimizer(model, TrainConfig(**config))

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_all_parameters_in_one_fused_group(self, name: str) -> None:
        model, optimizer = self.build(optimizer=name, lr=0.3, weight_decay=0.1)
        (group,) = optimizer.param_groups
        assert group["params"] == list(model.parameters())
        assert (group["fused"], group["lr"], group["weight_decay"]) == (True, 0.3, 0.1)

    def test_momentum_is_the_first_beta(self) -> None:
        for name in ("adam", "adamw"):
            assert self.build(optimizer=name, momentum=0.7)[1].param_groups[0]["betas"] == (0.7, 0.999)
        assert self.build(momentum=0.7, nesterov=True)[1].param_groups[0]["momentum"] == 0.7

    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            # gradient 1 at each of two steps from w = 2 with lr 0.1
            ({"momentum": 0.0}, 2 - 0.1 - 0.1),
            ({"momentum": 0.5}, 2 - 0.1 - 0.15),
            ({"momentum": 0.5, "nesterov": True}, 2 - 0.15 - 0.175),
            ({"momentum": 0.0, "weight_decay": 0.5}, 1.8 - 0.1 * (1 + 0.9)),
            # Adam's steps on a constant gradient are lr; decoupled decay multiplies by 1 - lr decay before each
            ({"optimizer": "adam"}, 2 - 0.1 - 0.1),
            ({"optimizer": "adam", "weight_decay": 0.5}, 1.8000669),
            ({"optimizer": "adamw", "weight_decay": 0.5}, (2 * 0.95 - 0.1) * 0.95 - 0.1),
        ],
    )
    def test_two_steps_by_hand(self, config: dict[str, Any], expected: float) -> None:
        model, optimizer = self.build(lr=0.1, **config)
        with torch.no_grad():
            model.weight.fill_(2.0)
        for _ in range(2):
            model.weight.grad = torch.ones(2, 2)
            optimizer.step()
        assert model.weight.tolist() == [pytest.approx([expected] * 2, rel=1e-5)] * 2

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_updates_are_those_of_torch_s_own_class_to_the_bit(self, name: str) -> None:
        """Hooks are called, as the watcher's are, and what is saved is the same."""
        config = TrainConfig(optimizer=name, lr=0.1, weight_decay=0.1)
        whole = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[name]
        trained, called = [], []
        for is_torch_s in (False, True):
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
            optimizer = build_optimizer(model, config)
            if is_torch_s:
                (group,) = optimizer.param_groups
                optimizer = whole(model.parameters(), **{key: group[key] for key in group if key in KNOWN[name]})
            optimizer.register_step_post_hook(lambda *_: called.append(1))
            for _ in range(3):
                optimizer.zero_grad()
                model(torch.ones(5, 3)).square().sum().backward()
                optimizer.step()
            trained.append((list(model.parameters()), optimizer.state_dict()))
        (ours, state), (theirs, expected) = trained
        assert isinstance(optimizer, whole)
        assert len(called) == 6
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
        assert state["param_groups"] == expected["param_groups"]
        assert [list(each) for each in state["state"].values()] == [list(each) for each in expected["state"].values()]

    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_no_update_is_recorded_for_gradients(self, name: str) -> None:
        kernels = []

        class Watched(TorchFunctionMode):
            def __torch_function__(
                self, function: Any, _types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
            ) -> Any:
                if "fused" in function.__name__:
                    kernels.append(torch.is_grad_enabled())
                return function(*args, **(kwargs or {}))

        model, optimizer = self.build(optimizer=name)
        model.weight.sum().backward()
        with Watched():
            optimizer.step()
        assert kernels == [False]
        assert torch.is_grad_enabled()

    def test_none_imports_torch_s_compiler(self) -> None:
        """Of a process that trains a small net for seconds that is one."""
        program = (
            "import sys\nfrom torch import nn\nfrom depthlab.config import OPTIMIZERS, TrainConfig\n"
            "from depthlab.training import build_optimizer\nmodel = nn.Linear(2, 2)\nfor name in OPTIMIZERS:\n"
            "    optimizer = build_optimizer(model, TrainConfig(optimizer=name))\n    optimizer.zero_grad()\n"
            "    model.weight.sum().backward()\n    optimizer.step()\n"
            "    optimizer.load_state_dict(optimizer.state_dict())\nprint('torch._dynamo' in sys.modules)"
        )
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        assert ended.stdout == "False\n"


KNOWN = {
    "sgd": {"lr", "momentum", "nesterov", "weight_decay", "fused"},
    **{name: {"lr", "betas", "weight_decay", "fused"} for name in ("adam", "adamw")},
}
"""What depthlab sets of each optimiser."""


class TestSlowGroups:
    @pytest.mark.parametrize("name", OPTIMIZERS)
    def test_an_update_of_the_slow_ones_is_one_at_their_own_rate(self, name: str) -> None:
        """Against nets that are trained whole at either rate: an update depends on gradient and rate alone."""

        def trained(factor: float, lr: float) -> list[torch.Tensor]:
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
            config = TrainConfig(optimizer=name, lr=lr, schedule="cosine", weight_decay=0.1, steps=3)
            optimizer = build_optimizer(model, config, list(model[0].parameters()), factor)
            set_learning_rate(optimizer, config, 1)
            model(torch.ones(5, 3)).square().sum().backward()
            optimizer.step()
            return [parameter.detach() for parameter in model.parameters()]

        mixed, slow, fast = trained(0.25, 0.5), trained(1, 0.125), trained(1, 0.5)
        assert all(torch.equal(*pair) for pair in zip(mixed[:2], slow[:2], strict=True))
        assert all(torch.equal(*pair) for pair in zip(mixed[2:], fast[2:], strict=True))
        assert not torch.equal(mixed[0], fast[0])

    def test_what_needs_no_gradient_is_in_no_group(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        model[0].requires_grad_(False)
        for slow, factor in (([], 1.0), ([model[1].bias], 0.1)):
            groups = build_optimizer(model, TrainConfig(), slow, factor).param_groups
            held = {id(parameter) for group in groups for parameter in group["params"]}
            assert held == {id(parameter) for parameter in model[1].parameters()}

    def test_without_slow_ones_there_is_one_group_as_ever(self) -> None:
        (group,) = build_optimizer(nn.Linear(3, 4), TrainConfig()).param_groups
        assert "lr_factor" not in group
