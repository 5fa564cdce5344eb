"""What one training run leaves on disk, written by the loop and read by everyone else.

| path | content |
|---|---|
| `run.json` | name, sweep, experiment, what made it, what it was given of the cluster, where its frames come from |
| `status.json` | `running`, `finished`, `stopped` (by the scheduler) or `failed`, with the cause |
| `error.txt` | the whole traceback of a failed run |
| `history.jsonl` | one row of metrics for each finished epoch |
| `checkpoints/step_00001234/` | the newest, the best, and `train.keep_every`'s (see `training.state`) |
| `tensorboard/` | event files |
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from raylab import __version__
from raylab.config import Experiment
from raylab.errors import RaylabError
from raylab.schema import settings
from raylab.storage import Folder

log = logging.getLogger(__name__)

SEAL = "checkpoint.json"
State = Literal["created", "running", "finished", "stopped", "failed"]
ENDED: tuple[State, ...] = ("finished", "stopped", "failed")


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint: its folder, its position and the metrics measured there."""

    folder: Folder
    epoch: int
    step: int
    metrics: dict[str, float]


class RunFolder:
    """One run's folder."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    @property
    def name(self) -> str:
        return self.folder.name

    def create(
        self, experiment: Experiment, sweep: str | None = None, made: Callable[[], Mapping[str, Any]] = dict
    ) -> None:
        """Write `run.json` unless the run is there already.

        Args:
            experiment: what is trained.
            sweep: the name of the sweep that it is a trial of.
            made: what makes it (`raylab.provenance`); of a trial its sweep knows that.

        Raises:
            RaylabError: the folder holds a run of another experiment.
        """
        if self.exists():
            different = differences(self.experiment, experiment)
            if different:
                raise RaylabError(f"{self.folder} holds a run with other settings: {different}: use --fresh or --name")
            return
        self.folder.write_json(
            "run.json",
            {
                "name": self.name,
                "sweep": sweep,
                "experiment": experiment.to_dict(),
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "versions": {"raylab": __version__, "python": platform.python_version()},
                **made(),
            },
        )

    def note(self, **more: Any) -> None:
        """Add to `run.json`."""
        self.folder.write_json("run.json", {**self.info, **more})

    def note_frames(self, origin: str) -> None:
        """Record where frames come from; warn where a run goes on with others, since it will end with other weights."""
        before = self.info.get("frames")
        if before and before != origin and self.latest():
            log.warning(
                "%s: began with frames from %s, goes on with those from %s, which are not quite the same pixels: "
                "data.store says which to use",
                *(self.name, before, origin),
            )
        if before != origin:
            self.note(frames=origin)

    def exists(self) -> bool:
        return self.folder.exists("run.json")

    @property
    def info(self) -> dict[str, Any]:
        info: dict[str, Any] = self.folder.read_json("run.json")
        return info

    @property
    def experiment(self) -> Experiment:
        return Experiment.parse(self.info["experiment"], str(self.folder / "run.json"))

    def status(self) -> dict[str, Any]:
        """`{"state": …, "time": …, "error": … or None}`."""
        try:
            status: dict[str, Any] = self.folder.read_json("status.json")
        except FileNotFoundError:
            return {"state": "created", "time": None, "error": None}
        return status

    def set_status(self, state: State, error: str | None = None) -> None:
        time = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.folder.write_json("status.json", {"state": state, "time": time, "error": error})

    def fail(self, cause: str, details: str) -> None:
        """Record that the run failed: its cause in one line, and the whole traceback."""
        self.folder.write_text("error.txt", details)
        self.set_status("failed", cause)

    def history(self) -> list[dict[str, Any]]:
        try:
            text = self.folder.read_text("history.jsonl")
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text.splitlines()]

    def write_history(self, rows: list[dict[str, Any]]) -> None:
        self.folder.write_text("history.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def write_checkpoint(self, write: Callable[[Path], None], epoch: int, step: int, metrics: dict[str, float]) -> None:
        """Add a checkpoint whose files `write` puts into the folder it is given."""
        with (self.folder / "checkpoints").new_folder(f"step_{step:08d}", seal=SEAL) as path:
            write(path)
            seal = {"epoch": epoch, "step": step, "metrics": metrics, "raylab": __version__}
            (path / SEAL).write_text(json.dumps(seal, indent=1))

    def checkpoints(self) -> list[CheckpointInfo]:
        """Complete checkpoints, oldest first."""
        found = []
        for name in (self.folder / "checkpoints").folders():
            folder = self.folder / "checkpoints" / name
            try:
                seal = folder.read_json(SEAL)
            except FileNotFoundError:  # being written or deleted at this moment
                continue
            found.append(CheckpointInfo(folder, seal["epoch"], seal["step"], seal["metrics"]))
        return sorted(found, key=lambda c: c.step)

    def latest(self) -> CheckpointInfo | None:
        return max(self.checkpoints(), key=lambda c: c.step, default=None)

    def best(self, metric: str, mode: str) -> CheckpointInfo | None:
        """The checkpoint with the best value of `metric`, the earliest of equals."""
        scored = [c for c in self.checkpoints() if metric in c.metrics]
        sign = 1 if mode == "max" else -1
        return max(scored, key=lambda c: (sign * c.metrics[metric], -c.step), default=None)

    def every(self, epochs: int | None) -> list[CheckpointInfo]:
        """The checkpoints at the end of every so many epochs; none where no number is given."""
        return [c for c in self.checkpoints() if epochs and c.metrics and c.epoch % epochs == 0]

    def clean(self) -> None:
        """Delete what a killed process left half-written."""
        (self.folder / "checkpoints").remove_partial()

    def prune(self, keep: list[CheckpointInfo | None]) -> None:
        """Delete all checkpoints but these."""
        kept = {c.folder.name for c in keep if c}
        for name in (self.folder / "checkpoints").folders():
            if name not in kept:
                (self.folder / "checkpoints").remove(name, seal=SEAL)


def set_aside(parent: Folder, name: str) -> None:
    """Rename `parent/name`, if it exists, by the present time: what a user had is never deleted."""
    if parent.exists(name):
        parent.move(name, f"{name}.{datetime.now(timezone.utc):%Y%m%dT%H%M%S}")


def decisive(experiment: Experiment) -> dict[str, Any]:
    """The settings that decide what a run learns: all but where and how safely it runs."""
    free = {"resources", "loader_workers", "cache", "sample_clips"}
    free |= {"max_failures", "checkpoint_minutes", "keep_every", "log_steps"}
    return {path: experiment.get(path) for path in settings(Experiment) if free.isdisjoint(path.split("."))}


def differences(old: Experiment, new: Experiment) -> str:
    """Decisive settings that differ, as text; empty when a run may go on."""
    before, after = decisive(old), decisive(new)
    return ", ".join(f"{path} {before[path]!r} → {after[path]!r}" for path in after if before[path] != after[path])
