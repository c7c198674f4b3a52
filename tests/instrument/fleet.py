"""Networks as others write them, each with its weight layers written down, and a plain training for all of them."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules import module as torch_module
from torch.optim import Optimizer

from depthlab._torchvision import import_torchvision
from depthlab.instrument import Watcher

models = import_torchvision().models

CLASSES = 10
BATCH = 3
WEIGHTS = (nn.Linear, nn.Embedding, nn.modules.conv._ConvNd)


class UNet(nn.Module):
    """Two scales with skip concatenations; what is used last is registered first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(4, CLASSES, 1)
        self.last = UNet.block(8, 4)
        self.up_to_last = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.middle = UNet.block(16, 8)
        self.up_to_middle = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.bottleneck = UNet.block(8, 16)
        self.second = UNet.block(4, 8)
        self.first = UNet.block(3, 4)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        second = self.second(F.max_pool2d(first, 2))
        lowest = self.bottleneck(F.max_pool2d(second, 2))
        middle = self.middle(torch.cat([self.up_to_middle(lowest), second], 1))
        last = self.last(torch.cat([self.up_to_last(middle), first], 1))
        return self.head(last).mean((2, 3))


class Translator(nn.Module):
    """Encoder and decoder with dropout, over two embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(20, 8)
        self.target = nn.Embedding(20, 8)
        self.body = nn.Transformer(8, 2, 2, 1, 16, dropout=0.2, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.body(self.source(source), self.target(target))).mean(1)


class Tagger(nn.Module):
    """Two LSTM layers with dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6)
        self.lstm = nn.LSTM(6, 8, num_layers=2, dropout=0.3, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, words: Tensor) -> Tensor:
        found, _ = self.lstm(self.embedding(words))
        return self.head(found[:, -1])


def small_vit() -> nn.Module:
    """The class of vit_b_16, two layers."""
    sizes = {"image_size": 32, "patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 24}
    return models.VisionTransformer(**sizes, dropout=0.1, attention_dropout=0.1, num_classes=CLASSES)


def vit_b_16() -> nn.Module:
    """Four patches and the class token."""
    return models.vit_b_16(image_size=32, num_classes=CLASSES)


def small_swin() -> nn.Module:
    """The class of swin_t, two stages."""
    sizes = {"patch_size": [4, 4], "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": [2, 2]}
    return models.SwinTransformer(**sizes, dropout=0.1, stochastic_depth_prob=0.2, num_classes=CLASSES)


def images(generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(BATCH, 3, 32, 32, generator=generator),)


def one_image(generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(1, 3, 32, 32, generator=generator),)


def medium_images(generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(BATCH, 3, 24, 24, generator=generator),)


def small_images(generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randn(BATCH, 3, 8, 8, generator=generator),)


def words(generator: torch.Generator) -> tuple[Tensor, ...]:
    return (torch.randint(20, (BATCH, 5), generator=generator),)


def two_texts(generator: torch.Generator) -> tuple[Tensor, ...]:
    return torch.randint(20, (BATCH, 5), generator=generator), torch.randint(20, (BATCH, 4), generator=generator)


@dataclass(frozen=True)
class Member:
    """A network: how to build it, what it is fed, and its weight layers in the order in which data flows."""

    build: Callable[[], nn.Module]
    inputs: Callable[[torch.Generator], tuple[Tensor, ...]]
    layers: Callable[[nn.Module], list[str]]
    without_output: tuple[str, ...] = ()
    """Ends of the names of layers that share an operation with a later one."""


def as_registered(model: nn.Module) -> list[str]:
    """Names of modules that own a weight, and of attention's, in the order of registration."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            found.append(f"{name}.in_proj_weight")
        elif isinstance(module, WEIGHTS):
            found.append(name)
    return found


def named(words: str) -> list[str]:
    return words.split()


def googlenet_layers(model: nn.Module) -> list[str]:
    """The auxiliary heads are registered last, and stand in the middle."""
    names = as_registered(model)
    order = []
    for stage in named(
        "conv inception3 inception4a aux1 inception4b inception4c inception4d aux2 inception4e inception5 fc"
    ):
        order += [name for name in names if name.startswith(stage)]
    assert sorted(order) == sorted(names)
    return order


RESNET18 = named("""conv1
layer1.0.conv1 layer1.0.conv2 layer1.1.conv1 layer1.1.conv2
layer2.0.conv1 layer2.0.conv2 layer2.0.downsample.0 layer2.1.conv1 layer2.1.conv2
layer3.0.conv1 layer3.0.conv2 layer3.0.downsample.0 layer3.1.conv1 layer3.1.conv2
layer4.0.conv1 layer4.0.conv2 layer4.0.downsample.0 layer4.1.conv1 layer4.1.conv2
fc""")

UNET = named("first.0 second.0 bottleneck.0 up_to_middle middle.0 up_to_last last.0 head")

TAGGER = named("embedding lstm.weight_ih_l0 lstm.weight_hh_l0 lstm.weight_ih_l1 lstm.weight_hh_l1 head")

TRANSLATOR = named("""source target
body.encoder.layers.0.self_attn.in_proj_weight body.encoder.layers.0.self_attn.out_proj
body.encoder.layers.0.linear1 body.encoder.layers.0.linear2
body.encoder.layers.1.self_attn.in_proj_weight body.encoder.layers.1.self_attn.out_proj
body.encoder.layers.1.linear1 body.encoder.layers.1.linear2
body.decoder.layers.0.self_attn.in_proj_weight body.decoder.layers.0.self_attn.out_proj
body.decoder.layers.0.multihead_attn.in_proj_weight body.decoder.layers.0.multihead_attn.out_proj
body.decoder.layers.0.linear1 body.decoder.layers.0.linear2
head""")

IN_PROJECTION = ("in_proj_weight",)

FLEET = {
    "resnet18": Member(lambda: models.resnet18(num_classes=CLASSES), images, lambda _: RESNET18),
    "googlenet": Member(
        lambda: models.googlenet(num_classes=CLASSES, aux_logits=True, init_weights=False), images, googlenet_layers
    ),
    "mobilenet_v3_small": Member(lambda: models.mobilenet_v3_small(num_classes=CLASSES), images, as_registered),
    "small vit": Member(small_vit, images, as_registered, IN_PROJECTION),
    "small swin": Member(small_swin, images, as_registered),
    "swin_t": Member(lambda: models.swin_t(num_classes=CLASSES), medium_images, as_registered),
    "translator": Member(Translator, two_texts, lambda _: TRANSLATOR, IN_PROJECTION),
    "tagger": Member(Tagger, words, lambda _: TAGGER, ("ih_l0", "hh_l0", "ih_l1")),
    "unet": Member(UNet, small_images, lambda _: UNET),
    "vgg11_bn": Member(lambda: models.vgg11_bn(num_classes=CLASSES, init_weights=False), one_image, as_registered),
    "vit_b_16": Member(vit_b_16, images, as_registered, IN_PROJECTION),
}
SMALL = ("small vit", "small swin", "translator", "tagger", "unet")
"""Those for which even ranks are cheap."""


def build(name: str) -> nn.Module:
    """A member with some units that are dead, and with no weights that are zero (as the heads of torchvision's are)."""
    torch.manual_seed(1)
    model = FLEET[name].build()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, -2, 1)
        elif isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.1)
    return model


def batch(name: str, step: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """Inputs and targets of a step; -1 for the evaluations."""
    generator = torch.Generator().manual_seed(100 + step)
    inputs = FLEET[name].inputs(generator)
    return inputs, torch.randint(CLASSES, (len(inputs[0]),), generator=generator)


def loss_of(outputs: Any, targets: Tensor) -> Tensor:
    """Cross-entropy; that of GoogLeNet's three heads is added."""
    if isinstance(outputs, Tensor):
        return F.cross_entropy(outputs, targets)
    return sum((F.cross_entropy(head, targets) for head in outputs), torch.zeros(()))


def optimizer_of(model: nn.Module) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.002, momentum=0.9, weight_decay=1e-3)


@dataclass
class Training:
    """What a training leaves, of which nothing may depend on whether it was watched."""

    losses: list[float] = field(default_factory=list)
    bits: dict[str, str] = field(default_factory=dict)
    """Digests of parameters, gradients, buffers, optimizer state, evaluations and random state, by name."""

    def note(self, name: str, tensor: Tensor) -> None:
        entries = tensor.detach().contiguous().flatten().view(torch.uint8) if tensor.numel() else tensor
        self.bits[name] = hashlib.blake2b(entries.numpy().data).hexdigest()

    def note_all(self, model: nn.Module, optimizer: Optimizer) -> None:
        for name, parameter in model.named_parameters():
            self.note(name, parameter)
            if parameter.grad is not None:
                self.note(f"gradient of {name}", parameter.grad)
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    self.note(f"{key} of {name}", value)
        for name, buffer in model.named_buffers():
            self.note(name, buffer)
        self.note("random state", torch.get_rng_state())


def train(
    name: str,
    watch: Callable[[nn.Module, Optimizer], Watcher] | None = None,
    *,
    steps: int = 4,
    before_update: Callable[[int, nn.Module], None] = lambda step, model: None,
    passing: Callable[[int, nn.Module], AbstractContextManager[Any]] = lambda step, model: nullcontext(),
) -> tuple[Training, Watcher | None]:
    """Trains a member of the fleet, with an evaluation after each step."""
    model = build(name)
    optimizer = optimizer_of(model)
    training = Training()
    torch.manual_seed(2)
    with watch(model, optimizer) if watch else nullcontext() as watcher:
        for step in range(steps):
            inputs, targets = batch(name, step)
            optimizer.zero_grad()
            with passing(step, model):
                loss = loss_of(model(*inputs), targets)
                loss.backward()
            before_update(step, model)
            optimizer.step()
            if watcher:
                watcher.step(loss)
            training.losses.append(loss.item())
            training.note(f"evaluation {step}", evaluate(name, model))
        training.note_all(model, optimizer)
    return training, watcher


def evaluate(name: str, model: nn.Module) -> Tensor:
    model.eval()
    with torch.no_grad():
        outputs = model(*batch(name, -1)[0])
    model.train()
    return outputs


def hooks_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Everything that code may be attached to: hooks of modules, tensors and the optimizer, torch's own, and modes."""
    found: dict[str, Any] = {"modes": torch._C._len_torch_function_stack()}
    found["dispatch modes"] = torch._C._len_torch_dispatch_stack()
    owners = {"torch": torch_module, "optimizer": optimizer, **dict(model.named_modules())}
    for owner, thing in owners.items():
        found[f"attributes of {owner}"] = sorted(vars(thing))
        for key, value in vars(thing).items():
            if "hook" in key and isinstance(value, dict):
                found[f"{owner} {key}"] = list(value.items())
    for name, parameter in model.named_parameters():
        found[f"hooks of {name}"] = [copy.copy(parameter._backward_hooks), parameter._post_accumulate_grad_hooks]
    return found


@contextmanager
def patched(functions: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]) -> Iterator[None]:
    """Functions of torch.nn.functional, each wrapped in one's own."""
    originals = {name: getattr(F, name) for name in functions}
    for name, wrap in functions.items():
        setattr(F, name, wrap(originals[name]))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(F, name, original)


def small_mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def halves(step: int) -> list[tuple[Tensor, Tensor]]:
    """The batches of two processes, and both together."""
    generator = torch.Generator().manual_seed(step)
    x, y = torch.randn(8, 4, generator=generator), torch.randn(8, 3, generator=generator)
    return [(x[:4], y[:4]), (x[4:], y[4:]), (x, y)]


def train_distributed(rank: int, folder: Path) -> None:
    """One of two processes that train together; leaves its readings in a file of its number."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model = nn.parallel.DistributedDataParallel(small_mlp())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Watcher(model, optimizer, every=1, budget=None) as watcher:
        for step in range(2):
            x, y = halves(step)[rank]
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            watcher.step(loss)
        watcher.save(folder / f"{rank}.parquet")
    torch.distributed.destroy_process_group()
