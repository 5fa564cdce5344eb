"""What the best checkpoint says of the validation clips: figures, classes taken for others. Kept beside the trials."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raylab.data.datasets import load_annotations
from raylab.errors import RaylabError
from raylab.evaluation.comparison import Comparison
from raylab.reporting.subject import Subject
from raylab.results import Checkpoint

if TYPE_CHECKING:
    import pandas as pd

FILE = "judgement.json"
FORMAT = 1
ON_CPU = 1000
"""Validation clips up to which a CPU judges without being asked to."""


@dataclass(frozen=True)
class Judged:
    """What one model was found to be worth.

    Attributes:
        trial: whose checkpoint it is.
        epoch: of the checkpoint.
        clips: how many were judged.
        figures: by name; None where nothing counts.
        names: head → class names.
        confusion: head → `[true class, class it was taken for, clips]`, of pairs that occur; empty of keyframes.
        videos: of keyframes, one row a video; else empty.
    """

    trial: str
    epoch: int
    clips: int
    figures: dict[str, float | None]
    names: dict[str, list[str]]
    confusion: dict[str, list[list[int]]]
    videos: list[dict[str, Any]]


def judged(subject: Subject, wanted: bool | None = None, cluster: bool = False) -> tuple[Judged | None, str]:
    """What the best checkpoint is worth, from `judgement.json` or else found out and written there.

    Args:
        subject: of which the best checkpoint counts.
        wanted: True: judge it whatever that costs; False: only read what is known; None: judge where there is a GPU or
            the validation clips are few (`ON_CPU`).
        cluster: judge as a job of the cluster at hand rather than in this process.

    Returns:
        The judgement, or None and why there is none.
    """
    found = subject.checkpoint()
    if found is None:
        return None, "no checkpoint with metrics is left."
    trial, info = found
    key = f"{FORMAT}/{trial.name}/{info.folder.name}"
    try:
        kept = subject.folder.read_json(FILE)
        if kept.pop("checkpoint") == key:
            return Judged(**kept), ""
    except (FileNotFoundError, RaylabError, TypeError, KeyError, AttributeError):
        pass  # made again below
    again = f"judge it by: raylab report {subject.name} --judge"
    if wanted is False:
        return None, f"its best checkpoint has not been judged; {again}"
    job = _Job(Checkpoint.open(info.folder, trial.name))
    try:
        if wanted is None and not _affordable(job, cluster):
            return None, f"this machine has no GPU and there are more than {ON_CPU:,} validation clips; {again}"
        result = _on_cluster(job, subject) if cluster else job()
    except RaylabError as error:
        return None, f"its best checkpoint could not be judged here: {error}"
    subject.folder.write_json(FILE, {"checkpoint": key, **result})
    return Judged(**result), ""


def of_folds(compared: Comparison, subject: Subject) -> Judged | None:
    """What the best model of a cross-validation says of each clip it was not trained on; None if that is unknown."""
    from raylab.tasks.classification import only_head, positive_class

    figure, trial = subject.figure, subject.best
    if compared.scores.empty or figure not in compared.figures or trial is None:
        return None
    best = compared.models.loc[compared.models[f"{figure}_mean"].idxmax()]
    rows: pd.DataFrame = compared.scores[compared.scores["model"] == best["model"]]
    checkpoint = subject.checkpoint()
    if checkpoint is None:
        return None
    labels = Checkpoint.open(checkpoint[1].folder).labels
    head = only_head(labels)
    positive = positive_class(labels[head], trial.experiment.classification.positive)
    if positive is None:
        return None
    true = np.where(rows["positive"], positive, 1 - positive)
    said = np.where(rows["score"] > 0, positive, 1 - positive)
    figures: dict[str, float | None] = {name: float(best[f"{name}_mean"]) for name in compared.figures}
    return Judged(str(best["model"]), 0, len(rows), figures, labels, {head: _pairs(true, said)}, [])


@dataclass(frozen=True)
class _Job:
    checkpoint: Checkpoint

    def __call__(self) -> dict[str, Any]:
        from raylab.evaluate import judge

        found = judge(self.checkpoint)
        predictions, scores = found.predictions["val"], found.scores["val"]
        table = load_annotations(self.checkpoint.experiment.data, ("val",)).splits["val"].clips
        confusion = {}
        if self.checkpoint.labels:
            labels = {clip.id: clip.labels for clip in table}
            for head in self.checkpoint.labels:
                true = np.array([labels[id][head] for id in predictions.ids])
                confusion[head] = _pairs(true, predictions.values[head].argmax(1))
        figures = {name: None if value != value else value for name, value in scores.figures().items()}
        return {
            "trial": self.checkpoint.run,
            "epoch": self.checkpoint.epoch,
            "clips": len(predictions.ids),
            "figures": figures,
            "names": self.checkpoint.labels,
            "confusion": confusion,
            "videos": scores.parts().get("videos", []),
        }


def _pairs(true: np.ndarray[Any, Any], said: np.ndarray[Any, Any]) -> list[list[int]]:
    pairs, counts = np.unique(np.stack([true, said]), axis=1, return_counts=True)
    return [[int(a), int(b), int(count)] for (a, b), count in zip(pairs.T, counts, strict=True)]


def _affordable(job: _Job, cluster: bool) -> bool:
    import torch

    if cluster:
        from raylab.cluster.connect import connect

        if any(node.get("GPU", 0) for node in connect()):
            return True
    elif torch.cuda.is_available():
        return True
    return len(load_annotations(job.checkpoint.experiment.data, ("val",)).splits["val"].clips) <= ON_CPU


def _on_cluster(job: _Job, subject: Subject) -> dict[str, Any]:
    from raylab.cluster.capacity import Demand
    from raylab.cluster.connect import connect
    from raylab.cluster.spread import spread

    nodes = connect()
    resources = job.checkpoint.experiment.resources.model_copy(update={"workers": 1})
    demand = Demand.of(resources, nodes).within(nodes)
    (result,) = spread(_Job.__call__, [job], demand.cpus, demand.gpus)
    return result
