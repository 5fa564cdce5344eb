"""Model cards: what a checkpoint's own records say of it."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from raylab.errors import RaylabError
from raylab.models.registry import find_model
from raylab.results import Checkpoint
from raylab.schema import settings
from raylab.storage import Folder

CLASSES = 12  # named on a card


def card(checkpoint: Checkpoint, parameters: int | None) -> dict[str, Any]:
    """What a page shows of a checkpoint; of paths, their last parts alone.

    Args:
        checkpoint: a complete one.
        parameters: how many numbers it has learned; None where that is not known.

    Returns:
        `name`, `about` (rows of two texts), `classes` (head → names, the first of them), `metrics` and `settings`.
    """
    experiment, run = checkpoint.experiment, _run(checkpoint)
    data = experiment.data
    split = f"{data.split}, fold {data.fold}" if data.split in ("stratified", "participant") else data.split
    versions = ", ".join(f"{name} {version}" for name, version in run.get("versions", {}).items())
    model = find_model(experiment.model.name)
    looks = "handcrafted features of them" if model.handcrafted else f"{data.size} × {data.size} pixels"
    known = run.get("data", {})
    clips = ", ".join(f"{known[split]:,} {split}" for split in ("train", "val") if isinstance(known.get(split), int))
    about = {
        "Run": checkpoint.name,
        "Model": experiment.model.name,
        "From": model.source,
        "Task": experiment.task,
        "Parameters": f"{parameters:,}" if parameters else None,
        "Trained on": data.dataset
        if data.dataset.startswith("kitchen")
        else f"{data.dataset}, {_last(str(data.root))}",
        "Clips": clips,
        "Split": split,
        "Epochs": str(checkpoint.epoch),
        "Looks at": f"{data.frames} frames, {looks}",
        "Made": run.get("created", "").replace("T", " ").replace("+00:00", " UTC"),
        "Versions": versions,
    }
    return {
        "name": checkpoint.name,
        "about": [[name, value] for name, value in about.items() if value],
        "classes": {head: {"count": len(names), "first": names[:CLASSES]} for head, names in checkpoint.labels.items()},
        "metrics": dict(sorted(checkpoint.metrics.items())),
        "settings": {path: _shown(path, experiment.get(path)) for path in settings(type(experiment))},
    }


def _run(checkpoint: Checkpoint) -> dict[str, Any]:
    """The record of the run that a checkpoint lies in; empty where it has been copied out of it."""
    folder = checkpoint.folder
    with suppress(OSError, RaylabError, AttributeError):
        parent = folder.path.rstrip("/").rpartition("/")[0].rpartition("/")[0]
        record: dict[str, Any] = Folder(folder.filesystem, parent).read_json("run.json")
        return record
    return {}


def _shown(path: str, value: Any) -> str:
    text = str(value)
    return _last(text) if path.endswith(("root", "store", "weights", "checkpoint")) else text


def _last(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
