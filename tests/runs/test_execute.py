"""One run: what is stored, that it is the same every time, and every way in which it can end."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from depthlab import data, theory
from depthlab.config import DataConfig, ModelConfig, ProbesConfig, RunConfig, from_mapping
from depthlab.probes import DISTRIBUTION, Reading, Row, linear_regions, weight_distribution
from depthlab.runs import Run, Status, execute
from depthlab.runs.plane import corners
from depthlab.runs.store import COLUMNS
from depthlab.runs.trial import Trial
from depthlab.training import Evaluation

CPU = torch.device("cpu")


def files(run: Run) -> set[str]:
    return {path.name for path in run.folder.iterdir()}


def changed(config: RunConfig, section: str, **values: Any) -> RunConfig:
    return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **values)})


def count_trainings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    keys: list[str] = []
    train = Trial.run

    def counted(self: Trial) -> dict[str, Any]:
        keys.append(self.config.key())
        return train(self)

    monkeypatch.setattr(Trial, "run", counted)
    return keys


def test_a_finished_run_is_stored_whole(tiny: RunConfig, results: Path) -> None:
    run = execute(tiny, device=CPU)
    assert run.folder == results / "runs" / tiny.key()
    assert files(run) == {"config.yaml", "run.json", "readings.parquet"}
    assert from_mapping(yaml.safe_load((run.folder / "config.yaml").read_text())) == tiny
    record = json.loads((run.folder / "run.json").read_text())
    assert record["status"] == "done"
    assert record["key"] == tiny.key()
    assert record["steps"] == 6
    assert record["wall_seconds"] > 0
    assert record["device"] == "cpu"
    assert record["threads"] == torch.get_num_threads()
    assert record["versions"]["torch"] == torch.__version__
    assert record["command"]
    assert {"commit", "dirty", "machine", "protocol"} <= set(record)
    assert datetime.fromisoformat(record["started"]).tzinfo is not None


def test_lsuv_makes_variances_one_on_the_first_batch_of_the_run(tiny: RunConfig) -> None:
    config = changed(changed(tiny, "model", init="lsuv"), "data", crop_padding=1, flip=True)
    trial = Trial(config, CPU)
    variances: list[float] = []
    for _, layer in trial.layers:
        layer.register_forward_hook(lambda *given: variances.append(given[2].var(correction=0).item()))
    for step in (0, 1):
        with torch.no_grad():
            trial.model(trial.batches[step][0])
    first, second = variances[: len(trial.layers)], variances[len(trial.layers) :]
    assert first == pytest.approx([1.0] * len(first), rel=1e-4)
    assert second != pytest.approx([1.0] * len(first), rel=1e-4)


def test_readings_are_one_long_table(tiny: RunConfig) -> None:
    table = execute(tiny, device=CPU).readings()
    assert {name: str(kind) for name, kind in table.dtypes.items()} == COLUMNS
    steps = {str(probe): list(part["step"].unique()) for probe, part in table.groupby("probe")}
    assert steps["grad_norm"] == steps["weight_norm"] == [0, 2, 4, 5]
    assert steps["train_loss"] == steps["batch_error"] == [0, 1, 2, 3, 4, 5]
    assert steps["validation_loss"] == steps["validation_error"] == [3, 6]
    for probe in ("train_error", "test_loss", "test_error", "chosen_test_error", "chosen_step"):
        assert steps[probe] == [6]
    assert list(table[table["probe"] == "grad_norm"]["depth"].unique()) == [1, 2, 3]
    network = table[table["layer"] == "network"]
    assert set(network["depth"]) == {0}
    assert not network.duplicated(["step", "probe"]).any()
    assert table["step"].is_monotonic_increasing


def test_inactive_units_are_counted_over_the_whole_validation_split(tiny: RunConfig) -> None:
    names = (*tiny.probes.names, "validation_inactive_fraction")
    run = execute(changed(tiny, "probes", names=names), device=CPU)
    table = run.readings()
    inactive = table[table["probe"] == "validation_inactive_fraction"]
    assert list(zip(inactive["step"], inactive["depth"], strict=True)) == [(3, 1), (3, 2), (6, 1), (6, 2)]
    others = table[table["probe"] != "validation_inactive_fraction"].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, execute(tiny, device=CPU).readings(), check_exact=True)


@pytest.mark.parametrize("chosen", [3, 6])
def test_weight_distribution_is_read_once_of_the_last_weights(
    tiny: RunConfig, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever validation chose; those are loaded after the last update."""
    monkeypatch.setattr(Trial, "_validate", lambda _self, done: Evaluation(1.0, 0.0 if done == chosen else 1.0))
    trial = Trial(changed(tiny, "probes", names=(*tiny.probes.names, "weight_distribution")), CPU)
    start = entries(weight_distribution(trial.layers))
    table = trial.run()["readings"]
    assert table[table["probe"] == "chosen_step"]["value"].tolist() == [chosen]
    shares = table[table["probe"].isin(DISTRIBUTION)]
    assert set(shares["step"]) == {6}
    columns = [list(shares[name]) for name in ("layer", "depth", "probe", "value")]
    found = sorted(zip(*columns, strict=True))
    assert found != sorted(start)
    assert (found == sorted(entries(weight_distribution(trial.layers)))) == (chosen == 6)


def entries(rows: list[Row]) -> list[tuple[str, int, str, float]]:
    return [(row.layer, row.depth, row.probe, row.value) for row in rows]


def test_weight_distribution_changes_no_other_reading(tiny: RunConfig) -> None:
    table = execute(changed(tiny, "probes", names=(*tiny.probes.names, "weight_distribution")), device=CPU).readings()
    others = table[~table["probe"].isin(DISTRIBUTION)].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, execute(tiny, device=CPU).readings(), check_exact=True)


def test_inactive_units_are_those_of_the_evaluated_weights(tiny: RunConfig) -> None:
    named = changed(changed(tiny, "model", width=300), "probes", names=("validation_inactive_fraction",))
    few = changed(named, "data", validation_fraction=0.003)  # three images, on which many a unit is inactive
    trial = Trial(changed(few, "train", eval_every=6), CPU)
    table = trial.run()["readings"]
    (images, _), mean, std = trial.splits.validation[:], trial.splits.mean, trial.splits.std
    inputs = (images / 255 - mean.view(-1, 1, 1)) / std.view(-1, 1, 1)
    with torch.no_grad():
        preactivations = trial.layers[0][1](inputs.flatten(1))
    share = (preactivations <= 0).all(dim=0).double().mean().item()
    first = table[(table["probe"] == "validation_inactive_fraction") & (table["depth"] == 1)]
    assert list(first["value"]) == [pytest.approx(share)]
    assert 0 < share < 1


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_residuals_are_outputs_minus_labels_of_the_last_weights_to_two_digits(tiny: RunConfig, loss: str) -> None:
    named = changed(changed(tiny, "probes", names=("test_residual",)), "train", loss=loss)
    table = Trial(named, CPU).run()["readings"]
    found = table[table["probe"] == "test_residual"]
    assert set(found["step"]) == {6}
    trial = Trial(changed(named, "train", loss=loss, eval_every=6), CPU)
    assert trial.run()["metrics"]["chosen_step"] == 6  # its model keeps the last weights; validation chose others above
    images, labels = trial.splits.test[:50]
    inputs = (images / 255 - trial.splits.mean.view(-1, 1, 1)) / trial.splits.std.view(-1, 1, 1)
    with torch.no_grad():
        outputs = trial.model(inputs)
    outputs = (outputs if loss == "mse" else outputs.softmax(dim=1)).double()
    outputs[torch.arange(50), labels] -= 1
    by_layer = found.set_index("layer")["value"]
    stored = torch.tensor([[by_layer[f"test.{image}.{label}"] for label in range(10)] for image in range(50)])
    assert len(by_layer) == 500
    torch.testing.assert_close(stored.double(), outputs, rtol=0.0501, atol=0)
    assert all(value == float(f"{value:.2g}") for value in by_layer)
    assert stored.square().mean().item() == pytest.approx(outputs.square().mean().item(), rel=0.01)


def test_reading_residuals_changes_nothing_else(tiny: RunConfig) -> None:
    dropping = changed(tiny, "model", dropout=0.5)
    run = execute(changed(dropping, "probes", names=(*tiny.probes.names, "test_residual")), device=CPU)
    table = run.readings()
    others = table[table["probe"] != "test_residual"].reset_index(drop=True)
    pd.testing.assert_frame_equal(others, execute(dropping, device=CPU).readings(), check_exact=True)


@pytest.fixture
def points(tiny: RunConfig) -> RunConfig:
    """A run on points of a plane that reads what can be read there."""
    model = ModelConfig(depth=3, width=6, init="gaussian", sigma_b=0.5, dropout=0.2)
    probes = ProbesConfig(every=0, names=("linear_regions", "decision"))
    return dataclasses.replace(tiny, data=DataConfig(name="spirals"), model=model, probes=probes)


def test_linear_regions_are_counted_on_the_square_of_inputs_before_and_after_training(points: RunConfig) -> None:
    trial = Trial(changed(points, "train", eval_every=6, lr=0.5), CPU)  # its model keeps the last weights
    mean, std = trial.splits.mean, trial.splits.std
    corners = [((value - mean) / std).tolist() for value in (0.0, 1.0)]
    before = len(linear_regions(trial.model, *corners))
    table = trial.run()["readings"]
    after = len(linear_regions(trial.model, *corners))
    found = table[table["probe"] == "linear_regions"]
    assert list(zip(found["step"], found["layer"], found["value"], strict=True)) == [
        (0, "network", before), (6, "network", after)
    ]  # fmt: skip
    assert before != after


def test_weights_that_the_last_update_blew_up_have_no_regions(points: RunConfig) -> None:
    trial = Trial(points, CPU)
    with torch.no_grad():
        trial.layers[1][1].get_parameter("weight")[0, 0] = math.inf
    trial._note_regions(6)
    assert math.isnan(trial.rows[-1][-1])


def test_the_square_reaches_from_black_to_white(points: RunConfig) -> None:
    splits = Trial(points, CPU).splits
    for found, value in zip(corners(splits), (0.0, 1.0), strict=True):
        torch.testing.assert_close(found, (value - splits.mean) / splits.std)


def test_decisions_are_the_classes_of_the_last_weights_all_over_the_square(points: RunConfig) -> None:
    trial = Trial(changed(points, "train", eval_every=6), CPU)
    table = trial.run()["readings"]
    found = table[table["probe"] == "decision"].set_index("layer")
    assert set(found["step"]) == {6}
    assert len(found) == 50**2
    trial.model.eval()
    places = [(x, y) for x in range(50) for y in range(50)]
    inputs = (torch.tensor(places) / 49 - trial.splits.mean) / trial.splits.std
    with torch.no_grad():
        classes = trial.model(inputs[:, :, None, None]).argmax(dim=1).tolist()
    stored = [found["value"][f"plane.{x}.{y}"] for x, y in places]
    assert sum(one != other for one, other in zip(stored, classes, strict=True)) <= 1  # the last bit may move a border
    assert set(found["value"]) == {0.0, 1.0}


def test_reading_the_plane_changes_nothing_else(points: RunConfig) -> None:
    table = execute(points, device=CPU).readings()
    others = table[~table["probe"].isin(points.probes.names)].reset_index(drop=True)
    bare = execute(changed(points, "probes", names=()), device=CPU).readings()
    pd.testing.assert_frame_equal(others, bare, check_exact=True)


def test_a_recurrent_net_is_read_at_every_time_step(tiny: RunConfig) -> None:
    model = ModelConfig(family="rnn", depth=2, width=5, activation="tanh", cell="gru")
    config = dataclasses.replace(tiny, model=model, probes=ProbesConfig(every=0, names=("backward_norm", "grad_norm")))
    readings = execute(config, device=CPU).readings()
    first = readings[(readings["step"] == 0) & (readings["depth"] > 0)]
    backward = first[first["probe"] == "backward_norm"]
    assert set(zip(backward["layer"], backward["depth"], strict=True)) == {
        ("head.linear", 2), *((f"step_{t}", t) for t in range(1, 9))
    }  # fmt: skip
    gradients = first[first["probe"] == "grad_norm"]
    assert list(zip(gradients["layer"], gradients["depth"], strict=True)) == [("blocks.0.cell", 1), ("head.linear", 2)]
    assert (first["value"] > 0).all()


def test_a_net_that_overflows_at_once_is_stored_with_the_layer_at_which_it_did(tiny: RunConfig) -> None:
    """relu at sigma_w = 4 leaves float32 about layer 85; the run ends in its first update, and says so."""
    model = ModelConfig(depth=100, width=60, init="gaussian", sigma_w=4.0)
    config = dataclasses.replace(tiny, model=model, probes=ProbesConfig(every=0, names=("activation_std",)))
    run = execute(config, device=CPU)
    assert run.status() is Status.DIVERGED
    assert run.record()["diverged_step"] == 0
    readings = run.readings()
    assert (readings["step"] == 0).all()
    assert not math.isfinite(readings[readings["probe"] == "train_loss"]["value"].item())
    std = readings[readings["probe"] == "activation_std"].set_index("depth")["value"]
    assert len(std) == 100
    finite = std.map(math.isfinite)
    overflow = finite.idxmin()
    assert overflow == pytest.approx(theory.overflow_depth(activation="relu", sigma_w=4.0), abs=4)
    assert finite[: overflow - 1].all()
    assert not finite[overflow:].any()


def test_metrics_are_those_of_the_readings(tiny: RunConfig) -> None:
    run = execute(tiny, device=CPU)
    table = run.readings().query("step == 6").set_index("probe")["value"]
    assert run.record()["metrics"] == {name: table[name] for name in run.record()["metrics"]}


def test_readings_are_the_same_bits_wherever_a_run_is_trained(tiny: RunConfig, tmp_path: Path) -> None:
    augmented = changed(changed(tiny, "data", crop_padding=1, flip=True), "model", dropout=0.2)
    torch.manual_seed(1)
    first = execute(augmented, root=tmp_path / "one", device=CPU).readings()
    torch.manual_seed(2)
    second = execute(augmented, root=tmp_path / "two", device=CPU).readings()
    pd.testing.assert_frame_equal(first, second, check_exact=True)
    assert first["value"].to_numpy().tobytes() == second["value"].to_numpy().tobytes()


def test_another_seed_gives_other_readings(tiny: RunConfig) -> None:
    first, second = execute(tiny, device=CPU), execute(dataclasses.replace(tiny, seed=1), device=CPU)
    assert not first.readings()["value"].equals(second.readings()["value"])


def test_the_random_state_of_the_caller_is_left_alone(tiny: RunConfig) -> None:
    torch.manual_seed(3)  # no state that such a run could have left
    before = torch.get_rng_state()
    execute(changed(tiny, "model", dropout=0.2), device=CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_finished_run_is_not_trained_again(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = count_trainings(monkeypatch)
    first = execute(tiny, device=CPU)
    stored = (first.folder / "run.json").read_bytes()
    assert execute(tiny, device=CPU) == first
    assert keys == [tiny.key()]
    assert (first.folder / "run.json").read_bytes() == stored


def test_a_failure_is_kept_with_its_traceback_and_tried_again(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Reading) -> None:
        raise ValueError("no such luck\nand more of it")

    with monkeypatch.context() as patch:
        patch.setattr(Reading, "before_update", fail)
        with pytest.raises(ValueError, match="no such luck"):
            execute(tiny, device=CPU)
    run = Run.of(tiny)
    assert run.status() is Status.FAILED
    assert run.record()["error"] == "ValueError: no such luck"
    assert run.record()["command"]
    assert files(run) == {"config.yaml", "run.json", "error.txt"}
    trace = (run.folder / "error.txt").read_text()
    assert trace.startswith("Traceback")
    assert "and more of it" in trace
    assert execute(tiny, device=CPU).status() is Status.DONE
    assert files(run) == {"config.yaml", "run.json", "readings.parquet"}


def test_ctrl_c_loses_nothing_but_the_run_in_hand(tiny: RunConfig, tmp_path: Path) -> None:
    def interrupt(done: int, loss: float | None, error: float | None) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute(tiny, device=CPU, progress=interrupt)
    run = Run.of(tiny)
    assert run.status() is Status.INTERRUPTED
    assert files(run) == {"config.yaml", "run.json"}
    assert execute(tiny, device=CPU).status() is Status.DONE
    unbroken = execute(tiny, root=tmp_path / "unbroken", device=CPU)
    pd.testing.assert_frame_equal(run.readings(), unbroken.readings(), check_exact=True)


@pytest.mark.parametrize(
    ("settings", "is_it"),
    [({"loss": "mse", "lr": 1e12, "momentum": 0.0}, math.isinf), ({"loss": "cross_entropy", "lr": 1e30}, math.isnan)],
    ids=["infinite", "nan"],
)
def test_a_loss_that_is_no_number_ends_the_run_as_a_result(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], is_it: Callable[[float], bool]
) -> None:
    keys = count_trainings(monkeypatch)
    config = changed(tiny, "train", steps=40, eval_every=20, **settings)
    run = execute(config, device=CPU)
    record, table = run.record(), run.readings()
    assert run.status() is Status.DIVERGED
    assert run.status().finished
    assert files(run) == {"config.yaml", "run.json", "readings.parquet"}
    assert "metrics" not in record
    step = record["diverged_step"]
    assert 0 < step < 19, "the loss was looked at later than that: what came between must be dropped"
    losses = table[table["probe"] == "train_loss"].set_index("step")["value"]
    assert list(losses.index) == list(range(step + 1))
    assert is_it(losses[step])
    assert losses.drop(step).map(math.isfinite).all()
    assert table["step"].max() == step
    assert set(table[table["probe"] == "grad_norm"]["step"]) == {0, *range(2, step + 1, 2)}
    execute(config, device=CPU)
    assert keys == [config.key()]


def test_evaluations_before_the_divergence_are_kept(tiny: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from depthlab.training import loop

    true, calls = loop.criterion, iter(range(1000))

    def poisoned(logits: torch.Tensor, labels: torch.Tensor, config: Any) -> torch.Tensor:
        loss = true(logits, labels, config)
        return loss * math.nan if logits.requires_grad and next(calls) == 4 else loss

    monkeypatch.setattr(loop, "criterion", poisoned)
    run = execute(tiny, device=CPU)
    assert run.record()["diverged_step"] == 4
    assert list(run.readings().query("probe == 'validation_error'")["step"]) == [3]


def test_weights_that_the_last_update_blew_up_leave_json_valid(tiny: RunConfig) -> None:
    """The loss is taken before the update, so that of the last one is finite; the test loss is not."""
    run = execute(changed(tiny, "train", steps=1, lr=1e38), device=CPU)
    text = (run.folder / "run.json").read_text()
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["status"] == "done"
    assert record["metrics"]["test_loss"] is None
    assert not math.isfinite(run.readings().query("probe == 'test_loss'")["value"].item())


def test_early_stopping_counts_evaluations_without_a_better_one(tiny: RunConfig) -> None:
    run = execute(changed(tiny, "train", lr=0, steps=50, eval_every=2, early_stopping=3), device=CPU)
    assert run.record()["steps"] == 8  # the first is the best; three more are not better
    assert list(run.readings().query("probe == 'validation_error'")["step"]) == [2, 4, 6, 8]
    assert run.readings().query("probe == 'test_error'")["step"].item() == 8


class Watched:
    """Which part of the data each evaluation was on, and the weights that it was with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, validation_errors: list[float]) -> None:
        self.parts: list[str] = []
        self.weights: list[float] = []
        errors, evaluate = iter(validation_errors), Trial.evaluate

        def watched(trial: Trial, images: data.Images) -> Evaluation:
            names = {id(trial.splits.validation): "validation", id(trial.splits.test): "test"}
            self.parts.append(names.get(id(images), "train"))
            self.weights.append(sum(weight.detach().double().sum().item() for weight in trial.model.parameters()))
            result = evaluate(trial, images)
            return Evaluation(result.loss, next(errors)) if self.parts[-1] == "validation" else result

        monkeypatch.setattr(Trial, "evaluate", watched)


def test_the_test_set_is_read_at_the_end_with_last_and_chosen_weights(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch, [0.5, 0.2, 0.2, 0.4])
    run = execute(changed(tiny, "train", steps=8, eval_every=2, lr=0.5), device=CPU)
    assert watched.parts == ["validation"] * 4 + ["test", "train", "test"]
    assert len(set(watched.weights[:4])) == 4
    assert watched.weights[4] == watched.weights[5] == watched.weights[3]
    assert watched.weights[6] == watched.weights[1], "the first of two that are equally good"
    metrics = run.record()["metrics"]
    assert metrics["chosen_step"] == 4
    assert metrics["validation_error"] == 0.4
    assert metrics["test_error"] != metrics["chosen_test_error"]


def test_the_test_set_is_read_once_where_the_last_weights_are_the_chosen_ones(
    tiny: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(monkeypatch, [0.5, 0.2])
    metrics = execute(tiny, device=CPU).record()["metrics"]
    assert watched.parts == ["validation", "validation", "test", "train"]
    assert metrics["chosen_test_error"] == metrics["test_error"]


def test_progress_tells_what_is_known(tiny: RunConfig) -> None:
    told: list[tuple[int, bool, bool]] = []
    execute(tiny, device=CPU, progress=lambda done, loss, error: told.append((done, loss is None, error is None)))
    assert told == [(step, step < 3, step < 3) for step in range(1, 7)]


def test_the_loss_that_progress_tells_last_is_that_of_the_last_update(tiny: RunConfig) -> None:
    told = []
    run = execute(tiny, device=CPU, progress=lambda _done, loss, _error: told.append(loss))
    readings = run.readings()
    assert told[-1] == readings.loc[readings["probe"] == "train_loss", "value"].iloc[-1]
