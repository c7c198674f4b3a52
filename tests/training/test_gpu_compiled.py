"""On a GPU a compiled training replays CUDA graphs: its losses are kept, and are those of the plain one."""

from __future__ import annotations

from typing import Any

import psutil
import pytest
import torch

from depthlab.config import DataConfig, ModelConfig, ProbesConfig, TrainConfig
from depthlab.data import Batches, Images
from depthlab.nets import build, weight_layers
from depthlab.training import check_compiler, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

STEPS = 40


def losses(*, compiled: bool, **model: Any) -> list[float]:
    """All of them are fetched at the end, as a run fetches them in blocks."""
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randint(256, (96, 1, 8, 8), generator=generator, dtype=torch.uint8)
    images = Images(pixels.cuda(), torch.randint(10, (96,), generator=generator).cuda())
    mean, std = torch.tensor([0.5]).cuda(), torch.tensor([0.29]).cuda()
    batches = Batches(images, DataConfig(), batch_size=16, seed=0, mean=mean, std=std)
    settings = ModelConfig(**{"depth": 6, "width": 12, **model})
    net = build(settings, channels=1, size=8, classes=10, seed=1).cuda()
    config = TrainConfig(steps=STEPS, batch_size=16, lr=0.01, compile=compiled)
    updates = list(train(net, weight_layers(net), batches, config, ProbesConfig(every=10), seed=0))
    return [update.loss.item() for update in updates]


def test_a_gpu_with_triton_can_compile() -> None:
    check_compiler(torch.device("cuda"))


@pytest.mark.parametrize(
    "model", [{"norm": "batch"}, {"family": "cnn", "depth": 8, "norm": "batch", "skip": "residual"}]
)
def test_losses_are_those_of_the_plain_training(model: dict[str, Any]) -> None:
    found, expected = (losses(compiled=compiled, **model) for compiled in (True, False))
    assert found[:10] == pytest.approx(expected[:10], rel=1e-3)
    assert found == pytest.approx(expected, rel=5e-2)
    assert len(set(found)) == STEPS


def test_no_process_is_left_behind() -> None:
    before = set(psutil.Process().children(recursive=True))
    losses(compiled=True, width=11)
    assert set(psutil.Process().children(recursive=True)) <= before


def test_dropout_is_a_function_of_seed_and_step() -> None:
    first, second = (losses(compiled=True, dropout=0.3) for _ in range(2))
    assert first == second
    assert len(set(first)) == STEPS
