"""What every task offers the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric

if TYPE_CHECKING:
    from raylab.data.augment import ClipTransform
    from raylab.data.outputs import OutputCache

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass
class TaskOutput:
    """What one batch gives.

    Attributes:
        loss: scalar to minimise, the mean over the batch's clips.
        losses: its named parts, scalars without gradient.
        predictions: head name → logits (B, classes), without gradient.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    predictions: dict[str, Tensor]


class Task(nn.Module, ABC):
    """A trainable `model`, its loss and its metrics.

    What else a task holds (frozen teachers) is neither trained nor saved, and stays outside DDP.

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
        self._parallel: list[DistributedDataParallel] = []  # a list hides it from state_dict and parameters

    def distribute(self) -> None:
        """Average the gradients of what is trained over all workers from now on."""
        self._parallel = [DistributedDataParallel(self.trained, gradient_as_bucket_view=True)]

    @property
    def parallel(self) -> nn.Module:
        """The module a training step goes through: `trained`, inside DDP when distributed."""
        return self._parallel[0] if self._parallel else self.trained

    def predict(self, video: Tensor) -> dict[str, Tensor]:
        """Logits of each head. Evaluation bypasses DDP, since ranks may hold unequal numbers of clips."""
        network = self.parallel if self.training else self.model
        outputs: dict[str, Tensor] = network(video)
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
    def metrics(self) -> Metric:
        """A fresh metric; `update(predictions, labels)`, `compute()` → name → scalar."""
