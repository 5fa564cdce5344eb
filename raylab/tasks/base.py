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

from raylab.data.datasets import outputs_folder
from raylab.data.outputs import OutputCache
from raylab.models.freezing import Freezable, digest

if TYPE_CHECKING:
    from raylab.config import Experiment
    from raylab.data.augment import ClipTransform
    from raylab.data.clips import Dataset

FEATURES = "encoder/features"
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
        experiment: that it was built for, by `build_task`.
        loss_names: the names of `TaskOutput.losses`.
        metric_names: the names that `metrics().compute()` gives.
    """

    experiment: Experiment
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
        self._kept: OutputCache | None = None

    def watch(self, dataset: Dataset) -> None:
        """Take note of the data set that is trained on, before anything else."""

    def see(self, batch: Mapping[str, Any]) -> Tensor:
        """What the model is given of a batch: its frames, or what its fixed encoder says of them, where that is kept.

        What is not kept yet is computed clip by clip, so that it does not depend on the batch a clip happens to stand
        in.

        Returns:
            Normalised frames, float (B, T, 3, H, W), or features, float (B, N, C).
        """
        if "missing" not in batch:
            video: Tensor = batch["video"]
            return video
        assert self._kept is not None  # noqa: S101 - a cache says what is missing
        features: Tensor | None = batch.get("outputs", {}).get(FEATURES)
        network, _, output = FEATURES.partition("/")
        masks = batch.get("mask", [None] * len(batch["ids"]))
        for place, clip in zip(batch["missing"], batch.get("video", ()), strict=True):
            with torch.no_grad():
                said = self.encode(clip[None], None if masks[place] is None else masks[place][None])[0]
            self._kept.keep(network, batch["keys"][place], {output: said})
            features = said.new_empty(len(batch["ids"]), *said.shape) if features is None else features
            features[place] = said
        assert features is not None  # noqa: S101 - a batch has a clip
        return features

    def encode(self, video: Tensor, mask: Tensor | None) -> Tensor:
        """Features of normalised frames, float (B, T, 3, H, W), by the model's encoder; `mask` is the batch's."""
        features: Tensor = self.model.get_submodule("encoder")(video)
        return features

    def predict(self, video: Tensor) -> dict[str, Tensor]:
        """Logits of each head, of what `see` gives."""
        outputs: dict[str, Tensor] = self.model(video)
        return outputs

    @abstractmethod
    def forward(self, batch: Mapping[str, Any]) -> TaskOutput:
        """Loss and predictions of a batch, as `Prefetch` gives it."""

    def remember(self, transform: ClipTransform) -> OutputCache | None:
        """Where what frozen networks say of clips under a transform is kept, if it is: here a fixed encoder.

        Called anew for each stage of training.
        """
        encoder, cache = getattr(self.model, "encoder", None), self.experiment.train.cache
        if not isinstance(encoder, Freezable) or not encoder.fixed or cache is False:
            self._kept = None
            return None
        device, precision = next(encoder.parameters()).device.type, self.experiment.train.precision
        network, _, output = FEATURES.partition("/")
        networks = {network: (f"{digest(encoder, [encoder.name])}-{device}-{precision}", (output,))}
        self._kept = OutputCache(outputs_folder(self.experiment.data, cache), networks, transform, replaces=True)
        return self._kept

    def export(self, folder: Path) -> None:
        """Add files to a checkpoint's folder with which others can use its `model.safetensors`."""

    @abstractmethod
    def metrics(self, split: str = "val") -> Metric:
        """A fresh metric of a split; `update(predictions, labels)`, `compute()` → name → scalar."""
