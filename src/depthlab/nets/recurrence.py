"""Recurrent nets: a cell of torch's that reads an image row by row, and how its weights start."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from depthlab.config import ModelConfig

KEEPING_GATE = 1
"""Which of a cell's gates decides how much of the state stays: in torch's order lstm's forget gate (of input, forget,
cell, output) and gru's update gate (of reset, update, new) are both the second."""


class Rows(nn.Module):
    """Images (b, channels, size, size) -> their rows from top to bottom, (b, size, channels * size)."""

    def forward(self, images: Tensor) -> Tensor:
        """What a recurrent net reads, one row a time step."""
        return images.transpose(1, 2).flatten(2)


class Recurrence(nn.Module):
    """Rows (b, steps, inputs) -> the last state h_T (b, width) of a cell that begins with h_0 = 0.

    Each state h_t passes through a module of its own, `states.0` to `states.T-1`, which does nothing: a hook there sees
    the state, and a hook on that tensor the whole of dL/dh_t, from the next step and from the head. Of an lstm that is
    h alone; its c passes by.
    """

    def __init__(self, cell: nn.RNNCellBase, steps: int) -> None:
        super().__init__()
        self.cell = cell
        self.states = nn.ModuleList(nn.Identity() for _ in range(steps))

    def forward(self, rows: Tensor) -> Tensor:
        """(b, steps, inputs) -> (b, width)."""
        state, hidden = None, rows.new_empty(0)
        for row, passed in zip(rows.unbind(1), self.states, strict=True):
            found = self.cell(row, state)
            if isinstance(found, tuple):
                hidden = passed(found[0])
                state = hidden, found[1]
            else:
                state = hidden = passed(found)
        return hidden


CELLS: dict[str, Callable[[int, int, bool, str], nn.RNNCellBase]] = {
    "rnn": lambda inputs, width, bias, activation: nn.RNNCell(inputs, width, bias, nonlinearity=activation),
    "lstm": lambda inputs, width, bias, _: nn.LSTMCell(inputs, width, bias),
    "gru": lambda inputs, width, bias, _: nn.GRUCell(inputs, width, bias),
}
"""By config.cell: from inputs, width, whether there are biases, and the activation of a plain cell."""


def recurrence(config: ModelConfig, inputs: int, steps: int) -> Recurrence:
    """The recurrent layer that a configuration asks for, for rows of `inputs` numbers."""
    return Recurrence(CELLS[config.cell](inputs, config.width, config.bias, config.activation), steps)


def time_steps(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that the states of a recurrent net pass, step_1 to step_T from the first row; of other nets none.

    >>> from depthlab.nets import build
    >>> config = ModelConfig(family="rnn", depth=2, activation="tanh")
    >>> [name for name, _ in time_steps(build(config, channels=1, size=3, classes=10, seed=0))]
    ['step_1', 'step_2', 'step_3']
    """
    found = [state for module in model.modules() if isinstance(module, Recurrence) for state in module.states]
    return [(f"step_{step}", state) for step, state in enumerate(found, 1)]


def draw_cell(
    cell: nn.RNNCellBase, draw: Callable[[nn.Linear, float, float], None], sigma_w: float, sigma_b: float
) -> None:
    """Draws a cell's weights as those of linear layers, two for each gate: recurrent ones with the gain sigma_w.

    Those of the inputs have the gain 1, so that what they add to a state, the drive, is as large as the inputs are
    whatever the recurrent gain. Of the two biases that torch's cells have, the first is drawn and the second is 0.
    """
    for inputs, recurrent in zip(_gates(cell, "ih"), _gates(cell, "hh"), strict=True):
        draw(inputs, 1.0, sigma_b)
        draw(recurrent, sigma_w, 0.0)


@torch.no_grad()
def keep_state(cell: nn.RNNCellBase, forget_bias: float) -> None:
    """Adds a bias to the gate that keeps the state: of what c (of gru: h) holds, sigmoid(forget_bias) stays a step.

    Gers et al. 2000; Jozefowicz et al. 2015 advise 1; Tallec & Ollivier 2018, about ln of the longest memory wanted.
    """
    bias = cell.get_parameter("bias_ih").view(-1, cell.hidden_size)
    bias[KEEPING_GATE] += forget_bias


def _gates(cell: nn.RNNCellBase, kind: str) -> Iterator[nn.Linear]:
    """Each gate's part of a weight and its bias, as a linear layer that shares their memory."""
    width = cell.hidden_size
    weights = torch.split(cell.get_parameter(f"weight_{kind}").detach(), width)
    biases = torch.split(cell.get_parameter(f"bias_{kind}").detach(), width) if cell.bias else [None] * len(weights)
    for weight, bias in zip(weights, biases, strict=True):
        layer = nn.Linear(weight.shape[1], width, bias=bias is not None, device="meta")
        layer.weight = nn.Parameter(weight)
        if bias is not None:
            layer.bias = nn.Parameter(bias)
        yield layer
