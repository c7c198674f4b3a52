import math

import pandas as pd
import pytest

from depthlab.figures import deepest, errors, hidden, named, percent

COLUMNS = ["model.activation", "model.skip"]


def test_conditions_without_a_name_are_left_out(readings: pd.DataFrame) -> None:
    found = named(readings, COLUMNS, {("relu", "none"): "ReLU", ("tanh", "none"): "tanh", ("elu", "none"): "elu"})
    expected = readings[readings["model.activation"].isin(["relu", "tanh"])]
    pd.testing.assert_frame_equal(found.drop(columns="net"), expected)
    assert set(zip(found["model.activation"], found["net"], strict=True)) == {("relu", "ReLU"), ("tanh", "tanh")}


def test_whole_numbers_name_settings_that_are_floats(readings: pd.DataFrame) -> None:
    found = named(readings.assign(bias=3.0), ["bias"], {(3,): "biased"})
    assert set(found["net"]) == {"biased"}
    assert len(found) == len(readings)


def test_names_that_fit_no_condition(readings: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match=r"given \('sigmoid', 'none'\), names for \[\('relu', 'residual'\)\]"):
        named(readings, COLUMNS, {("relu", "residual"): "residual"})
    with pytest.raises(ValueError, match=r"lacks the columns model\.norm"):
        named(readings, ["model.norm"], {("none",): "plain"})
    with pytest.raises(ValueError, match="given no readings"):
        named(readings[:0], COLUMNS, {("relu", "none"): "ReLU"})


def test_deepest_and_hidden(readings: pd.DataFrame) -> None:
    both = pd.concat([readings, readings.assign(**{"model.depth": 5})])
    assert set(deepest(both)["model.depth"]) == {10}
    layers = hidden(both)
    assert layers[layers["model.depth"] == 10]["depth"].max() == 9
    assert layers[layers["model.depth"] == 5]["depth"].max() == 4


def test_errors_in_percent_count_what_diverged_as_told(readings: pd.DataFrame) -> None:
    bad = readings["key"] == readings["key"].iloc[0]
    planted = readings.assign(value=readings["value"].mask(bad & (readings["probe"] == "test_error")))
    found = errors(planted, diverged=90.0).set_index("key")["value"]
    usual = planted[planted["probe"] == "test_error"].set_index("key")["value"]
    assert found.iloc[0] == 90.0
    assert list(found[1:]) == list(100 * usual[1:])
    assert math.isnan(errors(planted)["value"].iloc[0])
    assert list(percent(planted, diverged=50)["value"].dropna()) == list(percent(planted)["value"].fillna(50))
