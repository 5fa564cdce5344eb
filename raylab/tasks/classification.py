"""Classification with one head: a clip in, one of a few classes out (AURA: real or generated)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from raylab.config import Experiment
from raylab.data.clips import Dataset
from raylab.errors import RaylabError, unknown_name
from raylab.models.registry import build_model
from raylab.tasks.action import ActionTask
from raylab.tasks.base import TaskOutput

DETECTED = "generated"
"""Of two classes, the one of this name is what is to be detected: the positive one, unless a setting says otherwise."""


class ClassificationTask(ActionTask):
    """Cross-entropy on one head; with a model of one logit (`OneLogit`) that is binary cross-entropy.

    What decides which checkpoint is best is `val/accuracy`: it means the same for any classes, while F1 is as high as
    2/3 for a model that calls everything positive where half of it is.

    Args:
        experiment: `model`, `loss` and `classification`.
        labels: head → class names, of one head.
        checkpoint: the folder of a checkpoint that will fill the model's weights.

    Raises:
        RaylabError: there is more than one head, or the positive class is not one of two.
    """

    def __init__(
        self, experiment: Experiment, labels: Mapping[str, Sequence[str]], checkpoint: Path | None = None
    ) -> None:
        self.head = only_head(labels)
        names = labels[self.head]
        heads = {self.head: len(names)}
        positive = positive_class(names, experiment.classification.positive)
        super().__init__(build_model(experiment.model, heads, checkpoint=checkpoint), heads, experiment.loss)
        self.positive = positive
        self.places: dict[str, int] = {}
        self.metric_names = ClassificationMetrics(self.head, len(names), positive, 0).names

    def watch(self, dataset: Dataset) -> None:
        ids = [id for split in dataset.splits.values() for id in split.clips.column("id").to_pylist()]
        self.places = {id: place for place, id in enumerate(dict.fromkeys(ids))}

    def forward(self, batch: Mapping[str, Any]) -> TaskOutput:
        """Loss and predictions of a batch; of a data set that is watched, `clip` is int64 (B,): its clips' places."""
        output = super().forward(batch)
        if self.places:
            places = [self.places[id] for id in batch["ids"]]
            output.predictions["clip"] = torch.tensor(places, device=output.loss.device)
        return output

    def metrics(self, split: str = "val") -> Metric:
        """Figures of some clips of the data set that is watched, whatever the split."""
        return ClassificationMetrics(self.head, self.heads[self.head], self.positive, len(self.places))


def only_head(labels: Mapping[str, Any]) -> str:
    """The one head there is.

    Raises:
        RaylabError: there are others.
    """
    if len(labels) != 1:
        raise RaylabError(
            f"task = classification: one head, but the data has {len(labels)} ({', '.join(labels)}): "
            "set data.dataset=metadata, or task=action"
        )
    return next(iter(labels))


def positive_class(names: Sequence[str], chosen: str | None) -> int | None:
    """The class that precision, recall and F1 are of; None where they are means over classes.

    Args:
        names: of the classes, by index.
        chosen: one of them, or None: of two `DETECTED`, else the second.

    Raises:
        RaylabError: there is no such class, or there are not two.
    """
    if chosen is None:
        return (names.index(DETECTED) if DETECTED in names else 1) if len(names) == 2 else None
    if chosen not in names:
        raise unknown_name("class (classification.positive)", chosen, names)
    if len(names) != 2:
        raise RaylabError(
            f"classification.positive = {chosen}: of {len(names)} classes precision, recall and F1 are means over all: "
            "set classification.positive=null"
        )
    return names.index(chosen)


class ClassificationMetrics(Metric):
    """Figures of `figures`, and of two classes `roc_auc`.

    Counts, and each clip's score at its place, so that sums over workers are exact. A clip is counted once: what is
    added again in the same epoch is an error of the caller.

    Args:
        head: that is judged.
        classes: of it.
        positive: as `positive_class` gives it.
        clips: of the data set.
    """

    full_state_update = False
    confusion: Tensor
    margins: Tensor
    given: Tensor

    def __init__(self, head: str, classes: int, positive: int | None, clips: int) -> None:
        super().__init__()
        self.head, self.classes, self.positive = head, classes, positive
        self.names = ["accuracy", "precision", "recall", "f1"] + ["roc_auc"] * (classes == 2)
        places = clips if classes == 2 else 0
        states = {
            "confusion": torch.zeros(classes, classes, dtype=torch.long),  # given by predicted
            "margins": torch.zeros(places),  # logit of the second class less that of the first
            "given": torch.zeros(places, 2, dtype=torch.long),  # one-hot; of a clip not seen nothing
        }
        for name, state in states.items():
            self.add_state(name, state, dist_reduce_fx="sum", persistent=True)

    def update(self, predictions: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
        """Add a batch: head → logits (B, classes), `clip` int64 (B,), places in the data set; head → int64 (B,)."""
        logits, given = predictions[self.head], labels[self.head]
        cells = given * self.classes + logits.argmax(1)
        self.confusion.view(-1).index_add_(0, cells, torch.ones_like(cells))
        if self.classes == 2:
            logits, at = logits.float(), predictions["clip"]
            self.margins[at] = logits[:, 1] - logits[:, 0]
            self.given[at, given] = 1

    def compute(self) -> dict[str, Tensor]:
        """Name → figure in [0, 1]; `roc_auc` is nan where a class does not occur."""
        found = figures(self.confusion.cpu().numpy(), self.positive)
        if self.positive is not None:
            given = self.given.cpu().numpy()
            seen = given.any(1)
            sign = 1 if self.positive == 1 else -1
            scores = sign * self.margins.cpu().numpy()[seen].astype(np.float64)
            found["roc_auc"] = roc_auc(given[seen, self.positive] == 1, scores)
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in found.items()}


def figures(confusion: NDArray[np.int64], positive: int | None) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of counted clips.

    Args:
        confusion: clips of each class (rows) by what they were taken for (columns).
        positive: the class that precision, recall and F1 are of; None for their means over the classes that occur or
            were predicted.

    Returns:
        By name, in [0, 1]; 0 where nothing is divided by.
    """
    right, given, said = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    of = np.flatnonzero(given + said) if positive is None else np.array([positive])
    rates = {
        "precision": right / np.maximum(said, 1),
        "recall": right / np.maximum(given, 1),
        "f1": 2 * right / np.maximum(given + said, 1),
    }
    means = {name: float(rate[of].mean()) if len(of) else 0.0 for name, rate in rates.items()}
    return {"accuracy": float(right.sum() / max(confusion.sum(), 1)), **means}


def roc_auc(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """The chance that a positive clip scores higher than one that is not, ties by half; nan where there are not both.

    Args:
        positive: (N,).
        scores: (N,), higher for what is taken to be positive.
    """
    if positive.all() or not positive.any():
        return float("nan")
    from sklearn.metrics import roc_auc_score  # imported only where it is used: it takes a second

    return float(roc_auc_score(positive, scores))
