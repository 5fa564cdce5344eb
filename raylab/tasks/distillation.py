"""Tri-model asymmetric distillation: a student learns from labels, a teacher and an assistant.

    loss = α · classification + β · feature + γ · attention + δ · asymmetric + ε · logit

Each distance (`raylab.tasks.distances`) is a sum over teacher and assistant, by their weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from transformers import VideoMAEImageProcessor

from raylab.config import Experiment
from raylab.data.augment import ClipTransform
from raylab.data.datasets import outputs_folder
from raylab.data.outputs import OutputCache
from raylab.errors import RaylabError
from raylab.models.frozen import FrozenNetwork, load_frozen
from raylab.models.registry import build_model
from raylab.models.taps import Taps
from raylab.models.videomae import VideoMAE
from raylab.tasks.base import Task, TaskOutput
from raylab.tasks.distances import asymmetric_distance, attention_distance, feature_distance, logit_distance

DTYPE = torch.float16  # in which outputs are kept

Layers = dict[int, Tensor]


class DistillationTask(Task):
    """Train a student on labels, and on what teacher and assistant say of the same clips.

    These two are no part of what is trained, saved or averaged over workers. Where training meets the same pixels
    again (`data.repeats`), they are asked once, and `OutputCache` remembers.

    Args:
        experiment: `model`, `loss`, `distill` and `data`.
        labels: head → class names, of one head.
        checkpoint: the folder of a checkpoint that will fill the student's weights.

    Raises:
        RaylabError: a network cannot be had, or does not fit.
    """

    model: VideoMAE

    def __init__(self, experiment: Experiment, labels: Mapping[str, Sequence[str]], checkpoint: Path | None) -> None:
        heads = {head: len(names) for head, names in labels.items()}
        student = build_model(experiment.model, heads, checkpoint=checkpoint)
        if not isinstance(student, VideoMAE):
            raise RaylabError(f"model.name = {experiment.model.name}: only a VideoMAE can be distilled into")
        data, self.distill, self.loss = experiment.data, experiment.distill, experiment.loss
        student.fit(data.frames, data.size, data.size)
        self.head, self.names = student.head, list(labels[student.head])
        reader = Reader(student, experiment, frozen := load_frozen(experiment, self.names))
        super().__init__(student, reader, reader.projections if len(reader.projections) else None)
        self.frozen = nn.ModuleDict(frozen)
        self.experiment = experiment
        self.cache: OutputCache | None = None
        self.weights = self._weights(frozen)
        self.loss_names = [f"{term}_loss" for term in self.weights]
        self.metric_names = LabelAccuracy(self.head, len(self.names)).names

    def _weights(self, frozen: Mapping[str, FrozenNetwork]) -> dict[str, float]:
        """The terms that there are → their weights."""
        distill = self.distill
        logits = any(source.order is not None for source in frozen.values())
        found = {
            "classification": distill.classification_weight,
            "feature": distill.feature_distillation_weight if frozen else 0.0,
            "attention": distill.attention_distillation_weight if frozen else 0.0,
            "asymmetric": distill.asymmetric_distillation_weight if len(frozen) == 2 else 0.0,
            "logit": distill.logit_distillation_weight if logits else 0.0,
        }
        weights = {term: weight for term, weight in found.items() if weight}
        if not weights:
            raise RaylabError("distill: every weight is 0: nothing is left to learn from")
        return weights

    def remember(self, transform: ClipTransform) -> OutputCache | None:
        if self.cache is None and self.frozen and self.distill.cache is not False:
            device, precision = next(self.model.parameters()).device.type, self.experiment.train.precision
            networks = {
                name: (f"{source.signature()}-{device}-{precision}", tuple(source.parts))
                for name, source in self.sources.items()
            }
            self.cache = OutputCache(outputs_folder(self.experiment.data, self.distill.cache), networks)
        return replace(self.cache, transform=transform) if self.cache else None

    @property
    def sources(self) -> dict[str, FrozenNetwork]:
        """`teacher` and `assistant`."""
        return {name: source for name, source in self.frozen.items() if isinstance(source, FrozenNetwork)}

    def forward(self, batch: Mapping[str, Any]) -> TaskOutput:
        student: dict[str, Any] = self.trained(batch["video"])
        said = batch.get("outputs") or self.ask(batch)
        losses = self.terms(student, batch["labels"][self.head], said)
        total = torch.stack([weight * losses[term] for term, weight in self.weights.items()]).sum()
        total = total + 0 * student["logits"].float().sum()  # the classifier has a gradient, whatever the terms
        return TaskOutput(
            loss=total,
            losses={f"{term}_loss": losses[term].detach() for term in self.weights},
            predictions={self.head: student["logits"].detach()},
        )

    def terms(self, student: Mapping[str, Any], labels: Tensor, said: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every term of the loss.

        Args:
            student: what `Reader` gives.
            labels: int64 (B,).
            said: `teacher/hidden/12` and so on → what teacher and assistant say.
        """
        smoothing = self.loss.label_smoothing
        terms = {
            "classification": F.cross_entropy(student["logits"].float(), labels, label_smoothing=smoothing),
        }
        sums: dict[str, list[Tensor]] = {}
        hidden: dict[str, Layers] = {}
        for name, source in self.sources.items():
            parts: dict[str, Layers] = {
                kind: {layer: said[f"{name}/{source.part(kind, layer)}"] for layer in source.layers}
                for kind in source.kinds
            }
            hidden[name] = parts.get("hidden", {})
            distances: dict[str, Tensor] = {}
            if "feature" in self.weights:
                distances["feature"] = feature_distance(student["read"][name], parts["hidden"])
            if "attention" in self.weights:
                distances["attention"] = attention_distance(student["attention"], parts["attention"])
            if "logit" in self.weights and source.order is not None:
                given = said[f"{name}/logits"][:, source.order]
                distances["logit"] = logit_distance(student["logits"], given, self.distill.temperature)
            for term, distance in distances.items():
                sums.setdefault(term, []).append(source.weight * distance)
        if "asymmetric" in self.weights:
            read = student["read"]
            terms["asymmetric"] = asymmetric_distance(
                read["teacher"], read["assistant"], hidden["teacher"], hidden["assistant"]
            )
        return terms | {term: torch.stack(values).sum() for term, values in sums.items()}

    def ask(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What teacher and assistant say of a batch, computed now, and remembered if there is a cache.

        What is remembered is computed clip by clip, so that it does not depend on the batch a clip happens to stand in.
        """
        video, keys = batch["video"], batch.get("keys")
        said: dict[str, Tensor] = {}
        for name, source in self.sources.items():
            if keys is None:
                outputs = source(video, self.model.mean, self.model.std)
                said |= {f"{name}/{part}": value for part, value in outputs.items()}
                continue
            clips = [source(clip[None], self.model.mean, self.model.std) for clip in video]
            kept = [{part: _half(value[0]) for part, value in clip.items()} for clip in clips]
            said |= {f"{name}/{part}": torch.stack([clip[part] for clip in kept]) for part in source.parts}
            for key, clip in zip(keys, kept, strict=True):
                assert self.cache is not None  # noqa: S101 - keys are made by a cache
                self.cache.keep(name, key, clip)
        return said

    def metrics(self, split: str = "val") -> Metric:
        return LabelAccuracy(self.head, len(self.names))

    def export(self, folder: Path) -> None:
        """Make the folder of a checkpoint one that `VideoMAEForVideoClassification.from_pretrained` opens."""
        config, data = self.model.config, self.experiment.data
        config.id2label = dict(enumerate(self.names))
        config.label2id = {name: index for index, name in enumerate(self.names)}
        config.architectures = ["VideoMAEForVideoClassification"]
        config.save_pretrained(folder)
        VideoMAEImageProcessor(
            size={"shortest_edge": data.side},
            crop_size={"height": data.size, "width": data.size},
            image_mean=list(self.model.mean),
            image_std=list(self.model.std),
        ).save_pretrained(folder)


def _half(value: Tensor) -> Tensor:
    """As it is kept; what float16 does not reach becomes the largest it has."""
    largest = torch.finfo(DTYPE).max
    return value.clamp(-largest, largest).to(DTYPE)


class Reader(nn.Module):
    """A student, and its hidden states as teacher and assistant would have them.

    Where widths differ, a linear projection for each source and layer leads from the student's to the source's. For the
    asymmetric term the assistant gets one in any case: without, both would be read from the student in the same way.

    Args:
        student: to be trained.
        experiment: which layers, and what is wanted of them.
        frozen: teacher and assistant.
    """

    def __init__(self, student: VideoMAE, experiment: Experiment, frozen: Mapping[str, FrozenNetwork]) -> None:
        super().__init__()
        distill = experiment.distill
        self.student = student
        self.layers = distill.layers if frozen else ()
        self.taps = Taps(student, self.layers, distill.attention_distillation_weight > 0)
        width = int(student.config.hidden_size)
        apart = len(frozen) == 2 and distill.asymmetric_distillation_weight > 0
        self.hidden = bool(distill.feature_distillation_weight) or apart
        self.names = list(frozen)
        self.projections: Any = nn.ModuleDict()
        for name, source in frozen.items():
            if self.hidden and (source.width != width or (apart and name == "assistant")):
                self.projections[name] = nn.ModuleDict({str(n): nn.Linear(width, source.width) for n in self.layers})

    def forward(self, video: Tensor) -> dict[str, Any]:
        """`logits` (B, classes); `read`: source → layer → (B, N, its width); `attention`: layer → (B, Q, N)."""
        logits = self.student(video)[self.student.head]
        hidden, attention = self.taps.take()
        read: dict[str, Layers] = {name: {} for name in self.names if self.hidden}
        for name, layers in read.items():
            for n in self.layers:
                layers[n] = self.projections[name][str(n)](hidden[n]) if name in self.projections else hidden[n]
        return {"logits": logits, "read": read, "attention": attention}


class LabelAccuracy(Metric):
    """Accuracy over clips, and the mean over classes that occur of theirs.

    Counts only, so the sums over workers are exact.
    """

    full_state_update = False
    clips: Tensor
    correct: Tensor

    def __init__(self, head: str, classes: int) -> None:
        super().__init__()
        self.head = head
        self.names = ["accuracy", "class_accuracy"]
        for name in ("clips", "correct"):
            self.add_state(name, torch.zeros(classes, dtype=torch.long), dist_reduce_fx="sum", persistent=True)

    def update(self, predictions: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> None:
        """Add a batch: head → logits (B, classes), head → int64 (B,)."""
        given = labels[self.head]
        self.clips.index_add_(0, given, torch.ones_like(given))
        self.correct.index_add_(0, given, (predictions[self.head].argmax(1) == given).long())

    def compute(self) -> dict[str, Tensor]:
        """Name → accuracy in [0, 1]."""
        each = self.correct / self.clips.clamp(min=1)
        occur = (self.clips > 0).sum().clamp(min=1)
        return {"accuracy": self.correct.sum() / self.clips.sum().clamp(min=1), "class_accuracy": each.sum() / occur}
