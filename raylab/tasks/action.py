"""Multi-task action recognition: one clip in, a class for each head (EPIC: verb and noun) out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from raylab.config import LossConfig
from raylab.tasks.base import Task, TaskOutput


class ActionTask(Task):
    """Cross-entropy on every head, averaged by weight.

    Args:
        model: clips float (B, T, 3, H, W) → head → logits (B, classes).
        heads: head name → number of classes.
        loss: label smoothing and head weights.
    """

    def __init__(self, model: nn.Module, heads: Mapping[str, int], loss: LossConfig) -> None:
        super().__init__(model)
        self.heads = dict(heads)
        self.loss = loss
        self.loss_names = [f"{head}_loss" for head in heads]
        self.metric_names = ActionAccuracy(heads).names

    def forward(self, batch: Mapping[str, Any]) -> TaskOutput:
        logits = self.predict(batch["video"])
        losses = {
            head: F.cross_entropy(logits[head].float(), labels, label_smoothing=self.loss.label_smoothing)
            for head, labels in batch["labels"].items()
        }
        total = torch.stack([self.loss.weights.get(head, 1.0) * value for head, value in losses.items()]).sum()
        return TaskOutput(
            loss=total,
            losses={f"{head}_loss": value.detach() for head, value in losses.items()},
            predictions={head: value.detach() for head, value in logits.items()},
        )

    def metrics(self, split: str = "val") -> Metric:
        return ActionAccuracy(self.heads)


class ActionAccuracy(Metric):
    """Top-1 and top-5 accuracy of each head, and `action_top1`: every head right at once.

    Counts only, so the sums over workers are exact and no clip weighs more than another. A head with
    fewer than five classes reports top-1 alone.
    """

    full_state_update = False
    clips: Tensor
    correct: Tensor

    def __init__(self, heads: Mapping[str, int]) -> None:
        super().__init__()
        self.ks = {head: [k for k in (1, 5) if k <= classes] for head, classes in heads.items()}
        self.names = [f"{head}_top{k}" for head, ks in self.ks.items() for k in ks] + ["action_top1"]
        self.add_state("clips", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum", persistent=True)
        self.add_state("correct", torch.zeros(len(self.names), dtype=torch.long), dist_reduce_fx="sum", persistent=True)

    def update(self, predictions: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
        """Add a batch: head → logits (B, classes), head → int64 (B,)."""
        counts: list[Tensor] = []
        action: Tensor | None = None
        for head, ks in self.ks.items():
            hits = predictions[head].topk(ks[-1]).indices == labels[head][:, None]
            counts += [hits[:, :k].any(1).sum() for k in ks]
            action = hits[:, 0] if action is None else action & hits[:, 0]
        assert action is not None  # noqa: S101 - a task has at least one head
        self.correct += torch.stack([*counts, action.sum()])
        self.clips += len(action)

    def compute(self) -> dict[str, Tensor]:
        """Name → accuracy in [0, 1]."""
        return dict(zip(self.names, self.correct / self.clips.clamp(min=1), strict=True))
