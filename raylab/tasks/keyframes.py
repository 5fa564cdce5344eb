"""Keyframe detection: a window of a video in, the importance of each of its frames out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from raylab.config import Experiment
from raylab.data.clips import Dataset
from raylab.errors import RaylabError
from raylab.models.dual_attention import ImportanceModel
from raylab.models.registry import build_model
from raylab.tasks.base import Task, TaskOutput
from raylab.tasks.importance_metrics import FIGURES, ImportanceMetrics
from raylab.tasks.ranking import soft_spearman


class KeyframesTask(Task):
    """Rank the frames of each window as the annotators' mean score does.

        loss = ranking_weight · (1 − soft Spearman's ρ) + mse_weight · squared error

    Both are means over windows, of whatever length. The ranking loss compares frames of one window alone, and has no
    gradient where the annotators rank nothing.

    Args:
        experiment: `model`, `keyframes` and `data`.
        checkpoint: the folder of a checkpoint that will fill the model's weights.

    Raises:
        RaylabError: the model is not one that scores frames, or nothing has a weight.
    """

    model: ImportanceModel

    def __init__(self, experiment: Experiment, checkpoint: Path | None = None) -> None:
        model = build_model(experiment.model, {}, checkpoint=checkpoint)
        if not isinstance(model, ImportanceModel):
            raise RaylabError(f"model.name = {experiment.model.name}: gives no score to each frame: see raylab models")
        super().__init__(model)
        config = experiment.keyframes
        weights = {"ranking": config.ranking_weight, "mse": config.mse_weight}
        self.weights = {term: weight for term, weight in weights.items() if weight}
        if not self.weights:
            raise RaylabError("keyframes: every weight is 0: nothing is left to learn from")
        self.data, self.softness = experiment.data, config.softness
        self.dataset: Dataset | None = None
        self.loss_names = [f"{term}_loss" for term in self.weights]
        self.metric_names = list(FIGURES)

    def watch(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def forward(self, batch: Mapping[str, Any]) -> TaskOutput:
        """Loss and predictions of a batch.

        Args:
            batch: what `see` needs; `mask`, bool (B, T), false for padding; `labels`: `importance`, float (B, T), the
                annotators' mean score.
        """
        scores = self.model(self.see(batch), batch["mask"])["importance"]
        terms = self.terms(scores, batch["labels"]["importance"], batch["mask"])
        return TaskOutput(
            loss=torch.stack([weight * terms[term] for term, weight in self.weights.items()]).sum(),
            losses={f"{term}_loss": terms[term].detach() for term in self.weights},
            predictions={"importance": scores.detach()},
        )

    def encode(self, video: Tensor, mask: Tensor | None) -> Tensor:
        return self.model.features(video, mask)

    def terms(self, scores: Tensor, targets: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The terms of the loss, of float (B, T) scores and targets, and a bool (B, T) mask."""
        squares = (scores - targets).square() * mask
        return {
            "ranking": 1 - soft_spearman(scores, targets, mask, self.softness).mean(),
            "mse": (squares.sum(1) / mask.sum(1).clamp(min=1)).mean(),
        }

    def metrics(self, split: str = "val") -> Metric:
        """Figures of a split of the data set that is watched."""
        assert self.dataset is not None  # noqa: S101 - the loop shows it before it asks
        clips = self.dataset.splits[split].clips
        return ImportanceMetrics(clips, self.dataset.importance, self.data.fps, self.data.frames)
