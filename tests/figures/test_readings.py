import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from depthlab.figures import outcomes, over_layers, select, summarize, tuned, updates_until, where
from depthlab.figures.readings import NETWORK, factors, keep
from depthlab.figures.stored import conform, read, to_bytes


def _one_run(values: list[float], **settings_of_run: Any) -> pd.DataFrame:
    rows = {"key": "12345678", "status": "done", **settings_of_run, "seed": 3, "step": 0, "probe": "grad_norm"}
    depth = range(1, len(values) + 1)
    return pd.DataFrame({**rows, "layer": [f"fc{d}" for d in depth], "depth": depth, "value": values})


def _round_trip(readings: pd.DataFrame, folder: Path) -> pd.DataFrame:
    path = folder / "readings.csv.gz"
    path.write_bytes(to_bytes(readings))
    return read(path)


def test_extreme_values_come_back_bit_for_bit(tmp_path: Path) -> None:
    values = [1e-310, 5e-324, 1e-30, math.inf, -math.inf, math.nan, -0.0, 0.1 + 0.2, 1.7976931348623157e308]
    found = _round_trip(_one_run(values), tmp_path)["value"].to_numpy()
    assert found.tobytes() == np.array(values).tobytes()


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(), min_size=1, max_size=30))
def test_any_floats_come_back(tmp_path: Path, values: list[float]) -> None:
    found = _round_trip(_one_run(values), tmp_path)["value"].to_numpy()
    expected = np.array(values)
    assert (np.isnan(found) == np.isnan(expected)).all()
    numbers = ~np.isnan(expected)
    assert found[numbers].tobytes() == expected[numbers].tobytes()


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(categories=("L", "N", "P", "S", "Zs"))), unique=True, min_size=1, max_size=10))
def test_any_layer_names_come_back(tmp_path: Path, names: list[str]) -> None:
    readings = _one_run([1.0] * len(names)).assign(layer=names)
    assert list(_round_trip(readings, tmp_path)["layer"]) == names


def test_types_come_back(tmp_path: Path) -> None:
    given_settings: dict[str, Any] = {
        "data.train_size": pd.array([None, 500], dtype="Int64"),
        "model.depth": 20,
        "model.skip": "none",
        "model.sigma_w": [math.nan, 1.5],
        "model.bias": [True, False],
        "train.lr": 1.0,
        "train.milestones": [[0.5, 0.75], []],
    }
    readings = _one_run([1.0, 2.0], **given_settings).assign(layer=["nan", "NA"])
    found = _round_trip(readings, tmp_path)
    pd.testing.assert_frame_equal(found, conform(readings))
    assert list(found["layer"]) == ["nan", "NA"]
    assert set(found["model.skip"]) == {"none"}
    assert list(found["train.milestones"]) == [(0.5, 0.75), ()]
    assert {name: str(found[name].dtype) for name in ("seed", "model.depth", "train.lr", "model.bias")} == {
        "seed": "int64",
        "model.depth": "int64",
        "train.lr": "float64",
        "model.bias": "bool",
    }
    assert found["data.train_size"].isna().tolist() == [True, False]


def test_settings_that_only_a_sign_tells_apart_come_back(tmp_path: Path) -> None:
    readings = _one_run([1.0, 2.0, 3.0], **{"train.lr": [0.0, -0.0, -0.0], "model.depth": [2, 2, 4]})
    found = _round_trip(readings, tmp_path)
    assert np.signbit(found["train.lr"]).tolist() == [False, True, True]
    assert found["model.depth"].tolist() == [2, 2, 4]


def test_a_file_of_many_blocks_comes_back(tmp_path: Path) -> None:
    """Larger than what is parsed at once: each block begins a list of its own of the texts that it has met."""
    runs = [_one_run(list(np.random.default_rng(seed).normal(size=1000))).assign(seed=seed) for seed in range(40)]
    readings = pd.concat([run.assign(key=f"run {99 - place}") for place, run in enumerate(runs)], ignore_index=True)
    content = to_bytes(readings)
    assert len(gzip.decompress(content)) > 2 << 20
    found = _round_trip(readings, tmp_path)
    pd.testing.assert_frame_equal(found, conform(readings), check_exact=True)
    pd.testing.assert_frame_equal(
        found, readings.sort_values(["key", "depth"], ignore_index=True)[found.columns], check_exact=True
    )


def test_key_of_digits_stays_a_word(tmp_path: Path) -> None:
    found = _round_trip(_one_run([1.0]).assign(key="0012e456"), tmp_path)
    assert list(found["key"]) == ["0012e456"]


def test_bytes_do_not_depend_on_the_order_of_rows_and_columns(readings: pd.DataFrame) -> None:
    shuffled = readings.sample(frac=1, random_state=0)[readings.columns[::-1]]
    assert to_bytes(shuffled) == to_bytes(readings)
    assert int.from_bytes(to_bytes(readings)[4:8], "little") == 0, "a time stamp"


def test_file_is_plain_csv(readings: pd.DataFrame) -> None:
    head = gzip.decompress(to_bytes(readings)).decode().splitlines()[0]
    assert head == "key,status,model.depth,model.activation,model.skip,seed,step,layer,depth,probe,value"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.deepness": 3}, "model.deepness are neither"),
        ({"seed": 1.5}, "column seed must hold int64 values only; it has 1.5"),
        ({"seed": math.nan}, "column seed must hold int64"),
        ({"layer": 7}, "column layer must hold str"),
        ({"model.skip": None}, "column model.skip must hold str"),
        ({"model.bias": "False"}, "column model.bias must hold bool"),
        ({"layer": "same", "depth": 1}, "the same thing is read twice"),
    ],
)
def test_malformed_readings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        conform(_one_run([1.0, 2.0]).assign(**change))


def test_seed_is_required() -> None:
    with pytest.raises(ValueError, match="lacks the columns seed"):
        conform(_one_run([1.0]).drop(columns="seed"))


def test_factors(readings: pd.DataFrame) -> None:
    assert factors(readings) == ["model.depth", "model.activation", "model.skip", "seed"]


def test_select_first_and_last_step_of_each_run(readings: pd.DataFrame) -> None:
    early = readings["key"] == readings["key"].iloc[0]
    stopped = readings.assign(step=readings["step"].mask(early & (readings["step"] == 100), 60))
    last = select(stopped, "grad_norm", step="last")
    assert set(last[last["key"] == readings["key"].iloc[0]]["step"]) == {60}
    assert set(last[last["key"] != readings["key"].iloc[0]]["step"]) == {100}
    assert set(select(stopped, "grad_norm", step="first")["step"]) == {0}
    assert set(select(stopped, "grad_norm")["step"]) == {0, 60, 100}
    assert set(select(stopped, "grad_norm", step=60)["seed"]) == {0}


def test_select_says_what_there_is(readings: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="no readings of probe loss; there are grad_norm, saturation, test_error"):
        select(readings, "loss")
    with pytest.raises(ValueError, match="at step 7; there are steps 0, 100"):
        select(readings, "grad_norm", step=7)


def _with_divergence(readings: pd.DataFrame) -> pd.DataFrame:
    """One tanh net diverges after step 0 and never reads its errors."""
    key = readings.loc[readings["model.activation"] == "tanh", "key"].iloc[0]
    lost = (readings["key"] == key) & (readings["step"] > 0)
    kept: pd.DataFrame = readings[~lost].copy()
    kept["status"] = kept["status"].mask(kept["key"] == key, "diverged")
    return kept


def test_diverged_seed_is_not_dropped_from_the_end(readings: pd.DataFrame) -> None:
    rows = _with_divergence(readings)
    found = summarize(outcomes(rows, "test_error"), ["model.activation"]).set_index("model.activation")
    assert list(found["n"]) == [4, 4, 4]
    assert found["usable"].to_dict() == {"relu": 4, "sigmoid": 4, "tanh": 3}
    assert found["mean"].isna().to_dict() == {"relu": False, "sigmoid": False, "tanh": True}


def test_diverged_seed_is_nan_in_every_layer_and_step_it_missed(readings: pd.DataFrame) -> None:
    rows = _with_divergence(readings)
    found = select(rows, "grad_norm")
    assert len(found) == len(select(readings, "grad_norm"))
    missed = found[found["value"].isna()]
    assert (set(missed["status"]), set(missed["step"]), sorted(missed["depth"])) == (
        {"diverged"},
        {100},
        [*range(1, 11)],
    )
    assert select(rows, "grad_norm", step="last")["value"].isna().sum() == 10
    assert select(rows, "grad_norm", step=100)["value"].isna().sum() == 10
    assert select(rows, "grad_norm", step="first")["value"].notna().all()


def test_a_run_that_diverged_before_a_probe_of_layers_was_read_has_no_row_of_the_network(
    readings: pd.DataFrame,
) -> None:
    """Of which layers it would have read nothing is known; `keep` refuses such a run."""
    rows = _with_divergence(readings)
    (key,) = rows.loc[rows["status"] == "diverged", "key"].unique()
    of_run = (rows["key"] == key) & (rows["probe"] == "grad_norm")
    found = select(rows.assign(probe=rows["probe"].mask(of_run, "weight_norm")), "grad_norm")
    assert key not in set(found["key"])
    assert (found["layer"] != NETWORK).all()


def test_no_nan_without_divergence(readings: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(select(readings, "grad_norm"), readings[readings["probe"] == "grad_norm"])


def test_outcomes_are_of_the_whole_network(readings: pd.DataFrame) -> None:
    assert len(outcomes(readings, "test_error")) == 12
    with pytest.raises(ValueError, match="grad_norm is read per layer"):
        outcomes(readings, "grad_norm")


def test_keep_loses_no_run(readings: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="hold no readings of test_error and would go uncounted"):
        keep(_with_divergence(readings), ("test_error",))


def test_keep_only_the_probes_asked_for(readings: pd.DataFrame) -> None:
    assert set(keep(readings, ("test_error",))["probe"]) == {"test_error"}
    with pytest.raises(ValueError, match="no readings of dead_fraction"):
        keep(readings, ("test_error", "dead_fraction"))


def _curves(validation: dict[tuple[float, str, int], list[float]], diverged: tuple[str, ...] = ()) -> pd.DataFrame:
    """validation_error at steps 10, 20, ... of runs told apart by learning rate, activation and seed."""
    rows = []
    for (lr, activation, seed), errors in validation.items():
        key = f"{lr}/{activation}/{seed}"
        run = {"key": key, "status": "diverged" if key in diverged else "done", "train.lr": lr, "seed": seed}
        run |= {"model.activation": activation, "layer": "network", "depth": 0, "probe": "validation_error"}
        rows += [{**run, "step": 10 * (count + 1), "value": error} for count, error in enumerate(errors)]
    return pd.DataFrame(rows)


def test_tuned_takes_the_best_mean_over_seeds_of_each_condition() -> None:
    readings = _curves({
        (0.1, "relu", 0): [0.9, 0.1], (0.1, "relu", 1): [0.9, 0.5],
        (0.3, "relu", 0): [0.1, 0.25], (0.3, "relu", 1): [0.1, 0.25],
        (0.1, "tanh", 0): [0.5, 0.2], (0.1, "tanh", 1): [0.5, 0.2],
        (0.3, "tanh", 0): [0.5, 0.0], (0.3, "tanh", 1): [0.5, 0.9],
    })  # fmt: skip
    chosen = tuned(readings, "train.lr", ["model.activation"])
    assert set(zip(chosen["model.activation"], chosen["train.lr"], strict=True)) == {("relu", 0.3), ("tanh", 0.1)}
    assert len(chosen) == len(readings) / 2
    assert list(chosen.columns) == list(readings.columns)


def test_tuned_does_not_choose_what_diverged_unless_all_did() -> None:
    curves = {(0.1, "relu", 0): [0.9, 0.8], (0.1, "relu", 1): [0.9, 0.8], (0.3, "relu", 0): [0.1, 0.0]}
    readings = _curves({**curves, (0.3, "relu", 1): [0.1]}, diverged=("0.3/relu/1",))
    assert set(tuned(readings, "train.lr", ["model.activation"])["train.lr"]) == {0.1}
    lost = readings[readings["train.lr"] == 0.3]
    assert set(tuned(lost, "train.lr", ["model.activation"])["train.lr"]) == {0.3}


def test_updates_until_is_the_first_step_below_and_the_last_of_all_where_none_is() -> None:
    readings = _curves(
        {
            (0.1, "relu", 0): [0.9, 0.4, 0.6, 0.3],
            (0.1, "relu", 1): [0.5, 0.5, 0.5, 0.5],
            (0.1, "relu", 2): [0.1],
            (0.1, "relu", 3): [0.9, 0.8],
            (0.1, "relu", 4): [0.9, 0.2],
        },
        diverged=("0.1/relu/3", "0.1/relu/4"),
    )
    found = updates_until(readings, "validation_error", 0.5).set_index("seed")["value"]
    assert found.drop(3).to_dict() == {0: 20, 1: 40, 2: 10, 4: 20}
    assert math.isnan(found[3])


def test_over_layers_is_one_mean_a_run_and_step() -> None:
    rows = pd.concat([_one_run([0.1, 0.2, 0.6]).assign(step=step, **{"train.lr": [0.1] * 3}) for step in (0, 5)])
    found = over_layers(rows)
    assert list(found["value"]) == [pytest.approx(0.3)] * 2
    assert list(found["step"]) == [0, 5]
    assert math.isnan(over_layers(_one_run([0.1, math.nan]))["value"].item())


def test_where_keeps_the_rows_of_all_settings() -> None:
    readings = _curves({(lr, name, 0): [0.1, 0.2] for lr in (0.1, 0.3) for name in ("relu", "tanh")})
    found = where(readings, train__lr=0.3, model__activation="tanh", step=20)
    assert list(found["key"]) == ["0.3/tanh/0"]
    assert list(found["step"]) == [20]
    assert where(readings, train__lr=0.2).empty
