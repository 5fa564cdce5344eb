"""What a sweep shows while it runs: a live table, or off a terminal a line for each trial that ends."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.console import Console
from rich.live import Live
from rich.table import Table

from raylab.sweeps.folder import SweepFolder
from raylab.sweeps.search import NAME, OBJECTIVE
from raylab.sweeps.tables import heading, number

COLUMNS = ("trial", "state", "epoch", "metric", "best", "time")


class Watch(Callback):  # type: ignore[misc]
    """Shows trials as they go.

    Args:
        console: where to print.
        folder: the sweep.
        trials: how many there are to be in all.
        concurrent: how many run at once.
    """

    def __init__(self, console: Console, folder: SweepFolder, trials: int, concurrent: int) -> None:
        self.console = console
        self.folder = folder
        self.space = folder.space
        self.trials = trials
        self.concurrent = concurrent
        self.rows: dict[str, dict[str, Any]] = {}
        for run in folder.runs():
            history = run.history()
            self.rows[run.name] = {
                "state": run.status()["state"],
                "values": {path: run.experiment.get(path) for path in self.space.space},
                "last": history[-1] if history else {},
            }
        self.live = Live(console=console, get_renderable=self.table, refresh_per_second=2, transient=True)
        if console.is_terminal:
            self.live.start()

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray saves its callbacks; a display has nothing to save

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        row = self.rows.setdefault(trial.config[NAME], {"last": {}})
        row |= {"state": "created", "values": trial.config["values"]}
        self.start()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        self.rows[trial.config[NAME]]["last"] = result

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.end(trial, self.folder.run(trial.config[NAME]).status()["state"])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self.end(trial, "failed")

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        self.live.stop()

    def end(self, trial: Trial, state: str) -> None:
        row = self.rows[trial.config[NAME]]
        now = time.monotonic()
        row |= {"state": state, "took": now - row.get("since", now)}
        self.start()
        if not self.console.is_terminal:
            last = row["last"]
            best = f"{last[OBJECTIVE]:.4f}" if OBJECTIVE in last else "–"
            self.console.print(
                f"{trial.config[NAME]}: {state} after {last.get('epoch', 0)} epochs, best {self.space.search.metric} "
                f"{best}; {self.ended} of {self.trials} trials, {self.left()}"
            )

    def start(self) -> None:
        """One more trial than run at once has been made ready: the next begins where one has ended."""
        waiting = [row for row in self.rows.values() if row["state"] == "created"]
        running = sum(row["state"] == "running" for row in self.rows.values())
        for row in waiting[: max(self.concurrent - running, 0)]:
            row |= {"state": "running", "since": time.monotonic()}

    @property
    def ended(self) -> int:
        return sum(row["state"] not in ("running", "created") for row in self.rows.values())

    def left(self) -> str:
        """Time to the end, from the trials this process has seen end."""
        took = [row["took"] for row in self.rows.values() if "took" in row]
        remaining = self.trials - self.ended
        if not took or not remaining:
            return "last one" if not remaining else "time left unknown"
        seconds = sum(took) / len(took) * remaining / min(self.concurrent, remaining)
        return f"about {timedelta(seconds=round(seconds))} left"

    def table(self) -> Table:
        settings = list(self.space.space)
        table = Table(*COLUMNS, *map(heading, settings))
        table.title = f"{self.space.name}: {self.ended} of {self.trials} trials, {self.left()}"
        epochs = self.space.experiment.train.length
        for name, row in self.rows.items():
            last = row["last"]
            elapsed = row.get("took") or (time.monotonic() - row["since"] if "since" in row else last.get("seconds", 0))
            table.add_row(
                name,
                row["state"],
                f"{last.get('epoch', 0)}/{epochs}",
                number(last.get(self.space.search.metric)),
                number(last.get(OBJECTIVE)),
                str(timedelta(seconds=round(elapsed))),
                *(number(row["values"].get(path)) for path in settings),
            )
        return table
