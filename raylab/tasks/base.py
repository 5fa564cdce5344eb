"""What every task offers the training loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torchmetrics import Metric

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

    Only `model` is trained, saved and, under DDP, wrapped; what else a task holds (frozen teachers)
    stays outside.

    Attributes:
        loss_names: the names of `TaskOutput.losses`.
        metric_names: the names that `metrics().compute()` gives.
    """

    model: nn.Module
    loss_names: list[str]
    metric_names: list[str]

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._parallel: list[DistributedDataParallel] = []  # a list hides it from state_dict and parameters

    def distribute(self) -> None:
        """Average the gradients of `model` over all workers from now on."""
        self._parallel = [DistributedDataParallel(self.model, gradient_as_bucket_view=True)]

    @property
    def parallel(self) -> nn.Module:
        """The module a training step goes through: `model`, inside DDP when distributed."""
        return self._parallel[0] if self._parallel else self.model

    def predict(self, video: Tensor) -> dict[str, Tensor]:
        """Logits of each head. Evaluation bypasses DDP, since ranks may hold unequal numbers of clips."""
        network = self.parallel if self.training else self.model
        outputs: dict[str, Tensor] = network(video)
        return outputs

    @abstractmethod
    def forward(self, batch: Mapping[str, Any]) -> TaskOutput:
        """Loss and predictions of a batch: `video` float (B, T, 3, H, W) and `labels` head → int64 (B,)."""

    @abstractmethod
    def metrics(self) -> Metric:
        """A fresh metric; `update(predictions, labels)`, `compute()` → name → scalar."""
