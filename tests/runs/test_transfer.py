"""Runs that start from the weights of another: what is copied, frozen and kept, and who trains the source."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import shutil
import weakref
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from depthlab.config import DataConfig, RunConfig, SweepConfig, TransferConfig
from depthlab.runs import Run, Status, StoreError, cost, execute, load_readings, sweep, weights
from depthlab.runs.interrupts import Stop, Stopped
from depthlab.runs.trial import Trial

CPU = torch.device("cpu")
SOURCE = ("data.name:synthetic", "data.classes:[0,1,2,3]", "train.steps:5", "train.batch_size:20", "probes.every:0")


def transferring(config: RunConfig, *source: str, **settings: Any) -> RunConfig:
    return dataclasses.replace(config, transfer=TransferConfig(source=source or SOURCE, **settings))


def with_norm(config: RunConfig, **values: Any) -> RunConfig:
    return dataclasses.replace(config, model=dataclasses.replace(config.model, depth=5, norm="batch", **values))


def weights_of(config: RunConfig) -> dict[str, Tensor]:
    """The last weights of a run, which is trained for it if need be."""
    execute(config, device=CPU, keep_weights=True)
    found = weights.kept(Run.of(config))
    assert found is not None
    return dict(found.state)


def blocks_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> set[str]:
    """Blocks, and the head, of which every weight and buffer is equal to the bit."""
    names = {name: ".".join(name.split(".")[: 2 if name.startswith("blocks") else 1]) for name in one}
    differing = {names[name] for name in one if not torch.equal(one[name], other[name])}
    return set(names.values()) - differing


@pytest.mark.parametrize(
    ("optimizer", "l1_step"),
    [("sgd", "subgradient"), ("sgd", "proximal"), ("adam", "subgradient"), ("adamw", "subgradient")],
)
def test_frozen_blocks_end_as_they_were_in_the_source_to_the_bit(tiny: RunConfig, optimizer: str, l1_step: str) -> None:
    """Buffers too, with weight decay, momentum, an L1 penalty and clipping at work on all the others."""
    train = dataclasses.replace(
        tiny.train, optimizer=optimizer, weight_decay=0.1, l1=0.01, l1_step=l1_step, clip_norm=1.0
    )
    config = dataclasses.replace(with_norm(tiny, dropout=0.3), train=train)
    target = transferring(config, trained=1, copied=3)
    source = target.source()
    assert source is not None
    before, after = weights_of(source), weights_of(target)
    assert before["stem.norm.running_mean"].abs().sum() > 0
    before["head.linear.weight"], before["head.linear.bias"] = (
        after["head.linear.weight"] + 1,
        after["head.linear.bias"],
    )
    assert blocks_equal(before, after) == {"stem", "blocks.0"}


def test_a_transfer_starts_from_the_source_and_a_head_of_its_own(tiny: RunConfig) -> None:
    target = transferring(with_norm(tiny), copied=2)
    source = target.source()
    assert source is not None
    given = weights.Weights(weights_of(source), "", "")
    fresh, started = Trial(with_norm(tiny), CPU), Trial(target, CPU, weights=given)
    start = started.model.state_dict()
    assert blocks_equal(start, {**given.state, "head.linear.weight": torch.tensor(0)}) == {"stem", "blocks.0"}
    assert blocks_equal(start, fresh.model.state_dict()) == {"blocks.1", "blocks.2", "head"}


def test_the_weights_of_the_source_are_not_kept_in_memory_while_a_run_is_trained(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[weakref.ref[weights.Weights]] = []
    load, train = weights.kept, Trial.run

    def loaded(run: Run) -> weights.Weights | None:
        found = load(run)
        given.extend([] if found is None else [weakref.ref(found)])
        return found

    def trained(self: Trial) -> dict[str, Any]:
        assert [each() for each in given] == [None] * len(given)
        return train(self)

    execute(transferring(tiny), device=CPU)
    monkeypatch.setattr(weights, "kept", loaded)
    monkeypatch.setattr(Trial, "run", trained)
    execute(transferring(tiny, copied=1), device=CPU)
    assert len(given) == 1


def test_a_factor_slows_the_copied_blocks_and_no_others(tiny: RunConfig) -> None:
    trial = Trial(transferring(tiny, copied=1, backbone_lr_factor=0.1), CPU)
    slow, others = trial.optimizer.param_groups
    assert [id(each) for each in slow["params"]] == [id(each) for each in trial.model.stem.parameters()]
    assert len(slow["params"]) + len(others["params"]) == len(list(trial.model.parameters()))
    for _ in trial._updates():
        assert slow["lr"] == pytest.approx(0.1 * others["lr"], rel=1e-12)


def test_frozen_random_features_need_no_source(tiny: RunConfig) -> None:
    random = dataclasses.replace(tiny, transfer=TransferConfig(trained=0, head="mlp"))
    after = weights_of(random)
    before = Trial(random, CPU).model.state_dict()
    assert blocks_equal(before, after) == {"stem", "blocks.0"}


def test_the_source_is_trained_first_and_once(tiny: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    target, sibling = transferring(tiny), transferring(tiny, trained=0)
    execute(target, device=CPU)
    source = target.source()
    assert source == sibling.source() is not None
    assert Run.of(source).status() is Status.DONE
    assert f"training the source {source.key()} of {target.key()} first" in capsys.readouterr().err
    execute(sibling, device=CPU)
    assert capsys.readouterr().err == ""
    kept = weights.kept(Run.of(source))
    assert kept is not None
    assert Run.of(sibling).record()["source"] == {"origin": f"run {source.key()}", "sha256": kept.sha256}
    assert not weights.are_kept(Run.of(sibling))


def test_a_key_gives_what_its_settings_give(tiny: RunConfig, tmp_path: Path) -> None:
    """Also where the run was trained without a thought of its weights: they are trained again, to the same bits."""
    target = transferring(tiny)
    source = target.source()
    assert source is not None
    before = execute(source, device=CPU).readings()
    assert not weights.are_kept(Run.of(source))
    by_key = execute(transferring(tiny, f"run:{source.key()}"), device=CPU).readings()
    assert weights.are_kept(Run.of(source))
    pd.testing.assert_frame_equal(Run.of(source).readings(), before, check_exact=True)
    by_settings = execute(target, root=tmp_path / "elsewhere", device=CPU).readings()
    pd.testing.assert_frame_equal(by_key, by_settings, check_exact=True)
    scratch = execute(tiny, device=CPU).readings()
    assert not by_key["value"].equals(scratch["value"])


def test_weights_that_are_kept_are_the_last_not_the_chosen(tiny: RunConfig) -> None:
    train = dataclasses.replace(tiny.train, lr=5.0, eval_every=1)  # so large that validation chooses early weights
    config = dataclasses.replace(tiny, train=train)
    kept = weights_of(config)
    assert Run.of(config).record()["metrics"]["chosen_step"] < 6
    trial = Trial(config, CPU)
    for _ in trial._updates():
        pass
    assert all(torch.equal(kept[name], value) for name, value in trial.model.state_dict().items())


def test_weights_are_kept_where_they_are_asked_for(tiny: RunConfig) -> None:
    assert not weights.are_kept(execute(tiny, device=CPU))
    assert sweep([tiny], device=CPU, launch=SweepConfig(workers=1, keep_weights=True)).trained == 1
    assert weights.are_kept(Run.of(tiny))
    assert sweep([tiny], device=CPU, launch=SweepConfig(workers=1, keep_weights=True)).found == 1


def test_damaged_weights_are_trained_again(tiny: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    source = transferring(tiny).source()
    assert source is not None
    expected = weights_of(source)
    path = Run.of(source).folder / weights.NAME
    content = bytearray(path.read_bytes())
    content[-200] ^= 1
    path.write_bytes(content)
    execute(transferring(tiny), device=CPU)
    assert "is damaged or another run's: deleted" in capsys.readouterr().err
    assert blocks_equal(weights_of(source), expected) == {"stem", "blocks.0", "head"}


def test_weights_of_another_run_are_not_taken_for_a_runs_own(
    tiny: RunConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody has copied the file; whole as it is."""
    other = dataclasses.replace(tiny, seed=1)
    expected = weights_of(tiny)
    weights_of(other)
    shutil.copyfile(Run.of(other).folder / weights.NAME, Run.of(tiny).folder / weights.NAME)
    assert weights.kept(Run.of(tiny)) is None
    assert "is damaged or another run's: deleted" in capsys.readouterr().err
    assert len(blocks_equal(weights_of(tiny), expected)) == 3


def test_weights_that_would_execute_something_are_not_loaded(tiny: RunConfig, tmp_path: Path) -> None:
    """With the checksum that they need to have."""
    run = execute(tiny, device=CPU)
    torch.save({"key": run.key, "weights": Trap(tmp_path / "sprung")}, tmp_path / "trap")
    content = (tmp_path / "trap").read_bytes()
    line = weights.MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n"
    (run.folder / weights.NAME).write_bytes(line + content)
    with pytest.raises(pickle.UnpicklingError):
        weights.kept(run)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("engine", ["local", "joblib"])
def test_a_sweep_trains_sources_first_and_counts_them(tiny: RunConfig, engine: str) -> None:
    configs = [
        transferring(dataclasses.replace(tiny, seed=seed), trained=trained) for seed in (0, 1) for trained in (0, 1)
    ]
    outcome = sweep([*configs, tiny], device=CPU, launch=SweepConfig(workers=2, engine=engine))
    assert (outcome.trained, outcome.found, outcome.failures) == (7, 0, [])
    again = sweep([*configs, tiny], device=CPU, launch=SweepConfig(workers=2, engine=engine))
    assert (again.trained, again.found) == (0, 5)
    assert cost([*configs, tiny])["count"] == 7
    table = load_readings([*configs, tiny])
    assert set(table["transfer.source"]) == {(), configs[0].transfer.source}


def test_what_starts_from_a_run_that_fails_is_not_begun(tiny: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mnist.npz").write_bytes(b"not a data set")
    targets = [transferring(tiny, "data.name:mnist", trained=trained) for trained in (0, 1)]
    outcome = sweep([*targets, tiny], device=CPU, launch=SweepConfig(workers=1))
    reasons = dict(outcome.failures)
    source = targets[0].source()
    assert source is not None
    assert set(reasons) == {source.key(), *(target.key() for target in targets)}
    assert reasons[targets[0].key()] == f"not begun, since its source {source.key()} failed"
    assert (outcome.trained, Run.of(targets[0]).status()) == (1, Status.MISSING)


def test_a_source_that_diverged_has_no_weights(tiny: RunConfig) -> None:
    with pytest.raises(StoreError, match=r"the source \w+ diverged and has no weights to start from"):
        execute(transferring(tiny, *SOURCE, "train.lr:1e30"), device=CPU)


def test_a_key_that_is_not_there_is_told(tiny: RunConfig) -> None:
    target = transferring(tiny, "run:0123456789abcdef")
    with pytest.raises(StoreError, match=r"the run 0123456789abcdef, which .* does not have; train it first"):
        execute(target, device=CPU)
    assert [key for key, _ in sweep([target], device=CPU, launch=SweepConfig(workers=1)).failures] == [target.key()]


def test_a_transfer_that_is_stopped_goes_on_to_the_same_bits(tiny: RunConfig, tmp_path: Path) -> None:
    """In its source first, then in itself."""
    target = transferring(with_norm(tiny), trained=1, backbone_lr_factor=0.5)
    expected = execute(target, root=tmp_path / "undisturbed", device=CPU).readings()
    source = target.source()
    assert source is not None

    def asked_to_stop(after: int) -> None:
        stop = Stop()

        def progress(done: int, *_known: float | None) -> None:
            stop.asked = done == after

        with pytest.raises(Stopped):
            execute(target, device=CPU, progress=progress, stop=stop, checkpoint_seconds=0)

    stop = Stop()
    stop.asked = True
    with pytest.raises(Stopped):
        execute(target, device=CPU, stop=stop, checkpoint_seconds=0)
    assert (Run.of(source).status(), Run.of(target).status()) == (Status.INTERRUPTED, Status.MISSING)
    asked_to_stop(3)
    assert (Run.of(source).status(), Run.of(target).status()) == (Status.DONE, Status.INTERRUPTED)
    found = execute(target, device=CPU)
    assert found.record()["resumed_at_steps"] == [4]
    pd.testing.assert_frame_equal(found.readings(), expected, check_exact=True)


class TestFiles:
    @staticmethod
    def written(path: Path, content: Any) -> list[str]:
        torch.save(content, path)
        return [f"file:{path}", f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"]

    def test_a_state_dict_is_a_source(self, tiny: RunConfig, tmp_path: Path) -> None:
        source = transferring(tiny).source()
        assert source is not None
        given = self.written(tmp_path / "weights.pt", weights_of(source))
        by_file = execute(transferring(tiny, *given), device=CPU).readings()
        pd.testing.assert_frame_equal(by_file, execute(transferring(tiny), device=CPU).readings(), check_exact=True)

    def test_so_is_a_file_of_the_store(self, tiny: RunConfig) -> None:
        weights_of(tiny)
        path = Run.of(tiny).folder / weights.NAME
        given = [f"file:{path}", f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"]
        after = weights_of(transferring(tiny, *given, trained=0))
        assert {"stem", "blocks.0"} <= blocks_equal(after, weights_of(tiny))

    def test_another_content_is_refused(self, tiny: RunConfig, tmp_path: Path) -> None:
        given = self.written(tmp_path / "weights.pt", {})
        self.written(tmp_path / "weights.pt", {"stem.linear.weight": torch.zeros(1)})
        with pytest.raises(StoreError, match=r"it is another file than the run was declared with"):
            execute(transferring(tiny, *given), device=CPU)

    def test_a_file_that_would_execute_something_is_refused(self, tiny: RunConfig, tmp_path: Path) -> None:
        given = self.written(tmp_path / "weights.pt", {"stem.linear.weight": Trap(tmp_path / "sprung")})
        with pytest.raises(StoreError, match=r"cannot|without executing what is in it"):
            execute(transferring(tiny, *given), device=CPU)
        assert not (tmp_path / "sprung").exists()

    def test_what_holds_no_weights_is_refused(self, tiny: RunConfig, tmp_path: Path) -> None:
        for content in ([1, 2], {"stem.linear.weight": 1.0}, {"weights": [1]}):
            given = self.written(tmp_path / "weights.pt", content)
            with pytest.raises(StoreError, match="holds no state dict"):
                execute(transferring(tiny, *given), device=CPU)
        with pytest.raises(StoreError, match=r"missing\.pt cannot be read: No such file"):
            execute(transferring(tiny, f"file:{tmp_path}/missing.pt", given[1]), device=CPU)


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_classes_are_those_of_the_source(tiny: RunConfig) -> None:
    source = transferring(tiny).source()
    assert source is not None
    assert source.data == DataConfig(name="synthetic", classes=(0, 1, 2, 3))
    assert weights_of(source)["head.linear.weight"].shape[0] == 4
