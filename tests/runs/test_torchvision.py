"""Runs of torchvision's models: from weights of torchvision, of a file and of another run, and stopped on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import shutil
import socket
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from depthlab import nets
from depthlab._torchvision import import_torchvision
from depthlab.config import ConfigError, DataConfig, ModelConfig, ProbesConfig, RunConfig, TrainConfig, TransferConfig
from depthlab.data import DataError
from depthlab.nets import WeightsError
from depthlab.runs import Run, Status, StoreError, execute, weights
from depthlab.runs.interrupts import Stop, Stopped
from depthlab.runs.trial import Trial

CPU = torch.device("cpu")
ARCHITECTURE = "shufflenet_v2_x0_5"
WEIGHTS = "torchvision:IMAGENET1K_V1"
SETTINGS = ("data.name:synthetic", "train.steps:2", "train.batch_size:20", "probes.every:0")


def run_of(*source: str, **transfer: Any) -> RunConfig:
    """Five updates on digits, which are gray and of 8 pixels."""
    return RunConfig(
        data=DataConfig(name="digits", train_size=60),
        model=ModelConfig(family="torchvision", architecture=ARCHITECTURE, image_size=16),
        train=TrainConfig(steps=5, batch_size=20, eval_every=3, weight_decay=0.1, optimizer="adamw", lr=0.003),
        probes=ProbesConfig(every=2, names=("grad_norm", "activation_std")),
        transfer=TransferConfig(source=source, **transfer),
    )


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as torchvision has them: of three channels, 1000 classes, and a name that tells its checksum."""
    torch.manual_seed(0)
    models = import_torchvision().models
    model = models.get_model(ARCHITECTURE, weights=None)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 64))
    path = tmp_path_factory.mktemp("mirror") / "part"
    torch.save(model.state_dict(), path)
    return path.rename(path.with_name(f"shufflenetv2_x0.5-{hashlib.sha256(path.read_bytes()).hexdigest()[:10]}.pth"))


@pytest.fixture
def served(file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same where torchvision's weights are downloaded from."""
    monkeypatch.setattr(nets, "weights_url", lambda architecture, name: f"file://{file}")
    return file


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)


def given(path: Path) -> list[str]:
    return [f"file:{path}", f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"]


def loaded(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)
    return state


def last_weights(config: RunConfig) -> dict[str, Tensor]:
    execute(config, device=CPU, keep_weights=True)
    found = weights.kept(Run.of(config))
    assert found is not None
    return dict(found.state)


def test_weights_of_torchvision_are_downloaded_and_what_is_frozen_stays_as_it_is_to_the_bit(
    served: Path, tmp_path: Path
) -> None:
    """Buffers too, with weight decay and momentum at work on all the others; gray pictures see the sum over colours."""
    config = run_of(WEIGHTS, trained=2, head="mlp")
    after, source = last_weights(config), loaded(served)
    source["conv1.0.weight"] = source["conv1.0.weight"].sum(dim=1, keepdim=True)
    blocks = Trial(config, CPU).model.block_names()
    frozen = {part for names in blocks[:-2] for part in names}
    for name, value in after.items():
        is_frozen = any(f"{name}.".startswith(f"{part}.") for part in frozen)
        assert not name.startswith("fc.") or not is_frozen
        if name in source:
            assert torch.equal(value, source[name]) == is_frozen, name
    assert after["conv5.1.num_batches_tracked"] == source["conv5.1.num_batches_tracked"] + 5
    assert (tmp_path / "data" / "torchvision" / served.name).read_bytes() == served.read_bytes()
    told = {"origin": f"torchvision {ARCHITECTURE} IMAGENET1K_V1", "sha256": given(served)[1].partition(":")[2]}
    assert Run.of(config).record()["source"] == told


def test_a_factor_slows_the_copied_blocks_and_no_others(served: Path) -> None:
    config = run_of(WEIGHTS, copied=4, backbone_lr_factor=0.1)
    trial = Trial(config, CPU, weights=weights.of_torchvision(ARCHITECTURE, "IMAGENET1K_V1"))
    slow, others = trial.optimizer.param_groups
    names = {id(parameter): name for name, parameter in trial.model.named_parameters()}
    first = {part for block in trial.model.block_names()[:4] for part in block}
    assert len(slow["params"]) + len(others["params"]) == len(names)
    for group, is_copied in ((slow, True), (others, False)):
        for parameter in group["params"]:
            assert any(f"{names[id(parameter)]}.".startswith(f"{part}.") for part in first) == is_copied
    for _ in trial._updates():
        assert slow["lr"] == pytest.approx(0.1 * others["lr"], rel=1e-12)


def test_a_file_with_torchvisions_state_gives_the_same_to_the_bit(served: Path) -> None:
    by_name = execute(run_of(WEIGHTS), device=CPU).readings()
    by_file = execute(run_of(*given(served)), device=CPU).readings()
    pd.testing.assert_frame_equal(by_name, by_file, check_exact=True)
    scratch = execute(run_of(), device=CPU).readings()
    assert not by_name["value"].equals(scratch["value"])


def test_files_of_torchs_first_format_are_read(file: Path, tmp_path: Path) -> None:
    """As many of torchvision's are, with parameters instead of tensors, and without batch norm's counts."""
    state = OrderedDict(
        (name, torch.nn.Parameter(value) if "weight" in name else value)
        for name, value in loaded(file).items()
        if not name.endswith("num_batches_tracked")
    )
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old, new = (
        Trial(run_of(), CPU, weights=weights.in_file(path, given(path)[1].partition(":")[2]))
        for path in (tmp_path / "old.pth", file)
    )
    others = new.model.state_dict()
    for name, value in old.model.state_dict().items():
        assert torch.equal(value, others[name]) or name.endswith("num_batches_tracked"), name


def test_it_is_read_at_torchvisions_own_layers(served: Path) -> None:
    readings = execute(run_of(WEIGHTS), device=CPU).readings()
    layers = set(readings.loc[readings["probe"] == "grad_norm", "layer"])
    assert {"conv1.0", "stage2.0.branch1.0", "conv5.0", "fc.linear"} <= layers
    assert readings.loc[readings["layer"] == "fc.linear", "depth"].eq(len(layers)).all()


def test_evaluation_needs_no_more_memory_than_training() -> None:
    trial, seen = Trial(run_of(), CPU), list[int]()
    trial.model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    trial.evaluate(trial.splits.test.first(50))
    assert seen == [20, 20, 10]


def test_another_run_is_a_source_by_settings_and_by_key() -> None:
    """Trained on three channels, and with another number of classes than the target has images of."""
    target = run_of(*SETTINGS, trained=0)
    source = target.source()
    assert source is not None
    assert source.model == target.model
    after, before = last_weights(target), last_weights(source)
    assert after["conv1.0.weight"].shape[1] == 1
    assert torch.equal(after["conv1.0.weight"][:, 0], before["conv1.0.weight"].sum(dim=1))
    frozen = [name for name in before if not name.startswith(("fc.", "conv1.0"))]
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    by_key = execute(run_of(f"run:{source.key()}", trained=0), device=CPU).readings()
    pd.testing.assert_frame_equal(by_key, Run.of(target).readings(), check_exact=True)


def test_a_run_that_is_stopped_goes_on_to_the_same_bits(served: Path, tmp_path: Path) -> None:
    config = run_of(WEIGHTS, trained=5, backbone_lr_factor=0.5)
    expected = execute(config, root=tmp_path / "undisturbed", device=CPU).readings()
    stop = Stop()

    def progress(done: int, *_known: float | None) -> None:
        stop.asked = done == 2

    with pytest.raises(Stopped):
        execute(config, device=CPU, progress=progress, stop=stop, checkpoint_seconds=0)
    found = execute(config, device=CPU)
    assert found.record()["resumed_at_steps"] == [3]
    pd.testing.assert_frame_equal(found.readings(), expected, check_exact=True)


def test_what_a_net_knows_of_digits_helps_on_digits(tmp_path: Path) -> None:
    """Given as a file, and frozen: after five updates of a new head it beats one from scratch."""
    config = run_of()
    long = dataclasses.replace(
        config,
        data=DataConfig(name="digits"),
        train=TrainConfig(steps=60, batch_size=64, eval_every=60, optimizer="adamw", lr=0.01),
        probes=ProbesConfig(every=0, names=()),
    )
    torch.save(last_weights(long), tmp_path / "digits.pt")
    informed = execute(run_of(*given(tmp_path / "digits.pt"), trained=0), device=CPU)
    scratch, learned = execute(config, device=CPU), Run.of(long)
    errors = [run.record()["metrics"]["test_error"] for run in (learned, informed, scratch)]
    assert errors[0] < 0.4
    assert errors[1] < errors[2] - 0.4


class TestRefusals:
    def test_without_a_network_the_message_says_where_to_put_the_file(self, no_network: None, tmp_path: Path) -> None:
        with pytest.raises(
            DataError, match=r"shufflenetv2_x0\.5-\w+\.pth could not be downloaded .*\n.*copy the file to"
        ):
            execute(run_of(WEIGHTS), device=CPU)
        assert Run.of(run_of(WEIGHTS)).status() is Status.MISSING

    def test_a_damaged_file_is_told(self, served: Path, tmp_path: Path) -> None:
        place = tmp_path / "data" / "torchvision" / served.name
        place.parent.mkdir(parents=True)
        content = bytearray(served.read_bytes())
        content[5000] ^= 1
        place.write_bytes(content)
        with pytest.raises(DataError, match="is damaged or another file: its sha256 begins with"):
            execute(run_of(WEIGHTS), device=CPU)

    def test_a_file_that_would_execute_something_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sprung = tmp_path / "sprung"
        torch.save({"conv1.0.weight": Trap(sprung)}, tmp_path / "part")
        name = f"trap-{hashlib.sha256((tmp_path / 'part').read_bytes()).hexdigest()[:8]}.pth"
        monkeypatch.setattr(nets, "weights_url", lambda *_: f"https://nowhere.invalid/{name}")
        (tmp_path / "data" / "torchvision").mkdir(parents=True)
        shutil.copyfile(tmp_path / "part", tmp_path / "data" / "torchvision" / name)
        with pytest.raises(StoreError, match="without executing what is in it"):
            execute(run_of(WEIGHTS), device=CPU)
        assert not sprung.exists()

    def test_names_that_torchvision_does_not_know_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"must be one of IMAGENET1K_V1, the weights that torchvision has for"):
            execute(run_of("torchvision:IMAGENET1K_V9"), device=CPU)
        unknown = dataclasses.replace(run_of(), model=ModelConfig(family="torchvision", architecture="resnet81"))
        with pytest.raises(ConfigError, match="did you mean resnet18"):
            execute(unknown, device=CPU)

    def test_weights_of_another_architecture_are_refused(self, file: Path) -> None:
        config = run_of(*given(file))
        other = dataclasses.replace(config, model=dataclasses.replace(config.model, architecture="shufflenet_v2_x1_0"))
        with pytest.raises(
            WeightsError, match=r"is \[.*\] in the source and \[.*\] here; give both the same model\.arch"
        ):
            execute(other, device=CPU)

    def test_blocks_that_are_not_there_are_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"transfer\.copied=50 is more than the \d+ blocks that the network has"):
            execute(run_of(copied=50, trained=0), device=CPU)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)
