"""What runs left behind: list them, compare them, take the best checkpoint, load its model.

    python -m raylab.results                      every run and sweep under results/
    python -m raylab.results epic_phase2          the leaderboard of one sweep

Nothing here needs Ray, a cluster, or the machine that trained: a copied folder is enough. Loading never
runs code from the files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from raylab.cli import console, run_verb
from raylab.config import Experiment
from raylab.errors import RaylabError, unknown_name
from raylab.models.registry import find_model
from raylab.schema import settings
from raylab.storage import Folder
from raylab.sweeps.folder import SweepFolder
from raylab.training.runfolder import SEAL, RunFolder

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from torch import nn

    from raylab.data.augment import ClipTransform

DEFAULT_STORAGE = "results"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk, with everything needed to use its model.

    Attributes:
        folder: where it is; `path` is the same as text, a local path or a URI.
        epoch: epochs of training behind it.
        metrics: validation metrics measured with it, e.g. `{"val/action_top1": 0.27}`.
        experiment: what was trained.
        labels: head name → class names.
        run: name of the run it belongs to.
    """

    folder: Folder
    epoch: int
    metrics: dict[str, float]
    experiment: Experiment
    labels: dict[str, list[str]]
    run: str

    @classmethod
    def open(cls, where: str | Path | Folder, run: str = "") -> Checkpoint:
        """A checkpoint by its folder.

        Raises:
            RaylabError: the folder holds no complete checkpoint.
        """
        folder = where if isinstance(where, Folder) else Folder.open(where)
        try:
            seal = folder.read_json("checkpoint.json")
            experiment = Experiment.parse(folder.read_json("experiment.json"), str(folder / "experiment.json"))
            labels = folder.read_json("labels.json")
        except FileNotFoundError as error:
            raise RaylabError(f"{folder}: no complete checkpoint ({error})") from None
        return cls(folder, seal["epoch"], seal["metrics"], experiment, labels, run)

    @property
    def path(self) -> str:
        return str(self.folder)

    @property
    def name(self) -> str:
        """The run it belongs to, or where that is not known the folder's own name."""
        return self.run or self.folder.name

    def history(self) -> list[dict[str, Any]]:
        """One row of metrics for each epoch up to this checkpoint."""
        rows: list[dict[str, Any]] = self.folder.read_json("training.json")["progress"]["history"]
        return rows

    @property
    def heads(self) -> dict[str, int]:
        """Head name → number of classes."""
        return {head: len(names) for head, names in self.labels.items()}

    def load_model(self, device: str | torch.device = "cpu") -> nn.Module:
        """The trained model, in evaluation mode: float (B, T, 3, H, W) → head → logits (B, classes).

        Weights that were saved under DataParallel, DDP or `torch.compile` are those of the model too.

        A classifier of handcrafted features takes them in place of frames, float64 (B, features), in the order of its
        `features` (`raylab.handcrafted.extract` gives a video's).

        Raises:
            RaylabError: the weights are damaged, or not those of the model.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from raylab.models.feature_classifier import FeatureClassifier
        from raylab.models.registry import build_model
        from raylab.models.weights import fill

        with self.folder.as_local() as folder:
            model = build_model(self.experiment.model, self.heads, checkpoint=folder)
            if isinstance(model, FeatureClassifier):
                return model.load(folder).eval()
            try:
                fill(model, load_file(folder / "model.safetensors"))
            except (OSError, SafetensorError, RuntimeError) as error:
                raise RaylabError(f"{self.folder / 'model.safetensors'}: not weights of this model: {error}") from None
        return model.to(device).eval()

    def transform(self, model: nn.Module) -> ClipTransform:
        """What evaluation does to uint8 (B, T, 3, S, S) clips before the model sees them.

        Raises:
            RaylabError: the model does not look at frames.
        """
        if find_model(self.experiment.model.name).handcrafted:
            raise RaylabError(
                f"{self.path}: {self.experiment.model.name} judges whole files by their handcrafted features, not "
                "frames: use raylab.evaluate, or raylab.handcrafted.extract"
            )
        from raylab.data.augment import ClipTransform

        return ClipTransform.for_model(model, self.experiment.data, train=False, seed=0)


@dataclass(frozen=True)
class Run:
    """One training run, read from its folder at the moment of the call."""

    name: str
    sweep: str | None
    state: str
    epochs: int
    metric: str
    best: float | None
    seconds: float
    folder: RunFolder

    @classmethod
    def read(cls, folder: RunFolder) -> Run:
        history = folder.history()
        last: Mapping[str, Any] = history[-1] if history else {}
        return cls(
            name=folder.name,
            sweep=folder.info["sweep"],
            state=folder.status()["state"],
            epochs=last.get("epoch", 0),
            metric=folder.experiment.monitor,
            best=last.get("best"),
            seconds=last.get("seconds", 0.0),
            folder=folder,
        )

    @property
    def path(self) -> str:
        return str(self.folder.folder)

    @property
    def experiment(self) -> Experiment:
        return self.folder.experiment

    def history(self) -> pd.DataFrame:
        """One row an epoch."""
        import pandas as pd

        return pd.DataFrame(self.folder.history())

    def best_checkpoint(self, metric: str | None = None, mode: str | None = None) -> Checkpoint:
        """See `raylab.best_checkpoint`."""
        return _best(self.folder.folder, [self.folder], metric, mode)


def runs(storage: str | Path = DEFAULT_STORAGE) -> list[Run]:
    """Every run under a results folder, those of sweeps included, by name."""
    return [Run.read(run) for run in _run_folders(Folder.open(storage))]


def best_checkpoint(
    name: str | Path,
    metric: str | None = None,
    mode: str | None = None,
    storage: str | Path = DEFAULT_STORAGE,
) -> Checkpoint:
    """The best checkpoint of a sweep or a run, finished or still running.

    Args:
        name: a sweep's or run's name under `storage`, or the path or URI of its folder.
        metric: a validation metric, e.g. "val/verb_top1"; by default the one it was trained for.
        mode: "max" or "min"; by default as it was trained, or "min" for a loss.
        storage: the results folder, a path or a URI.

    Raises:
        RaylabError: there is no such sweep or run, it has no checkpoint yet, or none has that metric.
    """
    folder = locate(name, storage)
    sweep = SweepFolder(folder)
    candidates = sweep.runs() if sweep.exists() else [RunFolder(folder)]
    if not candidates:
        raise RaylabError(f"{folder}: no trial has started yet")
    return _best(folder, candidates, metric, mode)


def find_checkpoint(where: str | Path, storage: str | Path = DEFAULT_STORAGE) -> Checkpoint:
    """A checkpoint by its own folder, or the best one of a sweep or a run.

    Args:
        where: the path or URI of a checkpoint's folder, or what `best_checkpoint` takes.
        storage: the results folder, a path or a URI.

    Raises:
        RaylabError: there is no such checkpoint, sweep or run.
    """
    folder = Folder.open(where)
    return Checkpoint.open(folder) if folder.exists("checkpoint.json") else best_checkpoint(where, storage=storage)


def compare(
    names: str | Path | Sequence[str | Path],
    storage: str | Path = DEFAULT_STORAGE,
) -> pd.DataFrame:
    """Sweeps, runs and checkpoints side by side.

    Args:
        names: of each a sweep's or run's name under `storage`, the path or URI of its folder, or of a checkpoint's. Of
            a sweep its best trial counts; of that, and of a run, the best epoch.
        storage: the results folder, a path or a URI.

    Returns:
        One row for each name, in their order: `name`, `run`, `model`, `parameters` (how many it has, buffers not
        counted; nan where no checkpoint is there, or it is no network), `epoch`, all validation metrics of that epoch
        and their gaps, `seconds` of training up to it, `gpu_hours` and `clips_per_second`; and the settings in which
        they differ, by their dotted names.

    Raises:
        RaylabError: one is not there, or has no result yet.
    """
    import pandas as pd

    chosen = [names] if isinstance(names, str | Path) else list(names)
    found = [_side(name, storage) for name in chosen]
    experiments = [experiment for experiment, _ in found]
    paths = [path for path in settings(Experiment) if len({repr(e.get(path)) for e in experiments}) > 1]
    shown = [path for path in paths if path not in ("model.name", "train.monitor")]
    return pd.DataFrame([{**row, **{path: e.get(path) for path in shown}} for e, row in found])


def _side(name: str | Path, storage: str | Path) -> tuple[Experiment, dict[str, Any]]:
    """The experiment behind a name, and its row."""
    folder = Folder.open(name)
    if folder.exists(SEAL):
        checkpoint = Checkpoint.open(folder)
        run = RunFolder(Folder.open(str(folder).rstrip("/").rsplit("/", 2)[0]))
        info = run.info if run.exists() else {}
        history = [row for row in checkpoint.history() if row["epoch"] <= checkpoint.epoch]
        if not checkpoint.metrics or not history:
            raise RaylabError(f"{folder}: was written within an epoch and has no metrics: name another checkpoint")
        row = history[-1]
        weights: Folder | None = checkpoint.folder
        experiment, label = checkpoint.experiment, info.get("name", folder.name)
    else:
        place = locate(name, storage)
        sweep = SweepFolder(place)
        candidates = sweep.runs() if sweep.exists() else [RunFolder(place)]
        scored = [(run, run.history()) for run in candidates]
        scored = [(run, history) for run, history in scored if history]
        if not scored:
            raise RaylabError(f"{place}: no epoch of it has ended yet")
        sign = 1 if scored[0][0].experiment.train.mode == "max" else -1
        run, history = max(scored, key=lambda pair: sign * pair[1][-1]["best"])
        row = next(row for row in history if row["epoch"] == history[-1]["best_epoch"])
        history = history[: row["epoch"]]
        info, experiment, label = run.info, run.experiment, run.name
        best = run.best(experiment.monitor, experiment.train.mode)
        weights = best.folder if best else None
    metrics = {key: value for key, value in row.items() if key.startswith(("val/", "gap/"))}
    speeds = [past["clips_per_second"] for past in history if "clips_per_second" in past]
    return experiment, {
        "name": str(name),
        "run": label,
        "model": experiment.model.name,
        "parameters": count_parameters(weights) if weights else math.nan,
        "epoch": row["epoch"],
        **metrics,
        "seconds": row["seconds"],
        "gpu_hours": gpu_hours(info, row["seconds"]),
        "clips_per_second": sum(speeds) / len(speeds) if speeds else math.nan,
    }


def gpu_hours(info: Mapping[str, Any], seconds: float) -> float:
    """What a run's time is worth on the GPUs that it was given, by its `run.json`; nan where that does not say."""
    demand = info.get("demand")
    return seconds * demand["workers"] * demand["gpus"] / 3600 if demand else math.nan


_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def count_parameters(checkpoint: Folder) -> float:
    """How many parameters a network has, by the head of its weights' file; nan of what is no network."""
    if not checkpoint.exists(WEIGHTS):
        return math.nan
    with checkpoint.filesystem.open_input_file((checkpoint / WEIGHTS).path) as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = [entry["shape"] for name, entry in head.items() if name != "__metadata__" and not name.endswith(_BUFFERS)]
    return sum(math.prod(shape) for shape in shapes)


def how_to_load(name: str, storage: str | Path) -> str:
    """The Python that loads the best model of a sweep or a run."""
    where = "" if str(storage) == DEFAULT_STORAGE else f', storage="{storage}"'
    return f'import raylab; model = raylab.best_checkpoint("{name}"{where}).load_model()'


def _best(where: Folder, candidates: list[RunFolder], metric: str | None, mode: str | None) -> Checkpoint:
    experiment = candidates[0].experiment
    if metric in (None, experiment.monitor):
        metric, mode = experiment.monitor, mode or experiment.train.mode
    mode = mode or ("min" if metric.endswith("loss") else "max")
    if mode not in ("max", "min"):
        raise RaylabError(f'mode = {mode!r}: write "max" or "min"')
    every = [(run, checkpoint) for run in candidates for checkpoint in run.checkpoints() if checkpoint.metrics]
    if not every:
        raise RaylabError(f"{where}: no checkpoint with metrics yet")
    known = {name for _, c in every for name, value in c.metrics.items() if not math.isnan(value)}
    if metric not in known:
        raise unknown_name("metric", metric, known)
    scored = [(run, c) for run, c in every if not math.isnan(c.metrics.get(metric, math.nan))]
    sign = 1 if mode == "max" else -1
    run, best = max(scored, key=lambda pair: sign * pair[1].metrics[metric])
    return Checkpoint.open(best.folder, run.name)


def locate(name: str | Path, storage: str | Path | Folder = DEFAULT_STORAGE) -> Folder:
    """The folder of a sweep or run, by name under `storage`, or by its own path or URI.

    Raises:
        RaylabError: there is none.
    """
    parent = storage if isinstance(storage, Folder) else Folder.open(storage)
    places = [parent / str(name)] if "://" not in str(name) else []
    places.append(Folder.open(name))
    for folder in places:
        if folder.exists("sweep.json") or folder.exists("run.json"):
            return folder
    known = [f for f in parent.folders() if (parent / f).exists("sweep.json") or (parent / f).exists("run.json")]
    if known:
        raise unknown_name(f"sweep or run in {parent}", str(name), known)
    raise RaylabError(f"no sweep or run {str(name)!r}: {parent} holds none; name its folder, or set storage")


def _run_folders(storage: Folder) -> list[RunFolder]:
    found = []
    for name in storage.folders():
        run, sweep = RunFolder(storage / name), SweepFolder(storage / name)
        found += [run] if run.exists() else sweep.runs()
    return found


def runs_table(found: list[Run]) -> Table:
    """Runs for the terminal."""
    table = Table("run", "sweep", "state", "epochs", "metric", "best", "minutes")
    for run in found:
        best = "–" if run.best is None else f"{run.best:.4f}"
        names = (escape(run.name), escape(run.sweep or ""))
        table.add_row(*names, run.state, str(run.epochs), run.metric, best, f"{run.seconds / 60:.1f}")
    return table


def results(
    name: Annotated[str | None, typer.Argument(help="A sweep or a run; all when left out.")] = None,
    storage: Annotated[str, typer.Option(help="Results folder: a path or a URI.")] = DEFAULT_STORAGE,
) -> None:
    """List runs, or show one sweep's leaderboard.

    Example: raylab results epic_phase2
    """
    if name is None:
        found = runs(storage)
        nothing = f"no runs under {escape(storage)} yet; start one with raylab tune"
        console.print(runs_table(found) if found else nothing)
        return
    sweep = SweepFolder(locate(name, storage))
    if sweep.exists():
        from raylab.sweeps.tables import leaderboard_table

        console.print(leaderboard_table(sweep.leaderboard(), sweep.space))
        if sweep.space.cross_validated:
            console.print(f"over folds: raylab report {escape(name)}")
    else:
        console.print(runs_table([Run.read(RunFolder(sweep.folder))]))


if __name__ == "__main__":
    run_verb(results)
