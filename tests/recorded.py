"""Sweeps as they lie on disk when they have ended, written without training anything."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder
from raylab.sweeps.search import NAME, distribution
from raylab.sweeps.space import SearchSpace

CAUSE = "RuntimeError: <script>document.title='run'</script> & CUDA out of memory"


def record_sweep(
    storage: Path,
    space: SearchSpace,
    trials: int,
    epochs: int,
    states: Sequence[str] = ("finished", "stopped", "finished", "stopped", "stopped", "finished"),
    demand: dict[str, float] | None = None,
) -> SweepFolder:
    """A sweep of so many trials: the documented first, the others drawn; the third has failed after its first epoch.

    Args:
        storage: where its folder goes.
        space: what it searches.
        trials: how many it has.
        epochs: of those that were not stopped.
        states: of the trials, over and over.
        demand: what each was given of the cluster.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    rng = random.Random(0)
    space = space.change({"search.trials": trials}, "the test")
    sweep = SweepFolder(Folder.open(storage / space.name))
    versions = {"raylab": "0.1.0", "torch": "2.15.0"}
    data = {"annotations": "0123456789abcdef" * 2, "train": 67217, "val": 9668}
    made = {"command": "raylab tune <b>this</b>", "started": "2026-01-02T03:04:05+00:00", "versions": versions}
    sweep.create(space, {**made, "data": data})
    base, begin = space.search.metric.removeprefix("val/"), datetime(2026, 1, 2)
    distributions = {path: distribution(values) for path, values in space.space.items()}
    names, frozen = list(space.documented), []
    for number in range(trials):
        name = names[number] if number < len(names) else f"trial{number + 1:03d}"
        values = space.documented.get(name) or {path: _draw(d, rng) for path, d in distributions.items()}
        run = sweep.run(name)
        run.create(space.trial(values), space.name)
        if demand:
            run.note(demand=demand)
        state = "failed" if number == 2 else states[number % len(states)]
        length = {"failed": 1, "stopped": max(1, epochs // 3)}.get(state, epochs)
        rows, best, best_epoch = [], -math.inf, 0
        reach = 0.1 + 0.4 * rng.random()
        for epoch in range(1, length + 1):
            value = reach * (1 - math.exp(-epoch / 8)) + 0.01 * rng.random()
            if value > best:
                best, best_epoch = value, epoch
            row = {"epoch": epoch, "step": 100 * epoch, "best": best, "best_epoch": best_epoch}
            row |= {"train/loss": 3 / epoch, "val/loss": 3 / epoch + 0.02 * epoch, f"train/{base}": value + 0.05}
            row |= {f"val/{base}": value, f"gap/{base}": 0.05, "clips_per_second": 120.0, "data_wait": 0.1}
            rows.append({**row, "seconds": 60.0 * epoch * (1 + rng.random()), "lr": 1e-4, "memory": 2 * 10**9})
        run.write_history(rows)
        if state == "failed":
            run.fail(CAUSE, CAUSE)
        else:
            run.set_status(state)
        start = begin + timedelta(minutes=10 * number)
        trial = optuna.trial.create_trial(
            state=optuna.trial.TrialState.FAIL if state == "failed" else optuna.trial.TrialState.COMPLETE,
            value=None if state == "failed" else best,
            params=values,
            distributions=distributions,
            user_attrs={NAME: name},
        )
        trial.datetime_start, trial.datetime_complete = start, start + timedelta(minutes=length)
        frozen.append(trial)
    storage_of_study = JournalStorage(JournalFileBackend(str(sweep.journal())))
    direction = {"max": "maximize", "min": "minimize"}[space.search.mode]
    optuna.create_study(storage=storage_of_study, study_name=space.name, direction=direction).add_trials(frozen)
    return sweep


def _draw(values: optuna.distributions.BaseDistribution, rng: random.Random) -> object:
    if isinstance(values, optuna.distributions.CategoricalDistribution):
        return rng.choice(values.choices)
    if isinstance(values, optuna.distributions.IntDistribution):
        return rng.randint(values.low, values.high)
    if values.log:
        return math.exp(rng.uniform(math.log(values.low), math.log(values.high)))
    return rng.uniform(values.low, values.high)
