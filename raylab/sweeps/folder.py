"""What a sweep leaves on disk.

| path | content |
|---|---|
| `sweep.json` | the search space, the command and the versions |
| `study.journal` | the Optuna study; `optuna-dashboard` opens it |
| `trials/NAME/` | one run folder a trial (see `training.runfolder`) |
| `leaderboard.csv`, `leaderboard.parquet` | every trial, best first |
| `report.html`, `report/` | all of it to look at; see `raylab.report` |
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock, Timeout

from raylab.errors import RaylabError
from raylab.storage import Folder, cache_folder
from raylab.sweeps.ranges import Range
from raylab.sweeps.space import FOLD, SearchSpace, fold_name
from raylab.training.runfolder import ENDED, RunFolder, differences

JOURNAL = "study.journal"
RESUMED = 20  # of so many calls that went on with a sweep it is kept what made them


class SweepFolder:
    """One sweep's folder."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        return self.folder.name

    def exists(self) -> bool:
        return self.folder.exists("sweep.json")

    @property
    def info(self) -> dict[str, Any]:
        info: dict[str, Any] = self.folder.read_json("sweep.json")
        return info

    @property
    def space(self) -> SearchSpace:
        return SearchSpace.model_validate(self.info["space"])

    def run(self, name: str) -> RunFolder:
        return RunFolder(self.folder / "trials" / name)

    def runs(self) -> list[RunFolder]:
        runs = [self.run(name) for name in (self.folder / "trials").folders()]
        return [run for run in runs if run.exists()]

    def create(self, space: SearchSpace, info: dict[str, Any]) -> None:
        """Write `sweep.json`, or check that the sweep which is there can go on as this one.

        Args:
            space: what is searched.
            info: what makes it (`raylab.provenance`); of a sweep that goes on it is added to `resumed`.

        Raises:
            RaylabError: it was made with other settings.
        """
        if self.exists():
            old = self.space
            parts = ("space", "documented", "own")
            changed = [f"{part} changed" for part in parts if getattr(old, part) != getattr(space, part)]
            base = old.experiment
            if "model.name" in space.space:  # every trial has one of its own
                base = base.override({"model.name": space.experiment.model.name})
            different = differences(base, space.experiment)
            changed += [different] if different else []
            for key in ("metric", "mode"):
                if getattr(old.search, key) != getattr(space.search, key):
                    changed.append(f"search.{key} changed")
            if changed:
                raise RaylabError(
                    f"{self.folder} holds a sweep with other settings ({'; '.join(changed)}): "
                    "give this one a --name of its own, or --fresh to set the old one aside"
                )
            begun = {key: value for key, value in self.info.items() if key != "space"}
            info = {**begun, "resumed": [*begun.get("resumed", []), dict(info)][-RESUMED:]}
        self.folder.write_json("sweep.json", {**info, "space": space.model_dump(mode="json")})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Only one process at a time may work on a sweep. The lock ends with its process.

        Raises:
            RaylabError: another process holds it.
        """
        path = (self.folder.local or self._scratch()) / "driver.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RaylabError(f"{self.folder}: another process is working on this sweep (lock {path})") from None
        with lock:
            yield

    def journal(self) -> Path:
        """The study's file on local disk; on remote storage a working copy, see `publish_journal`."""
        if self.folder.local:
            return self.folder.local / JOURNAL
        copy = self._scratch() / JOURNAL
        copy.parent.mkdir(parents=True, exist_ok=True)
        if self.folder.exists(JOURNAL):
            copy.write_text(self.folder.read_text(JOURNAL))
        else:
            copy.unlink(missing_ok=True)
        return copy

    def publish_journal(self) -> None:
        if not self.folder.local:
            self.folder.write_bytes(JOURNAL, (self._scratch() / JOURNAL).read_bytes())

    def _scratch(self) -> Path:
        return cache_folder() / "sweeps" / hashlib.sha256(str(self.folder).encode()).hexdigest()[:16]

    def leaderboard(self) -> pd.DataFrame:
        """Every trial, best first: name, state, searched values, best metric, its epoch, train value and gap.

        Columns: `trial`, `state`, `epochs`, the metric's name, `best_epoch`, the same metric in training
        (`train/…`) and their difference (`gap/…`) at that epoch, each searched setting, `seconds`, `error`.
        """
        space = self.space
        rows = [_row(run, space) for run in self.runs()]
        if not rows:
            return pd.DataFrame(columns=["trial", "state", space.search.metric])
        table = pd.DataFrame(rows)
        ascending = space.search.mode == "min"
        return table.sort_values(
            [space.search.metric, "trial"], ascending=[ascending, True], na_position="last", ignore_index=True
        )

    def write_leaderboard(self) -> pd.DataFrame:
        table = self.leaderboard()
        self.folder.write_text("leaderboard.csv", table.to_csv(index=False))
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        self.folder.write_bytes("leaderboard.parquet", buffer.getvalue())
        return table

    def folds(self) -> pd.DataFrame:
        """Of a cross-validation, every trial that has finished, in the order of the search space.

        Columns: `model` (all that is searched but the fold), `fold`, `trial`, the validation metrics of its best
        checkpoint but for losses, `seconds` of training over all restarts, and `memory`, the most that it held, in
        bytes.
        """
        space, rows = self.space, []
        for run in self.runs():
            best = run.best(space.search.metric, space.search.mode)
            if run.status()["state"] != "finished" or best is None:
                continue
            searched = {path: run.experiment.get(path) for path in space.space}
            history = run.history()
            rows.append(
                {
                    "model": fold_name({path: value for path, value in searched.items() if path != FOLD}),
                    "fold": searched[FOLD],
                    "trial": run.name,
                    **{
                        name.removeprefix("val/"): value
                        for name, value in best.metrics.items()
                        if not name.endswith("loss")
                    },
                    "seconds": history[-1]["seconds"],
                    "memory": max(row.get("memory", 0) for row in history),
                    "place": [_place(space.space[path], value) for path, value in searched.items()],
                }
            )
        rows.sort(key=lambda row: row.pop("place"))
        return pd.DataFrame(rows)

    def prune(self, keep_trials: int) -> None:
        """Of the trials that are over, keep the best `keep_trials`: their best checkpoint and `train.keep_every`'s."""
        search, keep_every = self.space.search, self.space.experiment.train.keep_every
        ended = [run for run in self.runs() if run.status()["state"] in ENDED]
        scored = [(run, run.best(search.metric, search.mode)) for run in ended]
        sign = 1 if search.mode == "max" else -1
        scored.sort(key=lambda pair: sign * pair[1].metrics[search.metric] if pair[1] else float("-inf"), reverse=True)
        for rank, (run, best) in enumerate(scored):
            run.prune([best, *run.every(keep_every)] if rank < keep_trials else [])


def _place(values: Range, value: Any) -> float:
    """Where a value stands in its range; after all others, if it is not one of them now."""
    known = values.choice or []
    return known.index(value) if value in known else len(known) + (value if isinstance(value, int | float) else 0)


def _row(run: RunFolder, space: SearchSpace) -> dict[str, Any]:
    status, history, experiment = run.status(), run.history(), run.experiment
    metric = space.search.metric
    base = metric.removeprefix("val/")
    last = history[-1] if history else {}
    at_best = next((row for row in history if row["epoch"] == last["best_epoch"]), {})
    return {
        "trial": run.name,
        "state": status["state"],
        "epochs": last.get("epoch", 0),
        metric: at_best.get(metric, float("nan")),
        "best_epoch": last.get("best_epoch", 0),
        f"train/{base}": at_best.get(f"train/{base}", float("nan")),
        f"gap/{base}": at_best.get(f"gap/{base}", float("nan")),
        **{path: experiment.get(path) for path in space.space},
        "seconds": last.get("seconds", 0.0),
        "error": status["error"] or "",
    }
