"""What a report is about: a sweep or a single run, read from its folder at the moment of the call."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from raylab.config import Experiment
from raylab.results import gpu_hours
from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder
from raylab.sweeps.space import SearchSpace
from raylab.training.runfolder import ENDED, CheckpointInfo, RunFolder

Row = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """One run, as it stood when it was read.

    Attributes:
        name: of the run.
        state: see `training.runfolder`.
        error: why it failed; empty where it did not.
        history: one row an epoch.
        experiment: what it trains.
        info: its `run.json`.
        run: its folder.
    """

    name: str
    state: str
    error: str
    history: list[Row]
    experiment: Experiment
    info: Row
    run: RunFolder

    @classmethod
    def read(cls, run: RunFolder) -> Trial:
        status, info = run.status(), run.info
        experiment = Experiment.parse(info["experiment"], str(run.folder / "run.json"))
        return cls(run.name, status["state"], status["error"] or "", run.history(), experiment, info, run)

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    @cached_property
    def last(self) -> Row:
        return self.history[-1] if self.history else {}

    @cached_property
    def best(self) -> Row:
        """The row of the best epoch; empty before the first."""
        return next((row for row in self.history if row["epoch"] == self.last["best_epoch"]), {})

    @property
    def seconds(self) -> float:
        return float(self.last.get("seconds", math.nan))

    @property
    def gpu_hours(self) -> float:
        """Nan where it is not known what the run was given."""
        return gpu_hours(self.info, self.seconds)

    @property
    def speed(self) -> float:
        """Clips a second in training, the mean over epochs."""
        found = [row["clips_per_second"] for row in self.history if "clips_per_second" in row]
        return sum(found) / len(found) if found else math.nan

    def column(self, name: str) -> tuple[list[int], list[float]]:
        """Epochs, and a metric in them."""
        return [row["epoch"] for row in self.history], [row.get(name, math.nan) for row in self.history]


@dataclass(frozen=True)
class Subject:
    """A sweep, or a run alone.

    Attributes:
        folder: where it lies.
        trials: best first, those without a result last.
        metric: what decides between them, e.g. `val/action_top1`.
        mode: `max` or `min`.
        info: what made it: `sweep.json`, or `run.json`.
        space: what is searched; None of a run.
    """

    folder: Folder
    trials: list[Trial]
    metric: str
    mode: str
    info: Row
    space: SearchSpace | None = field(default=None)

    @classmethod
    def read(cls, folder: Folder) -> Subject:
        """The sweep or the run of a folder.

        Raises:
            RaylabError: a file of it is damaged.
        """
        sweep = SweepFolder(folder)
        if not sweep.exists():
            trial = Trial.read(RunFolder(folder))
            return cls(folder, [trial], trial.experiment.monitor, trial.experiment.train.mode, trial.info)
        space = sweep.space
        trials = [Trial.read(run) for run in sweep.runs()]
        sign = -1 if space.search.mode == "max" else 1

        def place(trial: Trial) -> tuple[float, str]:
            value = trial.best.get(space.search.metric, math.nan)
            return (math.inf if math.isnan(value) else sign * value, trial.name)

        return cls(folder, sorted(trials, key=place), space.search.metric, space.search.mode, sweep.info, space)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def figure(self) -> str:
        """The metric without its split: `action_top1`."""
        return self.metric.removeprefix("val/")

    @property
    def best(self) -> Trial | None:
        """The best trial, if any has a result."""
        return self.trials[0] if self.trials and self.trials[0].best else None

    @property
    def over(self) -> bool:
        """Whether nothing is to come."""
        expected = self.space.trials if self.space else 1
        return sum(trial.ended for trial in self.trials) >= expected

    @property
    def cross_validated(self) -> bool:
        return self.space is not None and self.space.cross_validated

    @property
    def share(self) -> bool:
        """Whether the metric is a part of a whole, to be shown in per cent."""
        task = self.trials[0].experiment.task if self.trials else ""
        return task != "keyframes" and not self.metric.endswith("loss")

    @property
    def started(self) -> str:
        return str(self.info.get("started", self.info.get("created", "")))

    def values(self, trial: Trial) -> Row:
        """The searched settings of a trial."""
        return {path: trial.experiment.get(path) for path in self.space.space} if self.space else {}

    def checkpoint(self) -> tuple[Trial, CheckpointInfo] | None:
        """The best checkpoint that is there, and whose it is; the best trial may have lost its own."""
        for trial in self.trials:
            found = trial.run.best(self.metric, self.mode)
            if found:
                return trial, found
        return None

    def board(self) -> pd.DataFrame:
        """One row a trial, best first: `SweepFolder.leaderboard` with costs."""
        rows = []
        for trial in self.trials:
            best = trial.best
            rows.append(
                {
                    "trial": trial.name,
                    "state": trial.state,
                    self.metric: best.get(self.metric, math.nan),
                    f"train/{self.figure}": best.get(f"train/{self.figure}", math.nan),
                    f"gap/{self.figure}": best.get(f"gap/{self.figure}", math.nan),
                    "best_epoch": trial.last.get("best_epoch", 0),
                    "epochs": trial.last.get("epoch", 0),
                    **self.values(trial),
                    "seconds": trial.seconds,
                    "gpu_hours": trial.gpu_hours,
                    "clips_per_second": trial.speed,
                    "error": trial.error,
                }
            )
        return pd.DataFrame(rows)
