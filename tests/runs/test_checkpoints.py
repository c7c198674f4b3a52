"""A run that was ended at any moment goes on to the same bits, and nothing in a checkpoint is trusted or executed."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from depthlab.config import DataConfig, ModelConfig, ProbesConfig, RunConfig, TrainConfig
from depthlab.runs import Run, Status, StoreError, execute
from depthlab.runs.checkpoints import MAGIC, Checkpoints
from depthlab.runs.interrupts import STOPPING, Stop, Stopped, stopping_politely
from depthlab.runs.trial import Trial
from depthlab.training import Pretraining

CPU = torch.device("cpu")
ALWAYS = 1e-9
"""Seconds between checkpoints that make one after every update."""

MLP = RunConfig(
    data=DataConfig(name="synthetic", train_size=60),
    model=ModelConfig(depth=4, width=8, norm="batch", dropout=0.2),
    train=TrainConfig(
        steps=14, batch_size=20, eval_every=4, optimizer="adam", lr=0.01, warmup_steps=3, schedule="cosine"
    ),
    probes=ProbesConfig(every=3),
)
CNN = RunConfig(
    data=DataConfig(name="synthetic", train_size=40, crop_padding=1, flip=True),
    model=ModelConfig(family="cnn", depth=8, width=4, skip="residual", norm="batch"),
    train=TrainConfig(steps=9, batch_size=20, eval_every=3, optimizer="sgd", momentum=0.9, nesterov=True, l1=1e-4),
    probes=ProbesConfig(every=4),
)
STOPPED_EARLY = dataclasses.replace(MLP, train=dataclasses.replace(MLP.train, early_stopping=3, steps=60))
EXPLODING = dataclasses.replace(
    MLP, train=dataclasses.replace(MLP.train, optimizer="sgd", lr=100.0, steps=100), model=ModelConfig(depth=6, width=8)
)
RESCALED = dataclasses.replace(MLP, model=ModelConfig(depth=4, width=8, init="lsuv", activation="tanh"))
NOISY = dataclasses.replace(MLP, model=ModelConfig(depth=4, width=8, norm="batch", norm_affine=False, norm_noise=0.5))
DROPPED = dataclasses.replace(
    MLP,
    model=ModelConfig(depth=4, width=8, dropconnect=0.3),
    train=TrainConfig(steps=14, batch_size=20, eval_every=4, lr=0.01, l1=1e-3, l1_step="proximal"),
    probes=ProbesConfig(every=3, names=("update_ratio", "weight_distribution")),
)
RECURRENT = dataclasses.replace(
    MLP,
    model=ModelConfig(family="rnn", depth=2, width=6, activation="tanh", cell="lstm", forget_bias=1.0),
    train=dataclasses.replace(MLP.train, clip_norm=0.5),
)
PRETRAINED = dataclasses.replace(
    MLP,
    model=ModelConfig(depth=4, width=8, activation="sigmoid", dropout=0.2),
    train=dataclasses.replace(MLP.train, steps=6, eval_every=3, pretraining_steps=3, corruption=0.3),
    probes=ProbesConfig(every=3, names=("backward_norm",)),
)
PHASE = 3 * 3
"""Updates of its three hidden layers before training."""
PLANE = dataclasses.replace(
    MLP,
    data=DataConfig(name="spirals", train_size=60),
    model=ModelConfig(depth=4, width=8, init="gaussian", sigma_b=0.5),
    probes=ProbesConfig(every=3, names=("linear_regions", "decision")),
)
CONFIGS = {
    "mlp": MLP,
    "plane": PLANE,
    "dropconnect": DROPPED,
    "recurrent": RECURRENT,
    "rescaled": RESCALED,
    "noisy": NOISY,
    "cnn": CNN,
    "early stopping": STOPPED_EARLY,
    "diverges": EXPLODING,
}


def content(run: Run) -> bytes:
    """All that was read, to the bit."""
    return (run.folder / "readings.parquet").read_bytes()


def asking(step: int | None = None, number: signal.Signals = signal.SIGINT) -> Any:
    """A progress that sends this process a signal, once, after an update (None: the first that it is told of)."""
    sent = False

    def progress(done: int, *_known: float | None) -> None:
        nonlocal sent
        if not sent and step in (None, done):
            sent = True
            os.kill(os.getpid(), number)

    return progress


@pytest.fixture
def undisturbed(tmp_path: Path) -> Any:
    return lambda config: content(execute(config, root=tmp_path / "undisturbed", device=CPU, checkpoint_seconds=0))


@pytest.mark.parametrize("name", CONFIGS)
def test_stopped_after_every_update_it_reads_the_same(name: str, undisturbed: Any) -> None:
    config, stops = CONFIGS[name], 0
    expected = undisturbed(config)
    while not (run := Run.of(config)).status().finished:
        assert stops < config.train.steps, "it does not go on, but begins again"
        try:
            execute(config, device=CPU, progress=asking())
        except Stopped:
            stops += 1
            assert Run.of(config).status() is Status.INTERRUPTED
            assert Run.of(config).record()["steps"] > 0
    assert content(run) == expected
    assert stops >= (2 if name == "diverges" else 4)
    assert len(run.record()["resumed_at_steps"]) == stops
    assert not list(run.folder.glob("checkpoint*"))


def test_stopped_after_every_update_of_both_phases_it_reads_the_same(undisturbed: Any) -> None:
    """Each stop costs no update: the phase before training goes on where it was, and is not done again after it."""
    expected, stops, told = undisturbed(PRETRAINED), [], []
    while not (run := Run.of(PRETRAINED)).status().finished:
        assert len(stops) < PHASE + 6, "it does not go on, but begins again"
        progress = asking()

        def counted(done: int, *known: float | None, progress: Any = progress) -> None:
            told.append(done)
            progress(done, *known)

        try:
            execute(PRETRAINED, device=CPU, progress=counted)
        except Stopped as stopped:
            stops.append(str(stopped))
    assert content(run) == expected
    # one update is done before progress is first told, and one until it has been asked to stop
    assert stops[:4] == [f"after update 0 of 6, in pre-training: {done} of {PHASE} done" for done in (2, 4, 6, 8)]
    assert stops[4:] == ["after update 1 of 6", "after update 3 of 6", "after update 5 of 6"]
    assert told.count(0) == PHASE - 4
    assert run.record()["resumed_at_steps"] == [0, 0, 0, 0, 1, 3, 5]
    assert not list(run.folder.glob("checkpoint*"))


def test_killed_in_pretraining_without_a_word_it_reads_the_same(undisturbed: Any) -> None:
    """It goes on from its last checkpoint, or begins anew where it has none."""
    expected = undisturbed(PRETRAINED)
    for every in (ALWAYS, 0):
        calls = 0

        def dies(_done: int, *_known: float | None) -> None:
            nonlocal calls
            calls += 1
            if calls == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            execute(PRETRAINED, device=CPU, progress=dies, checkpoint_seconds=every)
        run = execute(PRETRAINED, device=CPU, checkpoint_seconds=0)
        assert content(run) == expected
        assert run.record().get("resumed_at_steps") == ([0] if every else None)
        for path in run.folder.iterdir():
            path.unlink()


def test_what_was_left_out_of_the_state_of_pretraining_would_be_seen(
    undisturbed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, state_dict = undisturbed(PRETRAINED), Pretraining.state_dict
    run = Run.of(PRETRAINED)
    for part in ("offset", "optimizer"):
        fresh = Trial(PRETRAINED, CPU).pretraining
        assert fresh is not None
        instead = state_dict(fresh)[part]
        with monkeypatch.context() as patch:
            patch.setattr(Pretraining, "state_dict", lambda self, p=part, v=instead: {**state_dict(self), p: v})
            with pytest.raises(Stopped):
                execute(PRETRAINED, device=CPU, progress=asking())
        assert content(execute(PRETRAINED, device=CPU)) != expected, part
        for path in run.folder.iterdir():
            path.unlink()


def test_pretraining_that_diverges_ends_the_run_as_diverged() -> None:
    config = dataclasses.replace(PRETRAINED, train=dataclasses.replace(PRETRAINED.train, pretraining_lr=1e38))
    run = execute(config, device=CPU)
    assert run.status() is Status.DIVERGED
    assert run.record()["diverged_step"] == 0
    readings = run.readings()
    steps = readings.loc[readings["probe"] == "reconstruction_error", "step"]
    assert sorted(steps) == [-9, -6, -6, -3, -3, 0]


def test_weights_and_momentum_are_the_same(tmp_path: Path) -> None:
    def trained(parts: list[int], folder: Path) -> Trial:
        checkpoints = Checkpoints(Run(folder / CNN.key()), ALWAYS)
        checkpoints._run.folder.mkdir(parents=True)
        for stop_at in parts:
            stop = Stop()
            trial = Trial(CNN, CPU, lambda done, *_, at=stop_at, flag=stop: flag.__dict__.update(asked=done == at),
                          checkpoints=checkpoints, stop=stop)  # fmt: skip
            with pytest.raises(Stopped):
                trial.run()
        trial = Trial(CNN, CPU, checkpoints=checkpoints)
        trial.run()
        return trial

    whole, parts = trained([], tmp_path / "whole"), trained([2, 5, 7], tmp_path / "parts")
    assert parts.resumed == [3, 6, 8]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, parts.model.state_dict()[key]), key
    states = [trial.optimizer.state_dict()["state"] for trial in (whole, parts)]
    assert states[0].keys() == states[1].keys() != set()
    for key, state in states[0].items():
        assert torch.equal(state["momentum_buffer"], states[1][key]["momentum_buffer"])
    chosen = [trial.chosen for trial in (whole, parts)]
    assert (chosen[0].step, chosen[0].error) == (chosen[1].step, chosen[1].error)
    assert chosen[0].evaluations_since == chosen[1].evaluations_since
    for key, value in chosen[0].weights.items():
        assert torch.equal(value, chosen[1].weights[key]), key


def test_what_was_left_out_of_a_checkpoint_would_be_seen(undisturbed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above has teeth: each part of the state matters."""
    state = Trial.state
    expected = undisturbed(STOPPED_EARLY)
    for part in ("optimizer", "rows"):
        fresh = Trial(STOPPED_EARLY, CPU).state()

        def forgetful(self: Trial, part: str = part, fresh: dict[str, Any] = fresh) -> dict[str, Any]:
            return {**state(self), part: fresh[part]}

        monkeypatch.setattr(Trial, "state", forgetful)
        run = Run.of(STOPPED_EARLY)
        with pytest.raises(Stopped):
            execute(STOPPED_EARLY, device=CPU, progress=asking(5))
        try:
            assert content(execute(STOPPED_EARLY, device=CPU)) != expected, part
        except ValueError:
            assert part == "rows"
        for path in run.folder.iterdir():
            path.unlink()


@pytest.mark.parametrize("number", STOPPING)
def test_first_signal_saves_and_second_ends_at_once(number: signal.Signals) -> None:
    with pytest.raises(Stopped, match=r"after update 4 of 14"):
        execute(MLP, device=CPU, progress=asking(3, number))
    assert [path.name for path in Run.of(MLP).folder.glob("checkpoint*")] == ["checkpoint-000000004.pt"]

    def twice(done: int, *_known: float | None) -> None:
        if done == 6:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)

    with pytest.raises(KeyboardInterrupt) as ended:
        execute(MLP, device=CPU, progress=twice)
    assert not isinstance(ended.value, Stopped)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_progress_can_ask_its_run_to_stop(undisturbed: Any) -> None:
    """Without a signal: it stops after the update that follows, saved, and others may ask it to go on."""
    stop = Stop()

    def progress(done: int, *_known: float | None) -> None:
        stop.asked = done == 8

    with pytest.raises(Stopped, match="after update 9 of 14"):
        execute(MLP, device=CPU, progress=progress, checkpoint_seconds=0, stop=stop)
    assert stop.by is None
    run = Run.of(MLP)
    assert (run.status(), run.record()["steps"]) == (Status.INTERRUPTED, 9)
    assert [path.name for path in run.folder.glob("checkpoint*")] == ["checkpoint-000000009.pt"]
    assert content(execute(MLP, device=CPU)) == undisturbed(MLP)


def test_signals_that_are_ignored_stay_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping_politely() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.fixture
def interrupted() -> Run:
    """A run with two checkpoints, after updates 6 and 7."""
    with pytest.raises(Stopped):
        execute(MLP, device=CPU, progress=asking(6), checkpoint_seconds=ALWAYS)
    run = Run.of(MLP)
    assert [path.name for path in sorted(run.folder.glob("checkpoint*"))] == [
        "checkpoint-000000006.pt", "checkpoint-000000007.pt",
    ]  # fmt: skip
    return run


def newest(run: Run) -> Path:
    return max(run.folder.glob("checkpoint-*.pt"))


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_used(
    interrupted: Run, undisturbed: Any, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    expected, path, draw = undisturbed(MLP), newest(interrupted), random.Random(seed)
    payload = bytearray(path.read_bytes())
    if seed % 2:
        del payload[draw.randrange(len(payload)) :]
    else:
        payload[draw.randrange(len(payload))] ^= 1 << draw.randrange(8)
    path.write_bytes(payload)
    run = execute(MLP, device=CPU)
    assert "checkpoint-000000007.pt is damaged or of another version: set aside" in capsys.readouterr().err
    assert run.record()["resumed_at_steps"] == [6]
    assert content(run) == expected


def test_with_no_checkpoint_left_the_run_starts_over(interrupted: Run, undisturbed: Any) -> None:
    expected = undisturbed(MLP)
    for path in interrupted.folder.glob("checkpoint-*.pt"):
        path.write_bytes(b"")
    run = execute(MLP, device=CPU)
    assert "resumed_at_steps" not in run.record()
    assert content(run) == expected


class Bomb:
    def __reduce__(self) -> Any:
        return (os.system, ("touch exploded",))


def sealed(state: Any) -> bytes:
    """With a checksum that is right, as whoever means harm would write it."""
    held = io.BytesIO()
    torch.save(state, held)
    payload = held.getvalue()
    return MAGIC + hashlib.sha256(payload).hexdigest().encode() + b"\n" + payload


def test_nothing_in_a_checkpoint_is_executed(interrupted: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    newest(interrupted).write_bytes(sealed({"model": Bomb()}))
    assert execute(MLP, device=CPU).record()["resumed_at_steps"] == [6]
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(Bomb()))  # it would have
    assert (tmp_path / "exploded").exists()


def test_the_checkpoint_of_another_run_is_not_taken(interrupted: Run) -> None:
    payload = newest(interrupted).read_bytes().partition(b"\n")[2]
    state = torch.load(io.BytesIO(payload), weights_only=True)
    newest(interrupted).write_bytes(sealed({**state, "key": "another"}))
    assert execute(MLP, device=CPU).record()["resumed_at_steps"] == [6]


def test_without_checkpoints_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[int] = []
    monkeypatch.setattr(Checkpoints, "save", lambda self, step, state: saved.append(step))
    execute(MLP, device=CPU, checkpoint_seconds=0)
    assert saved == []


COMMAND = """
import sys, torch
sys.path.insert(0, {source!r})
torch.set_num_threads(1)
from pathlib import Path
from depthlab.config import build_sweep, from_mapping
import json
from depthlab.runs import execute
config = from_mapping(json.loads({config!r}))
execute(config, root=Path({root!r}), device=torch.device("cpu"), checkpoint_seconds=0.02)
"""


@pytest.mark.slow
def test_killed_at_random_moments_it_reads_the_same(tmp_path: Path) -> None:
    """SIGKILL, at moments that are drawn, until the run gets through."""
    import json

    from depthlab.config import to_mapping

    config = dataclasses.replace(MLP, train=dataclasses.replace(MLP.train, steps=1500, eval_every=50))
    expected = content(execute(config, root=tmp_path / "undisturbed", device=CPU, checkpoint_seconds=0))
    source = str(Path(__file__).parents[2] / "src")
    code = COMMAND.format(source=source, config=json.dumps(to_mapping(config)), root=str(tmp_path / "killed"))
    draw, kills, run = random.Random(0), 0, Run.of(config, tmp_path / "killed")
    while not run.status().finished:
        before = set(run.folder.glob("checkpoint-*"))
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)
        # however slow the machine is, each gets as far as a checkpoint
        while process.poll() is None and set(run.folder.glob("checkpoint-*")) <= before:
            time.sleep(0.01)
        if kills < 8:
            time.sleep(draw.uniform(0, 0.3))
            process.kill()
            kills += 1
        _, error = process.communicate()
        assert process.returncode in (0, -signal.SIGKILL), error.decode()
    assert kills >= 2
    assert run.record()["resumed_at_steps"]
    assert content(run) == expected


def test_a_checkpoint_of_another_version_is_not_taken(interrupted: Run, undisturbed: Any) -> None:
    expected = undisturbed(MLP)
    for path in interrupted.folder.glob("checkpoint-*.pt"):
        state = torch.load(io.BytesIO(path.read_bytes().partition(b"\n")[2]), weights_only=True)
        path.write_bytes(sealed({**state, "format": 0}))
    assert content(execute(MLP, device=CPU)) == expected


def test_a_checkpoint_that_may_not_be_read_is_no_damage(interrupted: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_bytes

    def denied(self: Path) -> bytes:
        if self.suffix == ".pt":
            raise PermissionError(13, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(StoreError, match="cannot be read: Permission denied"):
        execute(MLP, device=CPU)
    monkeypatch.undo()
    assert len(list(interrupted.folder.glob("checkpoint-*.pt"))) == 2


def test_what_a_killed_process_left_half_written_is_removed(interrupted: Run) -> None:
    (interrupted.folder / ".checkpoint-000000008.pt.x1").write_bytes(b"half")
    assert {path.name for path in execute(MLP, device=CPU).folder.iterdir()} == {
        "config.yaml", "run.json", "readings.parquet",
    }  # fmt: skip


def test_parts_that_were_trained_elsewhere_are_told(interrupted: Run, capsys: pytest.CaptureFixture[str]) -> None:
    path = newest(interrupted)
    state = torch.load(io.BytesIO(path.read_bytes().partition(b"\n")[2]), weights_only=True)
    elsewhere = {**state["parts"][-1], "threads": "64"}
    path.write_bytes(sealed({**state, "parts": [elsewhere]}))
    record = execute(MLP, device=CPU).record()
    assert record["earlier_parts"] == [elsewhere]
    assert "going on from update 7, which was trained with" in capsys.readouterr().err
