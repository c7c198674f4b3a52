"""Which models and weights torchvision has, and making a model for images of a size that it takes."""

from __future__ import annotations

import inspect
import typing
from types import ModuleType
from typing import Any

import torch
from torch import nn

from depthlab._torchvision import import_torchvision
from depthlab.config import ConfigError, ModelConfig, suggest
from depthlab.nets.torchvision_nets import TorchvisionNet

LARGEST = 1024
"""Pixels a side up to which a size is looked for that a model takes."""

REFUSALS = (RuntimeError, ValueError, AssertionError)
"""What torchvision's models raise on images of a size that they do not take."""

ARGUMENTS = {"aux_logits": False, "init_weights": True}
"""What is given to models that take it: no auxiliary classifiers, which train other blocks than the loss is about, and
the initial weights of the model's paper, which some would ask about by a warning."""


def torchvision_net(config: ModelConfig, *, channels: int, size: int, classes: int, head: str) -> TorchvisionNet:
    """The model config.architecture, drawn by torchvision from torch's default generator.

    ConfigError if torchvision has no such model, if it has no linear head, or if it takes no images of the size.
    """
    name, pixels = config.architecture, config.image_size or size
    check_architecture(name)
    try:
        net = TorchvisionNet.of(_made(name, pixels), channels=channels, size=pixels, classes=classes, head=head)
        _try(net, channels, pixels)
    except TypeError as error:
        raise ConfigError(
            f"model.architecture={name} cannot be used: {error}; choose another, such as resnet18"
        ) from error
    except REFUSALS as error:
        raise ConfigError(_advice(name, pixels, error)) from error
    net.has_shapes_of += f", {_trained_size(name)} where that is torchvision"
    return net


def weights_url(architecture: str, weights: str) -> str:
    """The address of weights that torchvision has for an architecture, such as IMAGENET1K_V1; ConfigError if none."""
    check_architecture(architecture)
    known = {each.name: each.url for each in _models().get_model_weights(architecture)}
    if weights not in known:
        raise ConfigError(
            f"transfer.source=[torchvision:{weights}] must be one of {', '.join(known)}, the weights that torchvision "
            f"has for model.architecture={architecture}{suggest(weights, list(known))}"
        )
    return str(known[weights])


def _models() -> ModuleType:
    try:
        models: ModuleType = import_torchvision().models
    except ImportError as error:
        raise ConfigError(f"model.family=torchvision cannot be had: {error}") from None
    return models


def check_architecture(architecture: str) -> None:
    """Raises ConfigError, with a near name, unless it is a classification model of torchvision's."""
    models = _models()
    known = models.list_models(module=models)
    if architecture not in known:
        raise ConfigError(
            f"model.architecture={architecture} is no classification model of torchvision, which has "
            f"{len(known)}, such as resnet18, densenet121 and vit_b_16{suggest(architecture, known)}"
        )


def _made(name: str, size: int) -> nn.Module:
    """The model without weights of torchvision's, for images of a size, where that is part of the model."""
    build = _models().get_model_builder(name)
    kind = typing.get_type_hints(build)["return"]
    values: dict[str, Any] = {**ARGUMENTS, "image_size": size, "input_size": (size, size)}
    taken = inspect.signature(kind).parameters
    model: nn.Module = build(weights=None, **{each: value for each, value in values.items() if each in taken})
    return model


def _try(model: nn.Module, channels: int, size: int) -> None:
    """Passes images of a size through the model's shapes alone, in evaluation mode. Raises what the model raises."""
    shapes = {name: value.to("meta") for name, value in model.state_dict().items()}
    model.eval()
    with torch.no_grad():
        torch.func.functional_call(model, shapes, (torch.zeros(2, channels, size, size, device="meta"),))
    model.train()


def _advice(name: str, size: int, error: Exception) -> str:
    least = _least_size(name, size)
    reason = str(error).strip().splitlines()[-1].rstrip(".!")
    if least is None:
        return f"model.architecture={name} cannot be used with images of {size} pixels: {reason}; choose another"
    return (
        f"model.architecture={name} does not take images of {size} pixels ({reason}); set model.image_size, to "
        f"which they are then resized, to {_trained_size(name)}, for which it was made, or to {least}"
    )


def _trained_size(name: str) -> int:
    """Pixels a side of the images that torchvision's weights were trained for, of which there may be others."""
    (size,) = _models().get_model_weights(name).DEFAULT.transforms().crop_size
    return int(size)


def _least_size(name: str, size: int) -> int | None:
    """A larger size that the model takes and than which the next smaller one is too small; None: not found."""
    refused, taken = size, 2 * size
    while not _takes(name, taken):
        refused, taken = taken, 2 * taken
        if taken > LARGEST:
            return None
    while taken - refused > 1:
        middle = (refused + taken) // 2
        refused, taken = (refused, middle) if _takes(name, middle) else (middle, taken)
    return taken


def _takes(name: str, size: int) -> bool:
    try:
        with torch.device("meta"):
            _try(_made(name, size), 3, size)
    except REFUSALS:
        return False
    return True
