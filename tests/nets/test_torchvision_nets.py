"""torchvision's models as networks: the same features as torchvision's own, and blocks that are copied and frozen."""

from __future__ import annotations

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from depthlab._torchvision import import_torchvision
from depthlab.config import ConfigError, ModelConfig, ProbesConfig, TrainConfig, stream_seed
from depthlab.nets import (
    TorchvisionNet,
    WeightsError,
    build,
    copied_parameters,
    copy_blocks,
    freeze,
    is_random,
    torchvision_models,
    weight_layers,
    weights_url,
)
from depthlab.nets.torchvision_models import torchvision_net
from depthlab.nets.torchvision_nets import with_channels
from depthlab.training import train

MODELS = import_torchvision().models
ARCHITECTURES = MODELS.list_models(module=MODELS)
NO_HEAD = ("squeezenet1_0", "squeezenet1_1")
LARGE = [
    pytest.param("densenet121", 64, marks=pytest.mark.slow),
    pytest.param("vgg11_bn", 64, marks=pytest.mark.slow),
    pytest.param("vit_b_16", 64, marks=pytest.mark.slow),
]


def net(
    architecture: str = "shufflenet_v2_x0_5",
    *,
    channels: int = 3,
    size: int = 32,
    image_size: int | None = None,
    head: str = "linear",
    seed: int = 0,
) -> TorchvisionNet:
    config = ModelConfig(family="torchvision", architecture=architecture, image_size=image_size)
    found = build(config, channels=channels, size=size, classes=5, seed=seed, head=head)
    assert isinstance(found, TorchvisionNet)
    return found


def own(architecture: str = "shufflenet_v2_x0_5", seed: int = 3, **settings: int) -> nn.Module:
    """torchvision's own model of 1000 classes, whose batch norms have seen images, so that its features tell them."""
    torch.manual_seed(seed)
    model: nn.Module = MODELS.get_model(architecture, weights=None, **settings)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # means over all batches, which are one
    if norms:
        with torch.no_grad():
            model.train()(torch.randn(8, 3, 64, 64))
    return model


def small_vit() -> nn.Module:
    torch.manual_seed(0)
    vit: nn.Module = MODELS.VisionTransformer(32, 16, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=16)
    return vit


def images(channels: int, size: int, count: int = 3) -> Tensor:
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def features(model: nn.Module, batch: Tensor) -> Tensor:
    """What enters the head, in evaluation mode."""
    last = model.get_submodule([name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)][-1])
    seen: list[Tensor] = []
    handle = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model.eval()(batch)
    handle.remove()
    return seen[0]


def entries(model: TorchvisionNet, names: tuple[str, ...]) -> set[str]:
    return {name for name in model.state_dict() if any(f"{name}.".startswith(f"{part}.") for part in names)}


class TestFeatures:
    """In float64, with weights that are copied out of torchvision's own model."""

    @staticmethod
    def pair(architecture: str, channels: int, size: int, image_size: int | None = None) -> tuple[nn.Module, nn.Module]:
        of_vit = {"image_size": image_size or size} if architecture.startswith("vit") else {}
        theirs = own(architecture, **of_vit).double()
        ours = net(architecture, channels=channels, size=size, image_size=image_size).double()
        copy_blocks(ours, theirs.state_dict(), len(ours.block_names()))
        return ours, theirs

    @pytest.mark.parametrize(("architecture", "size"), [("resnet18", 28), ("mobilenet_v3_small", 32), *LARGE])
    def test_they_are_those_of_torchvisions_own_model(self, architecture: str, size: int) -> None:
        ours, theirs = self.pair(architecture, 3, size)
        batch = images(3, size).double()
        expected = features(theirs, batch)
        assert expected.std(dim=0).mean() > 1e-2 * expected.std()
        torch.testing.assert_close(features(ours, batch), expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize(("architecture", "size"), [("resnet18", 28), ("mobilenet_v3_small", 32), *LARGE])
    def test_of_gray_pictures_they_are_those_of_three_equal_channels(self, architecture: str, size: int) -> None:
        ours, theirs = self.pair(architecture, 1, size)
        batch = images(1, size).double()
        expected = features(theirs, batch.expand(-1, 3, -1, -1))
        assert expected.std(dim=0).mean() > 1e-2 * expected.std()
        torch.testing.assert_close(features(ours, batch), expected, rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize(("architecture", "size"), [("resnet18", 48), ("mobilenet_v3_small", 20), *LARGE])
    def test_of_resized_pictures_they_are_those_of_torchvisions_resizing(self, architecture: str, size: int) -> None:
        from torchvision.transforms import v2

        ours, theirs = self.pair(architecture, 3, 28, image_size=size)
        batch = images(3, 28).double()
        expected = features(theirs, v2.functional.resize(batch, [size, size], antialias=True))
        assert expected.std(dim=0).mean() > 1e-2 * expected.std()
        torch.testing.assert_close(features(ours, batch), expected, rtol=1e-6, atol=1e-9)

    def test_the_head_is_linear_on_them(self) -> None:
        ours = net()
        batch = images(3, 32)
        found = features(ours, batch)
        with torch.no_grad():
            expected = F.linear(found, ours.get_parameter("fc.linear.weight"), ours.get_parameter("fc.linear.bias"))
            assert torch.equal(ours(batch), expected)

    def test_a_head_of_two_layers_has_a_relu_between(self) -> None:
        head = net(head="mlp").get_submodule("fc")
        found = torch.randn(4, 1024, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            hidden = F.linear(found, head.get_parameter("hidden.weight"), head.get_parameter("hidden.bias")).clamp(
                min=0
            )
            expected = F.linear(hidden, head.get_parameter("linear.weight"), head.get_parameter("linear.bias"))
            assert torch.equal(head(found), expected)


class TestBlocks:
    def test_resnet18_has_a_stem_and_eight_blocks(self) -> None:
        assert net("resnet18").block_names() == [
            ("conv1", "bn1", "relu", "maxpool"),
            *((f"layer{stage}.{block}",) for stage in (1, 2, 3) for block in (0, 1)),
            ("layer4.0",),
            ("layer4.1", "avgpool"),
        ]

    def test_loose_parameters_of_vit_belong_to_the_stem(self) -> None:
        model = TorchvisionNet.of(small_vit(), channels=3, size=32, classes=5, head="linear")
        stem, *blocks = model.block_names()
        assert stem == ("class_token", "encoder.pos_embedding", "conv_proj", "encoder.dropout")
        assert [names[0] for names in blocks] == [f"encoder.layers.encoder_layer_{index}" for index in range(3)]
        assert blocks[-1][1:] == ("encoder.ln",)
        assert [
            name for name, each in model.named_parameters() if id(each) in map(id, copied_parameters(model, 1))
        ] == [*("class_token", "conv_proj.weight", "conv_proj.bias", "encoder.pos_embedding")]
        freeze(model, 1)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == {"class_token", "encoder.pos_embedding", "conv_proj.weight", "conv_proj.bias"}
        assert {id(each) for each in copied_parameters(model, 1)} == set()
        slow = [id(each) for each in copied_parameters(model, 2)]
        assert slow == [id(each) for each in model.get_submodule(blocks[0][0]).parameters()]

    def test_frozen_blocks_stay_in_evaluation_mode(self) -> None:
        model = net("resnet18")
        freeze(model, 3)
        model.train()
        modes = {name: module.training for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)}
        assert {name for name, training in modes.items() if not training} == {
            *("bn1", "layer1.0.bn1", "layer1.0.bn2", "layer1.1.bn1", "layer1.1.bn2")
        }
        assert all(not parameter.requires_grad for parameter in model.get_submodule("layer1").parameters())
        assert all(parameter.requires_grad for parameter in model.get_submodule("layer2").parameters())

    def test_the_first_are_copied_and_no_others(self) -> None:
        model, theirs = net("resnet18"), own("resnet18").state_dict()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        copy_blocks(model, theirs, 4)
        wanted = {name for names in model.block_names()[:4] for name in entries(model, names)}
        for name, value in model.state_dict().items():
            assert torch.equal(value, theirs[name] if name in wanted else before[name]), name
        assert "layer2.0.bn1.running_var" in wanted


@pytest.fixture
def without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters are shapes alone, so that the largest models are made at once."""
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        register(self, name, None if parameter is None else nn.Parameter(parameter.detach().to("meta")))

    monkeypatch.setattr(nn.Module, "register_parameter", on_meta)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name not in NO_HEAD])
def test_every_architecture_can_be_taken_apart(architecture: str, without_memory: None) -> None:
    """Every weight and buffer is in one block, or in the head, and each block has weights."""
    (size,) = MODELS.get_model_weights(architecture).DEFAULT.transforms().crop_size
    config = ModelConfig(family="torchvision", architecture=architecture, image_size=size)
    model = torchvision_net(config, channels=1, size=28, classes=7, head="mlp")
    blocks = [entries(model, names) for names in model.block_names()]
    *names, _, _, _, _ = state = model.state_dict()
    assert sorted(name for block in blocks for name in block) == sorted(names)
    assert [name.split(".")[-2:] for name in list(state)[-4:]] == [
        *(["hidden", "weight"], ["hidden", "bias"], ["linear", "weight"], ["linear", "bias"])
    ]
    matrices = {name for name, parameter in model.named_parameters() if parameter.dim() > 1}
    assert len(blocks) > 4
    assert all(block & matrices for block in blocks)
    shapes = {name: value.to("meta") for name, value in state.items()}
    images = torch.zeros(2, 1, 28, 28, device="meta")
    assert torch.func.functional_call(model.eval(), shapes, (images,)).shape == (2, 7)


@pytest.mark.parametrize("architecture", NO_HEAD)
def test_a_model_without_a_linear_head_is_refused(architecture: str) -> None:
    for size in (8, 32):  # whether it takes the size or not
        with pytest.raises(ConfigError, match=r"cannot be used: its last layer with weights is Conv2d, not Linear"):
            net(architecture, size=size)


class TestDrawing:
    def test_weights_are_those_that_torchvision_draws_from_the_stream_of_the_seed(self) -> None:
        before = torch.random.get_rng_state()
        model = net(seed=2)
        assert torch.equal(torch.random.get_rng_state(), before)
        torch.manual_seed(stream_seed(2, "init"))
        theirs = MODELS.shufflenet_v2_x0_5(weights=None).state_dict()
        ours = model.state_dict()
        assert all(torch.equal(theirs[name], value) for name, value in ours.items() if not name.startswith("fc."))
        assert not torch.equal(net(seed=3).state_dict()["conv1.0.weight"], ours["conv1.0.weight"])

    def test_neither_head_nor_classes_change_the_blocks(self) -> None:
        one, two = net().state_dict(), net(head="mlp").state_dict()
        assert all(torch.equal(two[name], value) for name, value in one.items() if not name.startswith("fc."))
        assert [name for name in two if name.startswith("fc.")] == [
            *("fc.hidden.weight", "fc.hidden.bias", "fc.linear.weight", "fc.linear.bias")
        ]
        assert two["fc.hidden.weight"].shape == (1024, 1024)

    def test_auxiliary_classifiers_are_not_made(self) -> None:
        model = net("googlenet")
        assert not any("aux" in name.lower() for name, _ in model.named_modules())
        whole = MODELS.googlenet(weights=None, init_weights=False, aux_logits=True).state_dict()
        assert "aux1.conv.conv.weight" in whole
        copy_blocks(model, whole, len(model.block_names()))
        assert torch.equal(
            model.state_dict()["inception5b.branch1.conv.weight"], whole["inception5b.branch1.conv.weight"]
        )


class TestChannels:
    def test_one_is_the_sum(self) -> None:
        kernel = torch.randn(4, 3, 5, 5)
        assert torch.equal(with_channels(kernel, 1)[:, 0], kernel.sum(dim=1))
        assert with_channels(kernel, 3) is kernel

    @pytest.mark.parametrize(("inputs", "channels"), [(1, 3), (3, 6), (3, 9)])
    def test_a_picture_that_is_the_same_in_all_gives_the_same(self, inputs: int, channels: int) -> None:
        kernel, picture = torch.randn(4, inputs, 5, 5).double(), torch.randn(2, 1, 9, 9).double()
        one = F.conv2d(picture.expand(-1, inputs, -1, -1), kernel)
        torch.testing.assert_close(F.conv2d(picture.expand(-1, channels, -1, -1), with_channels(kernel, channels)), one)

    def test_two_or_four_go_through_the_inputs_and_are_scaled(self) -> None:
        kernel = torch.randn(4, 3, 5, 5)
        assert torch.equal(with_channels(kernel, 2), kernel[:, :2] * 1.5)
        assert torch.equal(with_channels(kernel, 4), kernel[:, [0, 1, 2, 0]] * 0.75)

    @pytest.mark.parametrize("channels", [1, 2, 4])
    def test_a_net_takes_them(self, channels: int) -> None:
        model = net(channels=channels)
        assert model(images(channels, 32)).shape == (3, 5)
        assert model.conv1[0].in_channels == channels
        copy_blocks(model, net(channels=1, seed=1).state_dict(), 1)


class TestSizes:
    @pytest.mark.parametrize(
        ("architecture", "size", "image_size", "message"),
        [
            ("vgg11", 28, None, r"does not take images of 28 pixels \(.*too small\); set .* to 224, .*, or to 32$"),
            ("vgg11", 32, 16, r"does not take images of 16 pixels"),
            ("vit_b_16", 28, None, r"does not take images of 28 pixels .* to 224, for which it was made, or to 112$"),
            ("inception_v3", 8, None, r"of 8 pixels .* to 299, for which it was made, or to 75$"),
        ],
    )
    def test_an_image_that_is_too_small_is_told_which_size_to_choose(
        self, architecture: str, size: int, image_size: int | None, message: str
    ) -> None:
        with pytest.raises(ConfigError, match=message) as caught:
            net(architecture, size=size, image_size=image_size)
        assert "\n" not in str(caught.value)

    def test_the_size_that_is_told_is_the_least(self) -> None:
        net("alexnet", size=63)
        with pytest.raises(ConfigError, match=r"or to 63$"):
            net("alexnet", size=62)


class TestNames:
    def test_an_unknown_architecture_has_a_near_one(self) -> None:
        with pytest.raises(ConfigError, match=r"model\.architecture=resnet81 is no classification .* mean resnet18\?$"):
            net("resnet81")
        with pytest.raises(ConfigError, match=r"is no classification model of torchvision"):
            net("fasterrcnn_resnet50_fpn")

    def test_a_torchvision_that_cannot_be_had_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail() -> None:
            raise ImportError("the installed torchvision does not fit torch")

        monkeypatch.setattr(torchvision_models, "import_torchvision", fail)
        with pytest.raises(ConfigError, match="cannot be had: the installed torchvision does not fit torch"):
            net()

    def test_weights_have_an_address_or_a_near_name(self) -> None:
        assert re.fullmatch(r"https://.*/resnet18-[0-9a-f]{8}\.pth", weights_url("resnet18", "IMAGENET1K_V1"))
        with pytest.raises(ConfigError, match=r"must be one of IMAGENET1K_V1, .* mean IMAGENET1K_V1\?$"):
            weights_url("resnet18", "IMAGENET1K_V3")
        with pytest.raises(ConfigError, match=r"did you mean resnet18\?"):
            weights_url("resnet81", "IMAGENET1K_V1")

    def test_all_weights_of_torchvision_tell_their_checksum(self) -> None:
        from depthlab.data.pretrained import checksum

        for name in ARCHITECTURES:
            for weights in MODELS.get_model_weights(name):
                assert len(checksum(weights_url(name, weights.name).rpartition("/")[2])) >= 8


class TestFiles:
    def test_old_names_of_vit_are_those_that_torchvision_renames(self) -> None:
        vit = small_vit()
        old = {re.sub(r"mlp\.0\.", "mlp.linear_1.", name): value + 1 for name, value in vit.state_dict().items()}
        old = {re.sub(r"mlp\.3\.", "mlp.linear_2.", name): value for name, value in old.items()}
        assert not set(old) <= set(vit.state_dict())
        ours = TorchvisionNet.of(small_vit(), channels=3, size=32, classes=5, head="linear")
        copy_blocks(ours, old, 4)
        vit.load_state_dict(old)
        found = ours.state_dict()
        assert all(torch.equal(found[name], value) for name, value in vit.state_dict().items() if "heads" not in name)

    def test_old_names_of_densenet_are_those_that_torchvision_renames(self) -> None:
        def dense(seed: int) -> nn.Module:
            torch.manual_seed(seed)
            found: nn.Module = MODELS.DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=8)
            return found

        theirs = dense(1).state_dict()
        old = {
            re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", name): value for name, value in theirs.items()
        }
        assert "features.denseblock1.denselayer1.norm.1.weight" in old
        ours = TorchvisionNet.of(dense(0), channels=3, size=64, classes=5, head="linear")
        copy_blocks(ours, old, len(ours.block_names()))
        found = ours.state_dict()
        assert all(torch.equal(found[name], value) for name, value in theirs.items() if "classifier" not in name)

    def test_counts_of_batches_that_old_files_lack_are_0(self) -> None:
        old = {name: value for name, value in own().state_dict().items() if "num_batches" not in name}
        model = net()
        copy_blocks(model, old, len(model.block_names()))
        assert int(model.state_dict()["conv1.1.num_batches_tracked"]) == 0

    def test_what_is_filled_up_with_nan_is_missing(self) -> None:
        theirs = own().state_dict()
        theirs["conv5.0.weight"].fill_(torch.nan)
        model = net()
        with pytest.raises(WeightsError, match=r"only the network to be trained has conv5\.0\.weight; .* copy less"):
            copy_blocks(model, theirs, len(model.block_names()))
        copy_blocks(model, theirs, len(model.block_names()) - 1)

    def test_another_architecture_is_refused_and_the_net_left_as_it_was(self) -> None:
        model = net("resnet18")
        before = {name: value.clone() for name, value in model.state_dict().items()}
        wider = {**before, "layer1.0.conv1.weight": torch.zeros(128, 64, 3, 3)}
        no_kernel = {**before, "conv1.weight": torch.zeros(64)}
        for other, message in (
            (own("resnet34").state_dict(), r"only the source has layer1\.2\.bn1\.bias; give both the same model"),
            (
                own("vgg11", num_classes=2).state_dict(),
                r"only the source has classifier\.0\.bias; give both the same model\.architecture",
            ),
            (
                no_kernel,
                r"conv1\.weight is \[64\] in the source and \[64, 3, 7, 7\] here",
            ),
            (
                wider,
                r"the same model\.architecture and the model\.image_size of the source, 224 where that is torchvision$",
            ),
        ):
            with pytest.raises(WeightsError, match=message):
                copy_blocks(model, other, 9)
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_embedding_of_other_positions_tells_the_size_to_choose() -> None:
    def vit(size: int) -> TorchvisionNet:
        model = MODELS.VisionTransformer(size, 16, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16)
        return TorchvisionNet.of(model, channels=3, size=size, classes=5, head="linear")

    with pytest.raises(
        WeightsError, match=r"encoder\.pos_embedding is \[1, 5, 8\] .* \[1, 10, 8\] here; .*image_size of"
    ):
        copy_blocks(vit(48), vit(32).state_dict(), 3)


def updates(model: nn.Module, *, every: int, start: int = 0, steps: int = 2) -> list[Tensor]:
    """Losses of updates by plain gradient descent."""
    batch = (images(3, 32, 6), torch.arange(6) % 5)
    return [
        update.loss
        for update in train(
            model,
            weight_layers(model),
            [batch] * steps,  # type: ignore[arg-type]
            TrainConfig(steps=steps, batch_size=6, momentum=0.0, lr=0.01),
            ProbesConfig(every=every, names=ProbesConfig().names if every == 1 else ()),
            seed=0,
            start=start,
        )
    ]


@pytest.mark.parametrize("architecture", ["resnet18", "mobilenet_v3_small"])
def test_measuring_is_invisible(architecture: str) -> None:
    """Also where activations overwrite what they are given."""
    measured, alone = net(architecture), net(architecture)
    assert torch.equal(torch.stack(updates(measured, every=1)), torch.stack(updates(alone, every=0)))
    other = alone.state_dict()
    assert all(torch.equal(value, other[name]) for name, value in measured.state_dict().items())


def test_its_layers_are_read_under_torchvisions_names() -> None:
    model = net("resnet18")
    layers = weight_layers(model)
    assert [name for name, _ in layers][:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert len(layers) == 21
    batch = (images(3, 32, 6), torch.arange(6) % 5)
    names = ("grad_norm", "backward_norm", "update_ratio", "activation_std", "dead_fraction")
    (update,) = train(
        model,
        layers,
        [batch],  # type: ignore[arg-type]
        TrainConfig(steps=1, batch_size=6),
        ProbesConfig(names=names),
        seed=0,
    )
    read = {probe: {row.layer for row in update.rows if row.probe == probe} for probe in names}
    assert read["grad_norm"] == read["backward_norm"] == read["update_ratio"] == {name for name, _ in layers}
    assert {"conv1", "layer1.0.conv1", "layer4.1.conv2"} <= read["dead_fraction"]
    assert all(row.value > 0 for row in update.rows if row.probe in ("grad_norm", "backward_norm"))


def test_paths_that_are_dropped_are_functions_of_seed_and_step() -> None:
    """ConvNeXt draws nothing but the paths that it drops, by a module that is torchvision's own."""
    torch.manual_seed(0)
    setting = MODELS.convnext.CNBlockConfig
    layers = [setting(8, 16, 2), setting(16, None, 2)]

    def small() -> TorchvisionNet:
        torch.manual_seed(0)
        model = MODELS.ConvNeXt(layers, stochastic_depth_prob=0.5, layer_scale=1.0)
        return TorchvisionNet.of(model, channels=3, size=32, classes=5, head="linear")

    assert is_random(small())
    assert not is_random(build(ModelConfig(depth=3), channels=1, size=8, classes=5, seed=0))
    model, again = small(), small()
    torch.manual_seed(1)
    whole = updates(model, every=0)
    torch.manual_seed(2)
    first = updates(again, every=0, steps=1)
    torch.manual_seed(3)
    second = updates(again, every=0, start=1)
    assert torch.equal(torch.stack(whole), torch.stack([*first, *second]))
    torch.manual_seed(4)
    one, two = again.train()(images(3, 32)), again(images(3, 32))
    assert not torch.equal(one, two)
