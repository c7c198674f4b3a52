"""How trials ended, and which settings mattered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from depthlab.config import Value

STATES = ("done", "pruned", "diverged", "impossible", "failed")
"""How a trial can end. Impossible: its settings do not go together, as an odd depth and residual blocks."""

LEAST_FOR_IMPORTANCE = 5
"""Fewer finished trials say nothing of which setting mattered."""


@dataclass(frozen=True)
class Outcome:
    """A trial that has ended. error: its least validation error, in [0, 1], first measured at `step`."""

    number: int
    state: str
    settings: Mapping[str, Value]
    error: float | None
    step: int | None
    key: str
    about: str

    @property
    def rated(self) -> float | None:
        """The error that it counts with where settings are weighed: 1 if it diverged; None if it says nothing."""
        return {"diverged": 1.0, "failed": None}.get(self.state, self.error)


def outcome_of(trial: FrozenTrial) -> Outcome:
    """What became of a trial that has ended."""
    errors = trial.intermediate_values
    best = min(errors.values(), default=None)
    return Outcome(
        number=trial.number,
        state="failed" if trial.state is TrialState.FAIL else trial.user_attrs["state"],
        settings=dict(trial.params),
        error=trial.value if trial.state is TrialState.COMPLETE else best,
        step=min((step for step, error in errors.items() if error == best), default=None),
        key=trial.user_attrs.get("key", ""),
        about=trial.user_attrs.get("about", ""),
    )


def importances(trials: Iterable[FrozenTrial]) -> dict[str, float]:
    """Share of the variance of the error over the ranges that each setting explains alone, largest first.

    Functional ANOVA (Hutter et al. 2014, "An efficient approach for assessing hyperparameter importance"), normalized
    to sum 1. A trial that was pruned counts with its least error, one that diverged as all wrong: if only those that
    are done counted, a setting that ends trials would seem not to matter. Empty where trials are too few, or all
    equally good.
    """
    rated = [trial for trial in map(_rated, trials) if trial is not None]
    if len(rated) < LEAST_FOR_IMPORTANCE or len({trial.value for trial in rated}) == 1:
        return {}
    study = optuna.create_study()
    study.add_trials(rated)
    # Optuna's default, PED-ANOVA, looks at the best tenth: of twenty trials, at two
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {name: float(share) for name, share in found.items()}


def _rated(trial: FrozenTrial) -> FrozenTrial | None:
    """The trial as one that is done, with the error that it counts with; None if it says nothing."""
    error = outcome_of(trial).rated
    if error is None:
        return None
    return optuna.create_trial(params=trial.params, distributions=trial.distributions, value=error)
