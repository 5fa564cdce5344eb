"""Ray Tune's searcher and scheduler, made to go on where an earlier process ended.

Two records outlive a process: the Optuna study (a journal file) and the run folders. A sweep that is
started again is built from these alone; nothing of Ray's own state is read back.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from raylab.sweeps.ranges import Range
from raylab.sweeps.space import SearchSpace

OBJECTIVE = "best"  # best value of the sweep's metric so far: the checkpoint that is kept
NAME = "name"
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True),
    "random": lambda seed: RandomSampler(seed=seed),
    "grid": lambda seed: RandomSampler(seed=seed),  # never asked: all points are enqueued
}


class StudySearch(OptunaSearch):  # type: ignore[misc]
    """`OptunaSearch` over a study that outlives the process.

    Trials come in this order: those an earlier process left unfinished, then the documented
    configurations, then a grid's other points, or sampled ones. The sampler is seeded by (seed, trial
    number): what it proposes depends on the results known at that moment, and on nothing else.

    Args:
        space: what to search.
        journal: the study's file.
        concurrent: how many trials train at once. No more than that start up at once: one asked for beyond
            them would slow them down. It is proposed when one of them has reported.
    """

    def __init__(self, space: SearchSpace, journal: Path, concurrent: int = 1) -> None:
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.sampler = SAMPLERS[space.search.sampler]
        self.seed = space.experiment.seed
        super().__init__(
            space={path: distribution(values) for path, values in space.space.items()},
            metric=OBJECTIVE,
            mode=space.search.mode,
            sampler=self.sampler(self.seed),
            storage=JournalStorage(JournalFileBackend(str(journal))),
            study_name=space.name,
        )
        rows = [(values, {NAME: name}) for name, values in space.rows.items()]
        for values, attributes in [*rows, *((values, {}) for values in space.grid)]:
            self.study.enqueue_trial(values, user_attrs=attributes, skip_if_exists=True)
        self.space = space
        self.unfinished = self.interrupted
        self.concurrent = concurrent
        self.starting: set[str] = set()

    @property
    def study(self) -> optuna.Study:
        study: optuna.Study = self._ot_study
        return study

    @property
    def trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    @property
    def ours(self) -> list[FrozenTrial]:
        """Those that are to be run now: a grid may be walked model by model."""
        return [t for t in self.trials if self.space.holds(_values(t))]

    @property
    def remaining(self) -> list[FrozenTrial]:
        """Trials that are known but have not ended."""
        return [t for t in self.trials if not t.state.is_finished()]

    @property
    def interrupted(self) -> list[FrozenTrial]:
        """Trials that an earlier process has begun and not ended."""
        return [t for t in self.ours if t.state == TrialState.RUNNING]

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """`{"name": run name, "values": {dotted setting: value}}`; None: ask again later."""
        if len(self.starting) >= self.concurrent:
            return None
        self.starting.add(trial_id)
        if self.unfinished:
            left = Trial(self.study, self.unfinished.pop(0)._trial_id)
            for path, values in self.space.space.items():  # it may have been taken up without its values
                left._suggest(path, distribution(values))
            self._ot_trials[trial_id] = left
        else:
            self.study.sampler = self.sampler(_seed(self.seed, len(self.trials)))
            self.put_off()
        values = super().suggest(trial_id)
        return {NAME: trial_name(self._ot_trials[trial_id]), "values": values}

    def put_off(self) -> None:
        """Keep what waits of other models from being taken for the next trial."""
        for trial in self.trials:
            if trial.state == TrialState.WAITING and not self.space.holds(_values(trial)):
                self.study._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        self.starting.discard(trial_id)
        super().on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.starting.discard(trial_id)
        super().on_trial_complete(trial_id, result, error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study is the record, and Ray's own state is not read back."""
        Path(checkpoint_path).touch()


class ResumedASHA(ASHAScheduler):  # type: ignore[misc]
    """ASHA that first hears what earlier processes measured.

    Args:
        past: run name → rows already reported by it.
        ended: names of runs that are over; their rows only set the bar for others.
        settings: arguments of `ASHAScheduler`.
    """

    def __init__(self, past: Callable[[str], list[dict[str, Any]]], ended: list[str], **settings: Any) -> None:
        super().__init__(**settings)
        self.past = past
        for name in ended:
            self.on_trial_add(None, SimpleNamespace(trial_id=name, config={NAME: name}))

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        super().on_trial_add(tune_controller, trial)
        for row in self.past(trial.config[NAME]):
            super().on_trial_result(tune_controller, trial, row)


def _values(trial: FrozenTrial) -> dict[str, Any]:
    """Of a trial that waits, what it was enqueued with."""
    return trial.params or dict(trial.system_attrs.get("fixed_params", {}))


def trial_name(trial: Trial | FrozenTrial) -> str:
    """A documented configuration's own name, or `trial009` by number for a sampled one."""
    return str(trial.user_attrs.get(NAME, f"trial{trial.number + 1:03d}"))


def distribution(values: Range) -> BaseDistribution:
    """A range as Optuna's distribution."""
    if values.choice is not None:
        return CategoricalDistribution(values.choice)
    low, high = values.ends
    if values.randint:
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=values.loguniform is not None)


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=4).digest(), "little")


def mend_journal(journal: Path) -> None:
    """Undo what a killed process may have left: a half-written last line, a lock nobody holds.

    Call only while holding the sweep's own lock.
    """
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)
    if not journal.exists():
        return
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        with journal.open("r+b") as file:
            file.truncate(len(whole))
