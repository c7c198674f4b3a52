import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.figure import Figure

from depthlab.figures import draw, legend, panels, read, redraw, select, write
from depthlab.figures.style import SETTINGS

PROVENANCE = {"commit": "abc", "runs": 12}
FILES = {"readings.csv.gz", "provenance.json", "figure.png", "figure.svg", "table.md", "table.csv", "claims.md"}


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_writes_the_whole_folder_and_nothing_else(tmp_path: Path, readings: pd.DataFrame, experiment: Any) -> None:
    claims = write(tmp_path / "results" / "x", experiment, readings, PROVENANCE)
    found = _bytes(tmp_path / "results" / "x")
    assert set(found) == FILES
    assert [claim.verdict for claim in claims] == ["supported", "supported"]
    assert found["claims.md"].startswith(b"# Gradients of sigmoid nets vanish\n")
    assert json.loads(found["provenance.json"]) == PROVENANCE


def _gradients_by_depth(readings: pd.DataFrame) -> Figure:
    figure, (axes,) = panels()
    draw(axes, select(readings, "grad_norm", step=0), "depth", "model.activation")
    legend(figure)
    return figure


def test_redrawing_gives_the_same_bytes(tmp_path: Path, readings: pd.DataFrame, experiment: Any) -> None:
    experiment.figure = _gradients_by_depth
    write(tmp_path / "a", experiment, readings, PROVENANCE)
    write(tmp_path / "b", experiment, readings.sample(frac=1, random_state=0), dict(reversed(PROVENANCE.items())))
    first = _bytes(tmp_path / "a")
    assert _bytes(tmp_path / "b") == first
    for name in FILES - {"readings.csv.gz", "provenance.json"}:
        (tmp_path / "a" / name).unlink()
    redraw(tmp_path / "a", experiment)
    assert _bytes(tmp_path / "a") == first


def test_only_the_experiments_probes_are_kept(tmp_path: Path, readings: pd.DataFrame, experiment: Any) -> None:
    write(tmp_path, experiment, readings, PROVENANCE)
    assert set(read(tmp_path)["probe"]) == {"grad_norm", "test_error"}


def test_everything_is_computed_from_what_lies_in_the_folder(
    tmp_path: Path, readings: pd.DataFrame, experiment: Any
) -> None:
    seen: list[pd.DataFrame] = []
    for name in ("table", "claims", "figure"):
        make = getattr(experiment, name)

        def watched(given: pd.DataFrame, make: Any = make) -> Any:
            seen.append(given.copy())
            given["value"] = 0.0  # must not reach the next
            return make(seen[-1])

        setattr(experiment, name, watched)
    write(tmp_path, experiment, readings, PROVENANCE)
    assert len(seen) == 3
    for given in seen:
        pd.testing.assert_frame_equal(given, read(tmp_path))


def test_failing_drawing_keeps_readings_and_the_old_products(
    tmp_path: Path, readings: pd.DataFrame, experiment: Any
) -> None:
    write(tmp_path, experiment, readings, PROVENANCE)
    before = _bytes(tmp_path)

    def broken(readings: pd.DataFrame) -> Any:
        raise RuntimeError("a slip")

    figure, experiment.figure = experiment.figure, broken
    with pytest.raises(RuntimeError, match="a slip"):
        write(tmp_path, experiment, readings.assign(value=readings["value"] * 2), PROVENANCE)
    after = _bytes(tmp_path)
    assert {name for name in FILES if after[name] != before[name]} == {"readings.csv.gz"}
    assert set(after) == FILES
    experiment.figure = figure
    redraw(tmp_path, experiment)
    assert _bytes(tmp_path)["table.csv"] != before["table.csv"]


def test_interrupted_write_leaves_the_old_file_whole(
    tmp_path: Path, readings: pd.DataFrame, experiment: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, experiment, readings, PROVENANCE)
    before = _bytes(tmp_path)

    def half(path: Path, content: bytes) -> int:
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, experiment, readings, PROVENANCE)
    assert _bytes(tmp_path) == before


def test_missing_probe_is_told_before_anything_is_written(
    tmp_path: Path, readings: pd.DataFrame, experiment: Any
) -> None:
    experiment.PROBES = ("grad_norm", "dead_fraction")
    with pytest.raises(ValueError, match="no readings of dead_fraction; there are grad_norm"):
        write(tmp_path / "x", experiment, readings, PROVENANCE)
    assert not (tmp_path / "x").exists()


def test_redrawing_an_empty_folder(tmp_path: Path, experiment: Any) -> None:
    with pytest.raises(FileNotFoundError, match="draw the experiment from finished runs first"):
        redraw(tmp_path, experiment)


def test_incomplete_experiment_is_told_what_it_lacks(tmp_path: Path, readings: pd.DataFrame, experiment: Any) -> None:
    experiment.__doc__ = None
    del experiment.claims
    with pytest.raises(TypeError, match="lacks a docstring whose first line says what the figure shows, claims"):
        write(tmp_path / "x", experiment, readings, PROVENANCE)
    assert not (tmp_path / "x").exists()


def test_figures_are_drawn_in_the_house_style(tmp_path: Path, readings: pd.DataFrame, experiment: Any) -> None:
    seen: list[float] = []
    make = experiment.figure

    def watched(readings: pd.DataFrame) -> Any:
        seen.append(mpl.rcParams["lines.linewidth"])
        return make(readings)

    experiment.figure = watched
    write(tmp_path, experiment, readings, PROVENANCE)
    assert seen == [SETTINGS["lines.linewidth"]]
    assert mpl.rcParams["lines.linewidth"] != SETTINGS["lines.linewidth"]


def test_figure_without_a_claim_is_refused(tmp_path: Path, readings: pd.DataFrame, experiment: Any) -> None:
    experiment.claims = lambda readings: []
    with pytest.raises(ValueError, match="claims nothing"):
        write(tmp_path, experiment, readings, PROVENANCE)
