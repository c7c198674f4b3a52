"""How weights start: the draws, each from the mean-field ensemble that `scales` tells."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from depthlab.config import ModelConfig
from depthlab.nets.blocks import Block
from depthlab.nets.ensemble import scales
from depthlab.nets.layers import STOCHASTIC, WeightLayer, gates, weight_layers
from depthlab.nets.recurrence import draw_cell, keep_state


def initialize(model: nn.Module, config: ModelConfig) -> None:
    """Draws all weights and biases anew from torch's default generator: from input to logits, then those of gates.

    What config says of branches and of the head is done to what was drawn: its weights times head_gain, its first bias
    plus head_bias. So is what it says of the gate that keeps a cell's state.
    """
    sigma_w, sigma_b = scales(config)
    draw = INITS[config.init]
    layers = [layer for _, layer in weight_layers(model)]
    for layer in layers:
        if isinstance(layer, nn.RNNCellBase):
            _draw_cell(layer, config)
        else:
            draw(layer, sigma_w, sigma_b)
    if config.branch == "fixup":
        _fixup(model, layers[-1])
    _offset(layers[-1], config)
    for _, gate in gates(model):  # last, so that the other weights are those of a net without gates
        draw(gate, sigma_w, sigma_b)
        if gate.bias is not None:
            nn.init.constant_(gate.bias, config.gate_bias)


def _draw_cell(cell: nn.RNNCellBase, config: ModelConfig) -> None:
    if config.init == "torch_default":
        cell.reset_parameters()
    else:
        draw_cell(cell, INITS[config.init], *scales(config))
    if config.forget_bias:
        keep_state(cell, config.forget_bias)


@torch.no_grad()
def _fixup(model: nn.Module, head: nn.Module) -> None:
    """Head and last layer of each of the L branches 0, the other weights in them times L^(-1/(2m - 2)), m = 2 layers.

    Zhang et al. 2019, section 3, rules 1 and 2. An update then changes what a branch gives by about 1/L.
    """
    blocks = [[layer for _, layer in weight_layers(module)] for module in model.modules() if isinstance(module, Block)]
    for first, _ in blocks:
        first.get_parameter("weight").mul_(len(blocks) ** -0.5)
    for layer in (head, *(last for _, last in blocks)):
        for parameter in layer.parameters():
            parameter.zero_()


@torch.no_grad()
def _offset(head: nn.Module, config: ModelConfig) -> None:
    assert isinstance(head, WeightLayer)
    head.weight.mul_(config.head_gain)
    if config.head_bias and head.bias is not None:  # 0 is not added, since -0 would become 0
        head.bias[0] += config.head_bias


@torch.no_grad()
def rescale(model: nn.Module, inputs: Tensor) -> None:
    """Divides the weight of every layer by the standard deviation of its output, from input to logits.

    Afterwards the outputs z of each weight layer have variance 1 over all examples, units and places of the batch:
    layer-sequential unit variance, LSUV (Mishkin & Matas 2016, algorithm 1), once the weights are orthogonal. Without
    biases z is linear in the layer's weight, so that one division is exact and one pass is enough for all layers.

    inputs: a batch of training data, (b, channels, size, size). Batch norm normalizes by this batch and keeps its
    running statistics; dropout, DropConnect and noise are off; gates of highways stay as they are. Raises ValueError on
    biases that are not 0, on a layer whose output is constant or not finite, and on a recurrent net.
    """
    twin = copy.deepcopy(model).train()
    for module in twin.modules():
        if isinstance(module, STOCHASTIC):
            module.eval()
    for (name, copied), (_, layer) in zip(weight_layers(twin), weight_layers(model), strict=True):
        if isinstance(layer, nn.RNNCellBase):
            raise ValueError(f"layer {name} passes a batch at every time step, and has no one output to rescale by")
        copied.register_forward_hook(_unit_variance(name, layer))
    twin(inputs)


def _unit_variance(name: str, layer: WeightLayer) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A hook that rescales `layer`, and hands on what it would then have given."""
    if layer.bias is not None and layer.bias.any():
        raise ValueError(f"layer {name} has biases, which rescaling its weight leaves too large; set them to 0 first")

    def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        std = output.double().std(correction=0).item()
        if not 0 < std < math.inf:
            raise ValueError(
                f"the outputs of layer {name} have standard deviation {std}, which cannot be brought to 1; "
                f"choose another batch or activation"
            )
        layer.weight.div_(std)
        return output / std

    return hook


def _torch_default(layer: WeightLayer, _sigma_w: float, _sigma_b: float) -> None:
    layer.reset_parameters()


def _xavier(layer: WeightLayer, sigma_w: float, sigma_b: float) -> None:
    nn.init.xavier_normal_(layer.weight, gain=sigma_w)
    _draw_bias(layer, sigma_b)


def _gaussian(layer: WeightLayer, sigma_w: float, sigma_b: float) -> None:
    """Weights N(0, sigma_w^2 / fan_in): with sigma_w = sqrt(2), He's."""
    nn.init.normal_(layer.weight, std=sigma_w / math.sqrt(layer.weight[0].numel()))
    _draw_bias(layer, sigma_b)


def _orthogonal(layer: WeightLayer, sigma_w: float, sigma_b: float) -> None:
    """W W^T = sigma_w^2 I, or W^T W for a layer that widens; W of a convolution as (out, in * 9): Saxe et al. 2014."""
    nn.init.orthogonal_(layer.weight, gain=sigma_w)
    _draw_bias(layer, sigma_b)


def _delta_orthogonal(layer: WeightLayer, sigma_w: float, sigma_b: float) -> None:
    """Zero but for the centre tap, which is orthogonal, as are linear layers: Xiao et al. 2018."""
    if isinstance(layer, nn.Linear):
        _orthogonal(layer, sigma_w, sigma_b)
        return
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[:, :, 1, 1] = nn.init.orthogonal_(torch.empty_like(layer.weight[:, :, 1, 1]), gain=sigma_w)
    _draw_bias(layer, sigma_b)


INITS: dict[str, Callable[[WeightLayer, float, float], None]] = {
    "torch_default": _torch_default,
    "xavier": _xavier,
    "he": _gaussian,
    "orthogonal": _orthogonal,
    "delta_orthogonal": _delta_orthogonal,
    "gaussian": _gaussian,
    "lsuv": _orthogonal,  # where there are no data; `rescale` adapts it to a batch
}


def _draw_bias(layer: WeightLayer, sigma_b: float) -> None:
    if layer.bias is not None:
        nn.init.normal_(layer.bias, std=sigma_b)
