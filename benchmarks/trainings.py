"""What is watched: nets, and their training on random images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from depthlab.config import ModelConfig
from depthlab.nets import build

BATCH, CLASSES = 128, 10
RESNET = partial(ModelConfig, family="cnn", width=16, norm="batch", skip="residual", bias=False)
GREY, COLOUR = (1, 28), (3, 32)  # channels and size of images
NETS = {
    "mlp-50x100": (ModelConfig(depth=50, width=100), GREY),
    "mlp-100x256": (ModelConfig(depth=100, width=256), GREY),
    "resnet-20": (RESNET(depth=20), COLOUR),
    "resnet-56": (RESNET(depth=56), COLOUR),
}
VANISHING = ModelConfig(depth=50, width=100, activation="sigmoid", init="torch_default")


def make(config: ModelConfig, images: tuple[int, int]) -> nn.Module:
    """The net of a configuration, for images (channels, size)."""
    channels, size = images
    return build(config, channels=channels, size=size, classes=CLASSES, seed=0)


class AddInPlace(nn.Module):
    """The end of torchvision's residual block in small: y = W x, y += x, relu(y)."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.linear = nn.Linear(units, units)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as x."""
        y = self.linear(x)
        y += x
        return torch.relu(y)


def small(*middle: nn.Module) -> nn.Module:
    """A classifier of grey images around one idiom that hooks are known to stumble over."""
    return nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 16), *middle, nn.Linear(16, CLASSES))


IDIOMS: dict[str, Callable[[], nn.Module]] = {
    "in-place relu": lambda: small(nn.ReLU(inplace=True)),
    "y += x": lambda: small(AddInPlace(16)),
    "batch norm": lambda: small(nn.BatchNorm1d(16), nn.ReLU()),
}


class Training:
    """A copy of a net, trained on one fixed random batch of images (channels, size)."""

    def __init__(self, model: nn.Module, images: tuple[int, int], device: torch.device) -> None:
        channels, size = images
        random_batch = torch.Generator().manual_seed(0)
        inputs = torch.randn(BATCH, channels, size, size, generator=random_batch)
        self.labels = torch.randint(CLASSES, (BATCH,), generator=random_batch).to(device)
        self.images = inputs.to(device, memory_format=torch.channels_last)
        self.model = copy.deepcopy(model).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9, fused=True)
        self.weights = [p for p in self.model.parameters() if p.ndim > 1]

    def wait(self) -> None:
        """Returns when the device has done all its work."""
        if self.images.device.type == "cuda":
            torch.cuda.synchronize(self.images.device)

    def update(
        self, gradients: Callable[[], object] = lambda: None, done: Callable[[Tensor], object] = lambda _: None
    ) -> None:
        """One update; `gradients` is called when they are there, and `done` with the loss at the end."""
        loss = F.cross_entropy(self.model(self.images), self.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        done(loss)


def vanishing(device: torch.device) -> Training:
    """A net whose first gradients are too small to be squared in float32."""
    return Training(make(VANISHING, GREY), GREY, device)
