"""Blocks that are taken over and blocks that are frozen: to the bit, and nothing else."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from depthlab.config import SKIPS, ModelConfig
from depthlab.nets import Net, WeightsError, build, copied_parameters, copy_blocks, freeze, weight_layers


def net(seed: int = 0, *, channels: int = 1, head: str = "linear", **config: object) -> Net:
    settings = {"depth": 6, "width": 8, "norm": "batch", "dropout": 0.5} | config
    return build(ModelConfig(**settings), channels=channels, size=8, classes=3, seed=seed, head=head)  # type: ignore[arg-type]


def taken(target: Net, source: Net) -> set[str]:
    """First parts of the names of entries that are equal in both and were not all along."""
    own, other, untouched = target.state_dict(), source.state_dict(), net(0).state_dict()
    changed = {name for name in own if not torch.equal(own[name], untouched[name])}
    assert all(torch.equal(own[name], other[name]) for name in changed)
    return {".".join(name.split(".")[: 2 if name.startswith("blocks") else 1]) for name in changed}


def trained_source() -> Net:
    """Of another seed, and with running statistics that are not those of the beginning."""
    source = net(1)
    for name, buffer in source.named_buffers():
        if "running" in name:
            buffer.add_(0.5)
    return source


@pytest.mark.parametrize("count", range(1, 6))
def test_the_first_blocks_are_copied_and_no_others(count: int) -> None:
    target, source = net(0), trained_source()
    copy_blocks(target, source.state_dict(), count)
    assert taken(target, source) == {"stem", "blocks.0", "blocks.1", "blocks.2", "blocks.3"} - {
        f"blocks.{index}" for index in range(count - 1, 4)
    }


def test_buffers_are_copied_too() -> None:
    target, source = net(0), trained_source()
    copy_blocks(target, source.state_dict(), 2)
    assert torch.equal(target.state_dict()["stem.norm.running_mean"], torch.full((8,), 0.5))


def test_what_is_copied_is_the_target_s_own() -> None:
    target, source = net(0), net(1)
    copy_blocks(target, source.state_dict(), 2)
    with torch.no_grad():
        target.stem.get_parameter("linear.weight").zero_()
    assert source.stem.get_parameter("linear.weight").abs().sum() > 0


@pytest.mark.parametrize(
    ("source", "count", "message"),
    [
        (net(1, width=16), 1, r"stem\.linear\.weight is \[16, 64\] in the source and \[8, 64\] here"),
        (net(1, channels=3), 1, r"stem\.linear\.weight is \[8, 192\] in the source and \[8, 64\] here"),
        (net(1, norm="none"), 1, r"only the network to be trained has stem\.norm"),
        (net(1, norm="batch", bias=True, depth=4), 5, r"only the network to be trained has blocks\.2"),
        (net(1, skip="residual"), 2, r"only .* has blocks\.0"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(source: Net, count: int, message: str) -> None:
    target = net(0)
    with pytest.raises(WeightsError, match=message):
        copy_blocks(target, source.state_dict(), count)
    assert taken(target, source) == set()


def test_what_the_source_has_beyond_the_network_is_not_left_out() -> None:
    """Without its norm a block would compute something else than it does in the source."""
    target = net(0, norm="none")
    before = {name: value.clone() for name, value in target.state_dict().items()}
    with pytest.raises(WeightsError, match=r"only the source has stem\.norm"):
        copy_blocks(target, net(1).state_dict(), 1)
    assert all(torch.equal(value, before[name]) for name, value in target.state_dict().items())


def test_the_eleventh_block_is_not_taken_for_the_second() -> None:
    target, source = net(0, depth=14), net(1, depth=14)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    copy_blocks(target, source.state_dict(), 3)
    after = target.state_dict()
    changed = {name.rpartition(".linear.weight")[0] for name in after if not torch.equal(after[name], before[name])}
    assert changed - {""} == {"stem", "blocks.0", "blocks.1"}


@pytest.mark.parametrize("skip", SKIPS)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_frozen_blocks_have_no_gradients_and_stay_in_evaluation(skip: str, count: int) -> None:
    model = net(0, skip=skip)
    freeze(model, count)
    for mode in (True, False, True):
        model.train(mode)
        blocks: list[nn.Module] = [model.stem, *model.blocks]
        for index, block in enumerate(blocks):
            assert {module.training for module in block.modules()} == {mode and index >= count}
            assert {parameter.requires_grad for parameter in block.parameters()} == {index >= count}
        assert {module.training for module in model.head.modules()} == {mode}


def test_frozen_features_do_not_depend_on_the_rest_of_the_batch() -> None:
    """Batch norm that normalized by the batch, or dropout, would tell."""
    model = net(0).train()
    freeze(model, 5)
    images = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def features(batch: Tensor) -> Tensor:
        found: Tensor = model.blocks(model.stem(batch))
        return found

    assert torch.allclose(features(images)[:2], features(images[:2]), atol=1e-6)


def test_copied_parameters_are_those_of_the_first_blocks_that_are_trained() -> None:
    model = net(0)
    freeze(model, 2)
    found = copied_parameters(model, 3)
    assert [id(each) for each in found] == [id(each) for each in model.blocks[1].parameters()]
    assert copied_parameters(model, 2) == []


def test_a_head_of_two_layers_is_drawn_behind_the_same_blocks() -> None:
    one, two = net(0), net(0, head="mlp")
    names = [name for name, _ in weight_layers(two)]
    assert names[-2:] == ["head.hidden", "head.linear"]
    assert [type(module) for module in two.head] == [nn.Linear, nn.ReLU, nn.Linear]
    blocks = {name: value for name, value in one.state_dict().items() if not name.startswith("head")}
    assert all(torch.equal(two.state_dict()[name], value) for name, value in blocks.items())
    sizes = [layer.weight.shape for _, layer in weight_layers(two)]
    assert all(after[1] == before[0] for before, after in pairwise(sizes))
    assert two(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
