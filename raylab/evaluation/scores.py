"""Figures of predictions, as the EPIC-KITCHENS-100 action recognition challenge defines them.

Source: D. Damen et al., "Rescaling Egocentric Vision: Collection, Pipeline and Challenges for EPIC-KITCHENS-100",
IJCV 2022, section 4.1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import nan, prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raylab.data.clips import Clip, Dataset
from raylab.evaluation.judgement import Scores
from raylab.evaluation.predictions import Predictions
from raylab.evaluation.tables import class_tables

if TYPE_CHECKING:
    from rich.table import Table

ACTION = "action"
K = 5
PAIRS = 100  # pairs of classes that are ranked: as many as a submission to the challenge holds

Ranks = NDArray[np.int64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class ClassScores(Scores):
    """Figures of one model that classifies. Accuracies lie in [0, 1]; nan where no clip counts.

    Attributes:
        accuracy: `verb_top1`, `verb_top5`, …, `action_top1`, `action_top5`; no top-5 of fewer than five classes, and no
            action where there is one head.
        unseen: `verb_top1`, …, of clips whose participant is not in the training set; None where that is not known.
        tail: `verb_top1`, …: of clips of a tail verb; of a tail noun; for the action, of either. None where unknown.
        class_mean: `verb`, …: the mean over all classes that occur of their top-1 accuracies.
        classes: head → one row for each class that occurs: `{"class": index, "name": …, "clips": …, "top1": …}`.
    """

    clips: int
    left_out: int
    accuracy: dict[str, float]
    unseen: dict[str, float] | None
    tail: dict[str, float] | None
    class_mean: dict[str, float]
    classes: dict[str, list[dict[str, Any]]]

    def figures(self) -> dict[str, float]:
        """All but the classes' own, by one name each: `action_top1`, `unseen/…`, `tail/…`, `class_mean/…`."""
        parts = {"unseen": self.unseen or {}, "tail": self.tail or {}, "class_mean": self.class_mean}
        more = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        return {**self.accuracy, **more}

    def parts(self) -> dict[str, Any]:
        """Head → rows, as `classes`."""
        return {"classes": self.classes}

    def tables(self) -> list[Table]:
        """One of each head."""
        return class_tables(self.classes)


def first_figure(heads: Iterable[str]) -> str:
    """What models are judged by first: `action_top1`, or with one head the top-1 accuracy of that."""
    names = list(heads)
    return f"{ACTION if len(names) > 1 else names[0]}_top1"


def score(predictions: Predictions, dataset: Dataset, split: str) -> ClassScores:
    """Judge predictions by the labels of a split.

    The score of an action is the product of the probabilities of its classes (EPIC: verb and noun), ranked over all
    combinations; one head alone makes no action. Classes that tie are ranked by index, the lowest first, so that a
    model that says the same of all classes gains nothing from that.

    Args:
        predictions: of some or all clips of the split.
        dataset: with labels, and where they are known `unseen` and `tail`.
        split: which of its splits.
    """
    by_id: dict[str, Clip] = {clip.id: clip for clip in dataset.splits[split].clips}
    clips = [by_id[id] for id in predictions.ids]
    labels = {head: np.array([clip.labels[head] for clip in clips], np.int64) for head in dataset.heads}
    hits = {head: rank(values) == labels[head][:, None] for head, values in predictions.values.items()}
    counts = dict(dataset.heads)
    if len(counts) > 1:
        hits[ACTION] = action_hits(predictions, labels)
        counts[ACTION] = prod(counts.values())
    unseen = np.array([clip.group in dataset.unseen for clip in clips], bool)
    tail = {head: np.isin(labels[head], list(rare)) for head, rare in dataset.tail.items()}
    if tail and ACTION in hits:
        tail[ACTION] = np.logical_or.reduce(list(tail.values()))
    classes = {head: _by_class(hits[head], labels[head], dataset.labels[head]) for head in dataset.heads}
    return ClassScores(
        clips=len(clips),
        left_out=len(by_id) - len(clips),
        accuracy={
            f"{head}_top{k}": _mean(found[:, :k].any(1))
            for head, found in hits.items()
            for k in (1, K)
            if k <= counts[head]
        },
        unseen={f"{head}_top1": _mean(hits[head][unseen, 0]) for head in hits} if dataset.unseen else None,
        tail={f"{head}_top1": _mean(hits[head][rare, 0]) for head, rare in tail.items()} if tail else None,
        class_mean={head: _mean(np.array([row["top1"] for row in rows])) for head, rows in classes.items()},
        classes=classes,
    )


def rank(values: NDArray[np.float32], k: int = K) -> Ranks:
    """The `k` highest classes of each row, int64 (N, k), ties by index; fewer where there are fewer."""
    order: Ranks = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return order


def rank_actions(log_probabilities: Mapping[str, NDArray[np.float32]], k: int) -> tuple[dict[str, Ranks], NDArray[Any]]:
    """The `k` highest combinations of one class of each head.

    A combination among the k highest is made of classes among the k highest of their heads: only these are combined.

    Returns:
        Head → the class of each, int64 (N, k); and their scores, the products of probabilities, float64 (N, k).
    """
    best = {head: rank(values, k) for head, values in log_probabilities.items()}
    total = np.zeros((len(next(iter(best.values()))), 1))
    places: dict[str, Ranks] = {}
    for head, ranks in best.items():
        own = np.take_along_axis(log_probabilities[head].astype(np.float64), ranks, axis=1)
        joined = (total[:, :, None] + own[:, None, :]).reshape(len(own), -1)
        kept = np.argsort(-joined, axis=1, kind="stable")[:, :k]
        places = {known: np.take_along_axis(at, kept // own.shape[1], axis=1) for known, at in places.items()}
        places[head] = np.take_along_axis(ranks, kept % own.shape[1], axis=1)
        total = np.take_along_axis(joined, kept, axis=1)
    return places, np.exp(total)


def action_hits(predictions: Predictions, labels: Mapping[str, Labels]) -> NDArray[np.bool_]:
    """Whether each of the `K` highest combinations is right in every head, (N, K)."""
    places, _ = rank_actions(predictions.values, K)
    return np.logical_and.reduce([at == labels[head][:, None] for head, at in places.items()])


def _by_class(hits: NDArray[np.bool_], labels: Labels, names: list[str]) -> list[dict[str, Any]]:
    return [
        {"class": int(at), "name": names[at], "clips": int((labels == at).sum()), "top1": _mean(hits[labels == at, 0])}
        for at in np.unique(labels)
    ]


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean()) if len(values) else nan
