import pandas as pd
import pytest

from depthlab.figures import draw_distribution, panels, style, weight_shares
from depthlab.probes import DISTRIBUTION


def shares(below: dict[str, float]) -> pd.DataFrame:
    """A run for each seed and method, half of whose weights are 0, the others between 10**-0.5 and 1; or all are."""
    rows = [
        {"key": f"{method}/{seed}", "method": method, "seed": seed, "layer": "head", "depth": 1, "step": 5}
        | {"probe": probe, "value": zeros if edge < 1 else 1.0}
        for method, zeros in below.items()
        for seed in range(2)
        for probe, edge in DISTRIBUTION.items()
    ]
    return pd.DataFrame(rows).sample(frac=1, random_state=0)


def test_bins_hold_what_their_edges_differ_by_and_zeros_stand_apart() -> None:
    found = weight_shares(shares({"L1": 0.5, "none": 0.0}))
    with style():
        _, (axes,) = panels()
        draw_distribution(axes, found, "method", labels=["L1", "none"])
    zeros, zeros_of_none, half, all_of_none = (line for line in axes.lines if line.get_label() in ("L1", "none"))
    assert zeros.get_ydata() == pytest.approx([0.5])
    assert zeros_of_none.get_ydata() == pytest.approx([0.0])
    for line, share in ((half, 0.5), (all_of_none, 1.0)):
        bins = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
        assert sum(bins.values()) == pytest.approx(share)
        assert max(bins, key=bins.__getitem__) == pytest.approx(10**-0.25)
    assert zeros.get_xdata()[0] < min(half.get_xdata()) / 10
    assert [text.get_text() for text in axes.get_xticklabels()][:2] == ["0", "$10^{-8}$"]


def test_readings_without_the_probe() -> None:
    with pytest.raises(ValueError, match=r"name it in probes\.names"):
        weight_shares(shares({"L1": 0.5}).assign(probe="test_error"))
