"""Keyframe models judged by annotators' scores, and what their figures are to be held against.

Correlation with single annotators has a ceiling far below 1, since these disagree: a model's figures say little without
those of humans and of the annotators' own mean beside them. Source of both: M. Otani et al., "Rethinking the Evaluation
of Video Summaries", CVPR 2019, and https://github.com/mayu-ot/rethinking-evs. On TVSum's 50 videos they find for humans
τ 0.177 and ρ 0.204, from every frame; samples at 2 a second give the same to three digits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from raylab.config import DataConfig, Experiment
from raylab.data.clips import Clip, Dataset
from raylab.data.dataset import Batch, ClipDataset
from raylab.data.importance import Importance
from raylab.data.loader import EvalBatches, make_loader
from raylab.evaluation.judgement import Scores
from raylab.evaluation.predictions import Outputs, Predictions, Views, autocast, precision_on
from raylab.evaluation.tables import video_table
from raylab.tasks.importance_metrics import average, figures, join, kendall, known_mean, spearman

if TYPE_CHECKING:
    from rich.table import Table

FIGURE = "spearman_mean"
DRAWS = 20
"""Random scorings of each video, averaged: on TVSum, ρ of one strays by 0.004, against the mean score by 0.007."""

PAIRED = {"spearman": spearman, "kendall": kendall}

Seen = NDArray[np.bool_]
Figures = dict[str, float]


@dataclass(frozen=True)
class ImportanceScores(Scores):
    """Figures of one model that scores frames.

    Attributes:
        videos: `{"video": id, "category": …, "samples": scored, name: figure, …}` of each; figures as
            `raylab.tasks.importance_metrics.figures` gives them.
    """

    clips: int
    left_out: int
    videos: list[dict[str, Any]]
    percent: ClassVar[bool] = False
    less: ClassVar[frozenset[str]] = frozenset({"mse"})

    def figures(self) -> Figures:
        """Means over videos."""
        return average(self.videos)

    def parts(self) -> dict[str, Any]:
        """`videos`."""
        return {"videos": self.videos}

    def tables(self) -> list[Table]:
        """One."""
        return [video_table(self.videos)]

    @property
    def extent(self) -> str:
        """Videos, and frames scored."""
        return f"{len(self.videos):,} videos, {sum(row['samples'] for row in self.videos):,} frames"


@torch.no_grad()
def say_importance(model: nn.Module, experiment: Experiment, batch: Batch, views: Views) -> Outputs:
    """`importance` → the scores of the windows of a batch, (B, T)."""
    video = batch["video"]
    with autocast(video.device, precision_on(video.device, experiment)):
        scores = model(video, batch["mask"])["importance"]
    return {"importance": scores.float().cpu().numpy()}


def mean_score(members: list[NDArray[np.float64]]) -> NDArray[np.float32]:
    """The mean of what several models say."""
    return np.mean(members, 0).astype(np.float32)


def score(predictions: Predictions, dataset: Dataset, split: str, config: DataConfig) -> ImportanceScores:
    """Judge scores of windows by the annotators of their videos.

    Args:
        predictions: of some or all clips of the split.
        dataset: with the importance of their videos.
        split: which of its splits.
        config: `fps` is used.
    """
    by_id: dict[str, Clip] = {clip.id: clip for clip in dataset.splits[split].clips}
    clips = [by_id[id] for id in predictions.ids]
    whole = join(clips, predictions.values["importance"], dataset.importance, config.fps)
    rows = [
        _row(video, dataset.importance[video], seen, figures(scores, dataset.importance[video], seen))
        for video, (scores, seen) in whole.items()
    ]
    return ImportanceScores(len(clips), len(by_id) - len(clips), rows)


def human(video: str, importance: Importance, seen: Seen) -> Figures:
    """Each annotator judged by the others as a model is, averaged over the annotators."""
    rows = [figures(own, _others(importance, one), seen) for one, own in enumerate(importance.scores)]
    pairs, itself = importance.scores[:, seen], np.eye(len(importance.scores), dtype=bool)
    by_pairs = {f"{name}_annotators": measure(pairs, pairs) for name, measure in PAIRED.items()}
    return {**average(rows), **{name: known_mean(found[~itself]) for name, found in by_pairs.items()}}


def _others(importance: Importance, one: int) -> Importance:
    """All annotators but one, by their mean score and their summaries alone."""
    return replace(
        importance,
        scores=importance.scores[:0],
        summaries=np.delete(importance.references, one, 0),
        published_mean=np.delete(importance.scores, one, 0).mean(0),
    )


def oracle(video: str, importance: Importance, seen: Seen) -> Figures:
    """The mean annotator, judged by all of them: no model that ranks as they do on average can be closer to each."""
    return figures(importance.mean, importance, seen)


def chance(video: str, importance: Importance, seen: Seen) -> Figures:
    """Random scores, uniform in [0, 1]; the mean over `DRAWS` of them, which the video's id decides."""
    draws = np.random.default_rng([*video.encode()]).random((DRAWS, len(seen)))
    return figures(draws, importance, seen)


REFERENCES: dict[str, Callable[[str, Importance, Seen], Figures]] = {
    "human": human,
    "oracle": oracle,
    "random": chance,
}
"""What needs annotations alone."""


def references(dataset: Dataset, splits: Sequence[str], config: DataConfig) -> dict[str, ImportanceScores]:
    """Figures of each of `REFERENCES` on the windows of some splits together.

    Args:
        dataset: with the importance of their videos; sources are not needed.
        splits: of the data set.
        config: `fps` is used.
    """
    clips = [clip for split in splits for clip in dataset.splits[split].clips]
    windows = join(clips, np.zeros((len(clips), config.frames), np.float32), dataset.importance, config.fps)
    found = {}
    for name, judge in REFERENCES.items():
        known = ((video, dataset.importance[video], seen) for video, (_, seen) in windows.items())
        rows = [_row(video, importance, seen, judge(video, importance, seen)) for video, importance, seen in known]
        found[name] = ImportanceScores(len(clips), 0, rows)
    return found


def frame_differences(dataset: Dataset, split: str, config: DataConfig) -> Predictions:
    """The simplest use of the pixels: how much each sample differs from the one before it.

    The score is the mean absolute difference, of pixels in [0, 1]. The first sample of a window has the score of the
    second.

    Args:
        dataset: with sources, or a clip store.
        split: of the data set.
        config: how windows are sampled and loaded.
    """
    config = config.model_copy(update={"jpeg": "cpu"})
    clips = ClipDataset.of(dataset, split, config)
    batches = EvalBatches(len(clips), batch_size=1, rank=0, world_size=1)
    parts = []
    for number, batch in enumerate(make_loader(clips, batches, config, pin=False)):
        video, both = batch["video"], batch["mask"][:, 1:]
        scores = torch.zeros(batch["mask"].shape)
        for row, clip in zip(scores, video, strict=True):
            pixels = clip.float()
            row[1:] = (pixels[1:] - pixels[:-1]).abs().mean((1, 2, 3)) / 255
        scores[:, 1:] *= both
        scores[:, :1] = scores[:, 1:2]
        parts.append((number, Predictions(batch["ids"], {"importance": scores.numpy()})))
    return Predictions.join(parts)


def _row(video: str, importance: Importance, seen: Seen, found: Mapping[str, float]) -> dict[str, Any]:
    return {"video": video, "category": importance.category, "samples": int(seen.sum()), **found}
