"""A study: trials that several processes and commands share, and claim one after the other.

A process holds a lock for the trial that it works on. The system lets go of it at the moment the process ends, however
it ended: a trial that is running and not locked is lost, and is begun again at once, with the same settings. (Optuna's
heartbeat would need a minute to notice, and would take a machine that slept for a dead one.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import filelock
import optuna
from optuna.trial import FrozenTrial, TrialState

from depthlab.config import Choice, ConfigError, Interval, Range, Value, declared, stream_seed
from depthlab.tuning.database import Database
from depthlab.tuning.outcomes import STATES, Outcome, importances, outcome_of

PRUNERS: dict[str, Callable[[int], optuna.pruners.BasePruner]] = {
    "median": lambda spared: optuna.pruners.MedianPruner(n_warmup_steps=spared),
    "halving": lambda spared: optuna.pruners.SuccessiveHalvingPruner(min_resource=max(1, spared)),
    "none": lambda _: optuna.pruners.NopPruner(),
}
"""From the number of updates during which no trial is stopped."""

MOST_LOST = 2
"""A trial whose process was killed more often than this has failed: perhaps it is what kills it."""


class Study:
    """The study in a folder, made if it is not there. Ends with `with`.

    fixed: what tells the settings that are not searched from others. spared: updates during which nothing is pruned.
    Raises ConfigError if the study there is over other ranges, StoreError if its files cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        ranges: Mapping[str, Range],
        *,
        fixed: str = "",
        pruner: str = "median",
        spared: int = 0,
        seed: int = 0,
    ) -> None:
        self.folder, self.ranges = folder, ranges
        self._seed = seed
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # what becomes of trials is told by those who run them
        self._database = Database(folder)
        self.speaking = self._database.speaking
        try:
            with self.speaking():
                self._study = optuna.create_study(
                    storage=self._database.storage,
                    study_name=folder.name,
                    direction="minimize",
                    pruner=PRUNERS[pruner](spared),
                    load_if_exists=True,
                )
                self._check({"ranges": declared(ranges), "fixed": fixed})
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._database.close()

    def claim(self, most: int) -> Trial | None:
        """The next trial to run, None if so many have begun. Those whose process is gone are begun again first.

        The sampler is seeded by the trial's place, so that one process chooses the same settings whether it was
        stopped in between or not.
        """
        with self.speaking():
            self._recover()
            begun = sum(trial.state is not TrialState.WAITING for trial in self._current())
            if begun >= most:
                return None
            self._study.sampler = optuna.samplers.TPESampler(seed=stream_seed(self._seed, f"tune/{begun}") % 2**32)
            asked = self._study.ask()
            lock = self._lock_of(asked.number)
            lock.acquire(timeout=0)
            settings = {name: _chosen(asked, name, found) for name, found in self.ranges.items()}
        return Trial(self, asked, settings, lock)

    def retry_failed(self) -> int:
        """Has trials that failed run again, and returns how many there are."""
        with self.speaking():
            failed = [trial for trial in self._current() if trial.state is TrialState.FAIL]
            for trial in failed:
                self._again(trial, 0)
        return len(failed)

    def recover(self) -> None:
        """Has trials whose process is gone run again."""
        with self.speaking():
            self._recover()

    def left(self, most: int) -> int:
        """How many of so many trials have not begun."""
        with self.speaking():
            return most - sum(trial.state is not TrialState.WAITING for trial in self._current())

    def running(self) -> int:
        """How many trials are being run, by whatever command."""
        with self.speaking():
            return sum(trial.state is TrialState.RUNNING for trial in self._current())

    def outcomes(self) -> list[Outcome]:
        """Trials that have ended, the best first: by least error those that are done, then the others."""
        with self.speaking():
            ended = [outcome_of(trial) for trial in self._ended()]
        return sorted(ended, key=lambda o: (STATES.index(o.state), math.inf if o.error is None else o.error, o.number))

    def importances(self) -> dict[str, float]:
        """How much each setting mattered, the most important first: see `outcomes.importances`."""
        with self.speaking():
            ended = self._ended()
        return importances(ended)

    def give_up(self, number: int, lost: int) -> None:
        """Ends a trial that was not brought to its end; it is run again, unless it was lost too often."""
        with self.speaking():
            trial = self._study.get_trials(deepcopy=False)[number]
            if trial.state is not TrialState.RUNNING:
                return
            lost += trial.user_attrs.get("lost", 0)
            if lost > MOST_LOST:
                about = f"its process was killed {lost} times, perhaps for want of memory"
                self._database.storage.set_trial_user_attr(trial._trial_id, "about", about)
            self._study.tell(number, state=TrialState.FAIL)
            if lost <= MOST_LOST:
                self._again(trial, lost)

    def _again(self, trial: FrozenTrial, lost: int) -> None:
        """A new trial of the same settings takes the place of one that failed."""
        self._study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs={"in_place_of": trial.number, "lost": lost},
                intermediate_values=trial.intermediate_values,
            )
        )

    def _current(self) -> list[FrozenTrial]:
        """All trials whose place no other has taken."""
        trials = self._study.get_trials(deepcopy=False)
        replaced = {trial.user_attrs.get("in_place_of") for trial in trials}
        return [trial for trial in trials if trial.number not in replaced]

    def _ended(self) -> list[FrozenTrial]:
        return [trial for trial in self._current() if trial.state.is_finished()]

    def _recover(self) -> None:
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            lock = self._lock_of(trial.number)
            try:
                lock.acquire(timeout=0)
            except filelock.Timeout:
                continue
            _let_go(lock)
            self.give_up(trial.number, lost=1)

    def _lock_of(self, number: int) -> filelock.FileLock:
        return filelock.FileLock(self.folder / f"trial-{number}.lock")

    def _check(self, declaration: Mapping[str, str]) -> None:
        """Notes what a new study is over; of an old one, that it is over the same."""
        known = self._study.user_attrs or dict(declaration)
        if {name: known.get(name) for name in declaration} != declaration:
            raise ConfigError(
                f"the study {self.folder.name} searches other ranges, or with other settings: {known.get('ranges')}; "
                f"choose another --name, or leave it out"
            )
        for name, value in declaration.items():
            self._study.set_user_attr(name, value)


class Trial:
    """A trial that this process works on: one choice of settings."""

    def __init__(
        self, study: Study, asked: optuna.Trial, settings: Mapping[str, Value], lock: filelock.FileLock
    ) -> None:
        self.number, self.settings = asked.number, settings
        self._study, self._asked, self._lock = study, asked, lock
        self._reported = set(study._study.get_trials(deepcopy=False)[asked.number].intermediate_values)

    def note_run(self, key: str) -> None:
        """Which run of the ledger it is."""
        with self._study.speaking():
            self._asked.set_user_attr("key", key)

    def is_hopeless(self, step: int, error: float) -> bool:
        """Tells the validation error after so many updates; True if the pruner would stop it."""
        with self._study.speaking():
            self._report({step: error})
            return self._asked.should_prune()

    def end(self, state: str, about: str = "", errors: Mapping[int, float] | None = None) -> None:
        """How it ended, one of `STATES`, with its validation errors by the number of updates before them.

        What diverged or was impossible counts as pruned: the sampler learns to stay away from it.
        """
        with self._study.speaking():
            self._report(errors or {})
            self._asked.set_user_attr("state", state)
            self._asked.set_user_attr("about", about)
            if state == "done":
                self._study._study.tell(self._asked, min((errors or {}).values()))
            else:
                how = TrialState.FAIL if state == "failed" else TrialState.PRUNED
                self._study._study.tell(self._asked, state=how)
            _let_go(self._lock)

    def give_up(self) -> None:
        """Leaves it to be run again, by this command typed again or by another one."""
        with self._study.speaking():
            self._study.give_up(self.number, lost=0)
            _let_go(self._lock)

    def _report(self, errors: Mapping[int, float]) -> None:
        for step, error in errors.items():
            if step not in self._reported:
                self._asked.report(error, step)
                self._reported.add(step)


def _let_go(lock: filelock.FileLock) -> None:
    """Gives up the lock of a trial; its file may go, since nobody takes such locks but who speaks to the database."""
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)


def _chosen(trial: optuna.Trial, name: str, found: Range) -> Value:
    if isinstance(found, Choice):
        return str(trial.suggest_categorical(name, found.values))
    if isinstance(found, Interval):
        return trial.suggest_float(name, found.low, found.high, step=found.step, log=found.log)
    return trial.suggest_int(name, found.low, found.high, step=found.step or 1, log=found.log)
