"""The study: exactly so many trials, whoever runs them; lost ones begin again; what it tells is what Optuna stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

optuna = pytest.importorskip("optuna", reason="needs optuna: pip install 'depthlab[tune]'")

from depthlab.config import Choice, ConfigError, Interval, WholeInterval  # noqa: E402
from depthlab.runs import StoreError  # noqa: E402
from depthlab.tuning.outcomes import Outcome  # noqa: E402
from depthlab.tuning.study import MOST_LOST, PRUNERS, Study  # noqa: E402

RANGES = {
    "train.lr": Interval(1e-3, 1.0, log=True),
    "data.cutout": WholeInterval(0, 8, step=4),
    "model.norm": Choice(("none", "layer")),
}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    with Study(tmp_path / "a folder {with} 100%", RANGES) as found:
        yield found


def finish(study: Study, most: int, error: Callable[[dict[str, Any]], float] = lambda _: 0.5) -> list[dict[str, Any]]:
    """Runs the trials that are left, and returns their settings."""
    chosen = []
    while trial := study.claim(most):
        chosen.append(dict(trial.settings))
        trial.end("done", errors={10: error(chosen[-1])})
    return chosen


def stored(folder: Path) -> list[Any]:
    """The trials as Optuna itself reads them."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder}/study.db")
    try:
        return optuna.load_study(study_name=folder.name, storage=storage).trials
    finally:
        storage.remove_session()
        storage.engine.dispose()


def test_values_are_within_their_ranges_and_no_trial_is_too_many(study: Study) -> None:
    chosen = finish(study, 12)
    assert len(chosen) == 12
    assert study.claim(12) is None
    assert {values["data.cutout"] for values in chosen} == {0, 4, 8}
    assert {values["model.norm"] for values in chosen} == {"none", "layer"}
    rates = [values["train.lr"] for values in chosen]
    assert all(1e-3 <= rate <= 1 for rate in rates)
    assert sum(rate < 0.03 for rate in rates) > 2, "half of a log range, and 3 % of a linear one"
    assert len(finish(study, 13)) == 1, "more are asked for: the study goes on"


def test_the_sampler_comes_nearer(tmp_path: Path) -> None:
    """TPE's later half is better than its random first ten; a study that forgot its trials would not be."""
    with Study(tmp_path / "s", {"train.lr": Interval(0.0, 1.0)}) as study:
        errors = [abs(values["train.lr"] - 0.7) for values in finish(study, 30, lambda v: abs(v["train.lr"] - 0.7))]
    assert sorted(errors[15:])[7] < 0.5 * sorted(errors[:10])[5]


def test_choices_are_the_same_again_however_often_it_was_stopped(tmp_path: Path) -> None:
    def error(values: dict[str, Any]) -> float:
        return abs(float(values["train.lr"]) - 0.1)

    with Study(tmp_path / "whole", RANGES) as study:
        expected = finish(study, 16, error)
    parts = []
    for most in (5, 11, 16):
        with Study(tmp_path / "parts", RANGES) as study:
            parts += finish(study, most - 1, error)
            stopped = study.claim(most)
            assert stopped is not None
            stopped.give_up()
            parts += finish(study, most, error)
    assert parts == expected
    with Study(tmp_path / "other", RANGES, seed=1) as study:
        assert finish(study, 16, error) != expected


def test_a_trial_of_a_process_that_is_gone_begins_again(tmp_path: Path) -> None:
    with Study(tmp_path / "s", RANGES) as study:
        lost = study.claim(2)
        assert lost is not None
        assert not lost.is_hopeless(5, 0.4)
        other = study.claim(2)
        assert other is not None
        assert study.claim(2) is None, "both are being run"
        lost._lock.release()  # as the system does when the process ends
        again = study.claim(2)
        assert again is not None
        assert again.settings == lost.settings
        again.end("done", errors={10: 0.3})  # the error after 5 was told before it was lost
        assert study.claim(2) is None
        other.end("done", errors={10: 0.2})
        assert [(o.number, o.error) for o in study.outcomes()] == [(other.number, 0.2), (again.number, 0.3)]
    states = [trial.state.name for trial in stored(tmp_path / "s")]
    assert states == ["FAIL", "COMPLETE", "COMPLETE"]
    assert stored(tmp_path / "s")[2].intermediate_values == {5: 0.4, 10: 0.3}
    assert not list((tmp_path / "s").glob("trial-*.lock"))


def test_a_trial_that_is_lost_too_often_has_failed(study: Study) -> None:
    for _ in range(MOST_LOST + 1):
        trial = study.claim(1)
        assert trial is not None
        trial._lock.release()
    assert study.claim(1) is None
    (outcome,) = study.outcomes()
    assert outcome.state == "failed"
    assert outcome.about == "its process was killed 3 times, perhaps for want of memory"


def test_being_stopped_is_not_being_lost(study: Study) -> None:
    for _ in range(2 * MOST_LOST + 2):
        trial = study.claim(1)
        assert trial is not None
        trial.give_up()
    assert study.outcomes() == []
    assert study.left(1) == 1


def test_what_failed_is_tried_again_when_asked(study: Study) -> None:
    trial = study.claim(1)
    assert trial is not None
    trial.end("failed", "no data")
    assert study.claim(1) is None
    assert study.retry_failed() == 1
    assert study.outcomes() == []
    assert len(finish(study, 1)) == 1
    assert study.retry_failed() == 0


def test_outcomes_are_optunas_trials_best_first(tmp_path: Path) -> None:
    endings = [
        ("done", "", {10: 0.5, 20: 0.2, 30: 0.2, 40: 0.3}),
        ("pruned", "after update 11", {10: 0.9}),
        ("diverged", "at step 3", {}),
        ("done", "", {10: 0.1}),
        ("failed", "OSError: no", {}),
        ("impossible", "does not fit", {}),
        ("diverged", "at step 12", {10: 0.8}),
    ]
    with Study(tmp_path / "s", RANGES) as study:
        for ending, about, errors in endings:
            trial = study.claim(len(endings))
            assert trial is not None
            trial.note_run(f"key{trial.number}")
            trial.end(ending, about, errors)
        outcomes = study.outcomes()
    assert [(o.state, o.error, o.step) for o in outcomes] == [
        ("done", 0.1, 10),
        ("done", 0.2, 20),
        ("pruned", 0.9, 10),
        ("diverged", 0.8, 10),
        ("diverged", None, None),
        ("impossible", None, None),
        ("failed", None, None),
    ]
    assert [o.rated for o in outcomes] == [0.1, 0.2, 0.9, 1.0, 1.0, None, None]
    trials = stored(tmp_path / "s")
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "PRUNED", "COMPLETE", "FAIL"] + 2 * [
        "PRUNED"
    ]
    for outcome in outcomes:
        trial = trials[outcome.number]
        assert outcome.settings == trial.params
        assert outcome.key == f"key{trial.number}"
        assert outcome.error == (
            trial.value if outcome.state == "done" else min(trial.intermediate_values.values(), default=None)
        )


@pytest.mark.parametrize(("pruner", "stops"), [("median", True), ("halving", True), ("none", False)])
def test_pruners_stop_what_is_worse_and_spare_the_first_updates(tmp_path: Path, pruner: str, stops: bool) -> None:
    with Study(tmp_path / "s", RANGES, pruner=pruner, spared=10) as study:
        for _ in range(6):
            trial = study.claim(7)
            assert trial is not None
            assert not any(trial.is_hopeless(step, 0.1) for step in (5, 10, 20, 40))
            trial.end("done", errors={40: 0.1})
        worse = study.claim(7)
        assert worse is not None
        answers = [worse.is_hopeless(step, 0.9) for step in (5, 10, 20, 40)]
    assert not answers[0]
    assert any(answers[1:]) is stops


def test_pruners_are_those_that_can_be_named() -> None:
    from depthlab import config

    assert tuple(PRUNERS) == config.PRUNERS


def test_importance_is_of_what_matters(tmp_path: Path) -> None:
    with Study(tmp_path / "s", RANGES) as study:
        assert study.importances() == {}
        finish(study, 4, lambda v: float(v["train.lr"]))
        assert study.importances() == {}, "too few"
        finish(study, 25, lambda v: float(v["train.lr"]))
        shares = study.importances()
    assert sum(shares.values()) == pytest.approx(1)
    assert next(iter(shares)) == "train.lr"
    assert shares["train.lr"] > 0.8


def test_importance_counts_what_ended_early(tmp_path: Path) -> None:
    """The rate decides which trials diverge; among those that do not it makes no difference."""
    with Study(tmp_path / "s", RANGES) as study:
        while trial := study.claim(25):
            if float(trial.settings["train.lr"]) > 0.1:
                trial.end("diverged", "at step 1")
            else:
                trial.end("done", errors={10: 0.1 if trial.settings["model.norm"] == "none" else 0.12})
        assert study.importances()["train.lr"] > 0.8


def test_equally_good_trials_tell_no_importance(study: Study) -> None:
    finish(study, 8)
    assert study.importances() == {}


@pytest.mark.parametrize(
    ("ranges", "fixed"), [({**RANGES, "model.norm": Choice(("none", "batch"))}, ""), (RANGES, "other settings")]
)
def test_a_study_over_something_else_is_not_gone_on_with(tmp_path: Path, ranges: Any, fixed: str) -> None:
    with Study(tmp_path / "s", RANGES) as study:
        finish(study, 1)
    with pytest.raises(ConfigError, match="choose another --name"):
        Study(tmp_path / "s", ranges, fixed=fixed)


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("not a database, but long enough to be looked at as if it were one" * 10)
    with pytest.raises(StoreError, match=r"study\.db cannot be used.*--name"):
        Study(tmp_path, RANGES)


def test_outcomes_know_their_rating() -> None:
    def rated(state: str, error: float | None) -> float | None:
        return Outcome(0, state, {}, error, None, "", "").rated

    assert [rated("done", 0.2), rated("diverged", 0.2), rated("failed", 0.2), rated("pruned", 0.4)] == [
        0.2,
        1,
        None,
        0.4,
    ]
