"""torchvision's classification models as networks: their blocks, their head, and images of any size and channels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthlab._torchvision import import_torchvision
from depthlab.nets.layers import STOCHASTIC, chain
from depthlab.nets.network import Network, WeightsError

OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\."), r"\1\2."),
    (re.compile(r"\.mlp\.linear_1\."), ".mlp.0."),
    (re.compile(r"\.mlp\.linear_2\."), ".mlp.3."),
)
"""What layers of DenseNet and of ViT are called in files that are older than torchvision's present code."""


class TorchvisionNet(Network):
    """Images (b, channels, size, size) -> logits (b, classes): torchvision's own model, forward pass and all.

    An instance is of the model's own class as well, so that its layers have torchvision's names; it is kept as a state
    dict, not pickled whole. Three things differ.

    Head: the model's last layer, which is linear, has become `linear`, or `hidden` (as wide as the features), relu and
    `linear`, under the name that it had: fc.linear.weight. They are drawn as torch draws linear layers.

    Channels: the kernel of the first convolution fits the images (see `with_channels`).

    Size: images are resized to config.image_size, bilinearly and with antialiasing, before the first layer.

    Blocks are counted in the order in which layers are registered, and sequences of layers are opened: a block begins
    where something holds a weight of two dimensions or more, and what has none, such as a norm or pooling, belongs to
    the block before. Parameters that are in no layer (ViT's class token and position embedding) belong to the stem.

    Images come normalized by mean and standard deviation of the data's own training part. Weights of torchvision were
    trained on images that are normalized by ImageNet's: the same for data that have its statistics, else a shift and a
    scale of each channel, which blocks that are trained on, or the first batch norm in training, take up.

    Of an attention, `weight_layers` has the output projection alone: the others are one parameter that is no layer.
    """

    has_shapes_of = "the same model.architecture and the model.image_size of the source"
    _blocks: list[tuple[str, ...]]
    _head: str
    _kernel: str
    _size: int

    @classmethod
    def of(cls, model: nn.Module, *, channels: int, size: int, classes: int, head: str) -> TorchvisionNet:
        """The model of torchvision's, made a network in place. TypeError if its last layer is not linear."""
        _, first = next(_layers(model, nn.Conv2d))
        name, last = list(_layers(model, (nn.Conv2d, nn.Linear)))[-1]
        if not isinstance(last, nn.Linear):
            raise TypeError(f"its last layer with weights is {type(last).__name__}, not Linear: it has no head")
        blocks = list(_blocks(model, name))
        first.weight = nn.Parameter(with_channels(first.weight.detach(), channels))
        first.in_channels = channels
        model.set_submodule(name, _head(last.in_features, classes, head))
        # As torch.nn.utils.parametrize does: a class of the model's own and of ours, so that all names stay.
        kind = type(model)
        model.__class__ = type(kind.__name__, (cls, kind), {"__module__": cls.__module__})
        assert isinstance(model, TorchvisionNet)
        model._blocks, model._head, model._size = blocks, name, size
        model._kernel = next(f"{known}.weight" for known, layer in model.named_modules() if layer is first)
        return model

    def forward(self, images: Tensor) -> Tensor:
        """Logits (b, classes) of images (b, channels, h, w)."""
        size = (self._size, self._size)
        if images.shape[2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        logits: Tensor = super().forward(images)
        return logits

    def block_names(self) -> list[tuple[str, ...]]:
        """torchvision's names, as in model.named_modules()."""
        return self._blocks

    def adapted(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights of the same architecture, of torchvision's own or of a run: with as many channels, under new names.

        Batch norm's count of batches, which old files lack, is this net's own, as torch does it. What is not finite
        counts as missing: of some models torchvision has weights of the first blocks alone, and fills up with NaN.
        WeightsError if there are layers that this net has not, other than auxiliary classifiers.
        """
        own = self.state_dict()
        counts = {name: value for name, value in own.items() if name.endswith(".num_batches_tracked")}
        found = {**counts, **{_new_name(name): value for name, value in weights.items()}}
        if self._kernel in found and found[self._kernel].dim() == 4:
            found[self._kernel] = with_channels(found[self._kernel], own[self._kernel].shape[1])
        for name in sorted(set(found) - set(own)):
            if not name.startswith(f"{self._head}.") and not self._is_auxiliary(name):
                raise WeightsError(f"only the source has {name}; give both the same model.architecture")
        return {name: value for name, value in found.items() if bool(value.isfinite().all())}

    def _is_auxiliary(self, name: str) -> bool:
        """Whether a weight is of a classifier that torchvision's class knows, and this net was made without."""
        first = name.partition(".")[0]
        return hasattr(self, first) and getattr(self, first) is None


def is_random(model: nn.Module) -> bool:
    """Whether the forward pass in training may draw random numbers.

    torchvision's models count among those that do: some drop paths or weights of attention in ways of their own.
    """
    return any(isinstance(module, (*STOCHASTIC, TorchvisionNet)) for module in model.modules())


def with_channels(kernel: Tensor, channels: int) -> Tensor:
    """The kernel (outputs, inputs, h, w) of a convolution for images of so many channels, (outputs, channels, h, w).

    One channel: the sum over the inputs, which gives for a gray picture what the kernel gives for that picture in each
    channel. Else the inputs are gone through again and again, and scaled by inputs / channels: where there are more
    channels than inputs, a whole number of times more, a picture that is the same in all of them gives the same.
    """
    inputs = kernel.shape[1]
    if channels == inputs:
        return kernel
    if channels == 1:
        return kernel.sum(dim=1, keepdim=True)
    return kernel[:, torch.arange(channels) % inputs] * (inputs / channels)


def _layers(model: nn.Module, kinds: Any) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, kinds))


def _head(features: int, classes: int, kind: str) -> nn.Sequential:
    hidden: dict[str, nn.Module] = {}
    if kind == "mlp":
        hidden = {"hidden": nn.Linear(features, features), "hidden_activation": nn.ReLU()}
    return chain(**hidden, linear=nn.Linear(features, classes))


def _blocks(model: nn.Module, head: str) -> Iterator[tuple[str, ...]]:
    """Names of what each block holds, in the order of registration, without the head."""
    loose = [name for name, item in _items(model) if isinstance(item, nn.Parameter)]
    block, is_begun = loose, False
    for name, item in _items(model):
        if name == head or isinstance(item, nn.Parameter):
            continue
        if any(parameter.dim() > 1 for parameter in item.parameters()):
            if is_begun:
                yield tuple(block)
                block = []
            is_begun = True
        block.append(name)
    yield tuple(block)


def _items(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """What a module holds, sequences opened: modules that are none, and parameters that lie beside them."""
    for name, parameter in module.named_parameters(recurse=False):
        yield prefix + name, parameter
    for name, child in module.named_children():
        if isinstance(child, _sequences()):
            yield from _items(child, f"{prefix}{name}.")
        else:
            yield prefix + name, child


def _sequences() -> tuple[type[nn.Module], ...]:
    """Modules that pass data from one of their parts to the next: torch's, dense blocks, and two of torchvision's."""
    models = import_torchvision().models
    of_torchvision = models.vision_transformer.Encoder, models.maxvit.MaxVitBlock
    return (nn.Sequential, nn.ModuleList, nn.ModuleDict, *of_torchvision)


def _new_name(name: str) -> str:
    for old, new in OLD_NAMES:
        name = old.sub(new, name)
    return name
