"""What every task offers the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

if TYPE_CHECKING:
    from raylab.data.augment import ClipTransform
    from raylab.data.clips import Dataset
    from raylab.data.outputs import OutputCache

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class TaskOutput:
    """What one batch gives.

    Attributes:
        loss: scalar to minimise, the mean over the batch's clips.
        losses: its named parts, scalars without gradient.
        predictions: head name → logits (B, classes), without gradient, and what else the task's metrics need.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    predictions: dict[str, Tensor]


class Task(nn.Module, ABC):
    """A trainable `model`, its loss and its metrics.

    What else a task holds (frozen teachers) is neither trained nor saved.

    Args:
        model: the result: what is saved, and evaluated alone.
        trained: what a training step goes through, if more than the model.
        auxiliary: the part of it that serves the loss alone, saved apart from the model.

    Attributes:
        loss_names: the names of `TaskOutput.losses`.
        metric_names: the names that `metrics().compute()` gives.
    """

    model: nn.Module
    trained: nn.Module
    auxiliary: nn.Module | None
    loss_names: list[str]
    metric_names: list[str]

    def __init__(self, model: nn.Module, trained: nn.Module | None = None, auxiliary: nn.Module | None = None) -> None:
        super().__init__()
        self.model = model
        self.trained = model if trained is None else trained
        self.auxiliary = auxiliary

    def watch(self, dataset: Dataset) -> None:
        """Take note of the data set that is trained on, before anything else."""

    def predict(self, video: Tensor) -> dict[str, Tensor]:
        """Logits of each head."""
        outputs: dict[str, Tensor] = self.model(video)
        return outputs

    @abstractmethod
    def forward(self, batch: Mapping[str, Any]) -> TaskOutput:
        """Loss and predictions of a batch: `video` float (B, T, 3, H, W) and `labels` head → int64 (B,)."""

    def remember(self, transform: ClipTransform) -> OutputCache | None:
        """Where what frozen networks say of clips under a transform is kept, if it is."""
        return None

    def export(self, folder: Path) -> None:
        """Add files to a checkpoint's folder with which others can use its `model.safetensors`."""

    @abstractmethod
    def metrics(self, split: str = "val") -> Metric:
        """A fresh metric of a split; `update(predictions, labels)`, `compute()` → name → scalar."""
