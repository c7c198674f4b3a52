import pandas as pd
import pytest

from depthlab.figures import draw_seeds, interval, panels, style

VALUES = {"low": [3.0, 1.0, 2.0], "high": [9.0, 5.0, 7.0, 8.0]}


def test_each_seed_is_a_dot_beside_the_mean_and_its_interval() -> None:
    rows = [(name, seed, value) for name, values in VALUES.items() for seed, value in enumerate(values)]
    readings = pd.DataFrame(rows, columns=["net", "seed", "value"])
    with style():
        _, (axes,) = panels()
        draw_seeds(axes, readings, "net", labels={"high": "High", "low": "Low"})
        with pytest.raises(ValueError, match="at least one value"):
            draw_seeds(axes, readings, "net", labels={"absent": "Absent"})
    assert [text.get_text() for text in axes.get_xticklabels()] == ["High", "Low"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    means = [line for line in axes.lines if line.get_marker() == "D"]
    for place, name in enumerate(("high", "low")):
        assert list(dots[place].get_ydata()) == sorted(VALUES[name])
        assert list(dots[place].get_xdata()) == pytest.approx(sorted(dots[place].get_xdata()))
        assert sum(dots[place].get_xdata()) / len(VALUES[name]) == pytest.approx(place)
        found = interval(VALUES[name])
        assert (means[place].get_xdata()[0], means[place].get_ydata()[0]) == (place, found.mean)
        bar = axes.collections[place].get_paths()[0].vertices
        assert bar[:, 1] == pytest.approx([found.low, found.high])


def test_one_seed_has_a_mean_and_no_bar() -> None:
    with style():
        figure, (axes,) = panels()
        draw_seeds(axes, pd.DataFrame({"net": ["a"], "seed": [0], "value": [2.0]}), "net", labels={"a": "A"})
        figure.draw_without_rendering()
    assert [line.get_marker() for line in axes.lines] == ["o", "D"]
    assert not axes.collections
