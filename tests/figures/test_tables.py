import io
import math

import pandas as pd
import pytest

from depthlab.figures import Interval, interval, intervals, pivot, select, table
from depthlab.figures.tables import cell_text, csv, markdown, number


def _interval(mean: float, half_width: float, *, log: bool = False) -> Interval:
    return Interval(mean, mean - half_width, mean + half_width, 3, 3, log)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (_interval(8.2749, 0.3101), "8.27 ± 0.31"),
        (_interval(8.2749, 0.0996), "8.275 ± 0.100"),
        (_interval(-1234.5, 56.7), "-1234 ± 57"),
        (_interval(1.234e-12, 4.1e-14), "(1.234 ± 0.041)e-12"),
        (_interval(3e-310, 2e-310), "(3.0 ± 2.0)e-310"),
        (_interval(2.5e7, 3e8), "(0.2 ± 3.0)e+08"),
        (_interval(0.5, 0.0), "0.5000 ± 0"),
        (_interval(1.0, 2.0**-50), "1.0000000 ± 8.9e-16"),
        (Interval(3e-12, 1e-12, 9e-12, 3, 3, log=True), "3.00e-12 [1.00e-12, 9.00e-12]"),
        (interval([0.25]), "0.250 (1 seed)"),
        (interval([1.0, math.nan, 2.0]), "undefined (2 of 3 seeds usable)"),
        (None, "–"),
        (0.012345, "0.01235"),
        (12, "12"),
        ("none", "none"),
        (math.inf, "inf"),
    ],
)
def test_cells(value: object, text: str) -> None:
    assert cell_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1234567.0, "1.23e+06"),
        (12345.0, "12345"),
        (0.00123, "0.00123"),
        (-9.996, "-10.00"),
        (math.nan, "nan"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert number(value) == text


def test_pivot_has_a_column_per_condition(readings: pd.DataFrame) -> None:
    errors = select(readings, "test_error")
    found = pivot(errors, ["model.activation"], "model.skip")
    assert list(found.columns) == ["model.activation", "none"]
    assert list(found["model.activation"]) == ["relu", "sigmoid", "tanh"]
    assert found["none"][0] == interval(errors[errors["model.activation"] == "relu"]["value"])


def test_pivot_shows_conditions_that_were_not_run(readings: pd.DataFrame) -> None:
    errors = select(readings, "test_error")
    errors = errors.assign(
        **{"model.skip": errors["model.skip"].mask(errors["model.activation"] == "relu", "residual")}
    )
    found = pivot(errors, ["model.activation"], "model.skip")
    assert found["none"][0] is None
    assert markdown(found).splitlines()[2].split("|")[2].strip() == "–"
    assert pd.read_csv(io.StringIO(csv(found)))["none"].isna().tolist() == [True, False, False]


def test_pivot_orders_numbers_as_numbers(readings: pd.DataFrame) -> None:
    errors = select(readings, "test_error")
    depths = errors["model.activation"].map({"relu": 8, "tanh": 56, "sigmoid": 110})
    assert list(pivot(errors.assign(**{"model.depth": depths}), ["model.skip"], "model.depth").columns[1:]) == [
        "8",
        "56",
        "110",
    ]


def test_table_has_a_row_per_condition(readings: pd.DataFrame) -> None:
    errors = select(readings, "test_error").assign(lr=0.1)
    relu = errors[errors["model.activation"] == "relu"]
    found = table(
        errors[errors["model.activation"] != "tanh"],
        {"model.activation": "net", "model.depth": "depth"},
        {
            "error": errors,
            "geometric": intervals(relu, ["model.activation", "model.depth"], log=True),
            "rate": "lr",
            "runs": len,
            "note": {("sigmoid", 10): interval([1.0])},
        },
    )
    assert list(found.columns) == ["net", "depth", "error", "geometric", "rate", "runs", "note"]
    assert found[["net", "depth", "rate"]].to_numpy().tolist() == [["relu", 10, 0.1], ["sigmoid", 10, 0.1]]
    assert list(found["runs"]) == [4, 4]
    assert list(found["note"]) == [None, interval([1.0])]
    assert found["error"][0] == interval(relu["value"])
    assert found["error"][1].mean > 0.8
    assert list(found["geometric"]) == [interval(relu["value"], log=True), None]


def test_table_finds_the_cells_of_settings_that_are_null() -> None:
    frame = pd.DataFrame({"gain": [math.nan, math.nan, 1.5], "seed": [0, 1, 0], "value": [1.0, 3.0, 5.0]})
    found = table(frame, {"gain": "gain"}, {"mean": frame})
    assert [cell.mean for cell in found["mean"]] == [5.0, 2.0]


def test_table_refuses_what_is_not_one_value_of_a_condition(readings: pd.DataFrame) -> None:
    errors = select(readings, "test_error")
    with pytest.raises(ValueError, match="seed varies within a condition: 0, 1, 2, 3"):
        table(errors, {"model.activation": "net"}, {"seed": "seed"})
    with pytest.raises(ValueError, match=r"several values for model\.skip=none, seed=0"):
        table(errors, {"model.skip": "skip"}, {"error": errors})


def test_words_that_a_condition_lacks_are_missing_and_no_number(readings: pd.DataFrame) -> None:
    found = table(readings, {"model.activation": "net"}, {"note": {("relu",): "see below"}})
    assert list(found["note"]) == ["see below", None, None]
    assert [line.split("|")[2].strip() for line in markdown(found).splitlines()[2:]] == ["see below", "–", "–"]


def test_markdown() -> None:
    cells = pd.DataFrame({"net": ["a|b", "c"], "depth": [8, 110], "error": [_interval(8.27, 0.31), _interval(12, 1.1)]})
    assert markdown(cells) == (
        "| net   |   depth |       error |\n"
        "|:------|--------:|------------:|\n"
        "| a\\|b  |       8 | 8.27 ± 0.31 |\n"
        "| c     |     110 |  12.0 ± 1.1 |\n"
    )


def test_whole_numbers_stay_whole_beside_floats() -> None:
    assert "|       8 |" in markdown(pd.DataFrame({"depth": [8], "value": [0.5]}))


def test_csv_reads_back_exactly() -> None:
    cells = [interval([0.1, 0.2, 0.7]), interval([1e-310, 2e-310]), interval([1.0, math.inf]), interval([3.0])]
    table = pd.DataFrame({"depth": [1, 2, 3, 4], "error": cells, "third": [1 / 3, math.inf, -0.0, math.nan]})
    found = pd.read_csv(io.StringIO(csv(table)), dtype=str, keep_default_na=False).map(float)
    assert list(found.columns) == ["depth", "error", "error.low", "error.high", "error.seeds", "error.usable", "third"]
    for name, part in (("error", "mean"), ("error.low", "low"), ("error.high", "high")):
        pd.testing.assert_series_equal(
            found[name], pd.Series([getattr(cell, part) for cell in cells], name=name), rtol=0, atol=0
        )
    assert list(found["error.usable"]) == [3, 2, 1, 1]
    pd.testing.assert_series_equal(found["third"], table["third"], rtol=0, atol=0)
    assert math.copysign(1, found["third"][2]) == -1
