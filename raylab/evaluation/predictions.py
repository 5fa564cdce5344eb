"""What models say of every clip of a split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import log
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from raylab.config import DataConfig, Experiment
from raylab.data.augment import ClipTransform
from raylab.data.clips import Dataset
from raylab.data.dataset import Batch, ClipDataset
from raylab.data.loader import EvalBatches, make_loader
from raylab.errors import RaylabError
from raylab.models.registry import batches
from raylab.tasks.base import DTYPES
from raylab.training.prefetch import Prefetch

KNEE, FLOOR = -20.0, -30.0
"""Log-probabilities below the first are squeezed, in their order, into what is left above the second: see `bound`."""


class Views(NamedTuple):
    """How often a clip is looked at: `clips` interleaved samplings of its frames, `crops` squares of each frame."""

    clips: int = 1
    crops: int = 1

    @classmethod
    def parse(cls, text: str) -> Views:
        """`5x3`: 5 clips, 3 crops.

        Raises:
            RaylabError: the text is something else.
        """
        clips, _, crops = text.partition("x")
        if not (clips.isdecimal() and crops.isdecimal() and int(clips) > 0 and int(crops) > 0):
            raise RaylabError(f"--views {text}: write clips x crops, e.g. 5x3")
        return cls(int(clips), int(crops))

    def reading(self, config: DataConfig) -> DataConfig:
        """Settings of a data set that has the frames of all clips."""
        return config.model_copy(update={"frames": config.frames * self.clips})

    def divide(self, video: Tensor) -> Tensor:
        """Float (B, crops · T · clips, 3, H, W), crop by crop → (B, crops · clips, T, 3, H, W).

        The clips are interleaved: clip k has the frames k, k + clips, … of all.
        """
        batch, frames = video.shape[:2]
        each = frames // (self.crops * self.clips)
        apart = video.reshape(batch, self.crops, each, self.clips, *video.shape[2:])
        return apart.transpose(2, 3).flatten(1, 2)


ONCE = Views()


@dataclass(frozen=True)
class Predictions:
    """What one model, or several together, say of N clips.

    Attributes:
        ids: of the clips.
        values: float32 (N, …): head → log-probabilities (N, classes), bounded (see `bound`); of a model of keyframes
            `importance` → scores (N, T), 0 where a window has no frame.
    """

    ids: list[str]
    values: dict[str, NDArray[np.float32]]

    @classmethod
    def join(cls, parts: Iterable[tuple[int, Predictions]]) -> Predictions:
        """Parts that were made elsewhere, each with its place, in the order of their places."""
        ordered = [part for _, part in sorted(parts, key=lambda part: part[0])]
        return cls(
            [id for part in ordered for id in part.ids],
            {name: np.concatenate([part.values[name] for part in ordered]) for name in ordered[0].values},
        )


Outputs = dict[str, NDArray[np.float32]]
Mean = Callable[[list[NDArray[np.float64]]], NDArray[np.float32]]
Say = Callable[[nn.Module, Experiment, Batch, Views], Outputs]


def mean_probability(members: list[NDArray[np.float64]]) -> NDArray[np.float32]:
    """The mean of log-probabilities as probabilities."""
    return bound(np.logaddexp.reduce(members) - log(len(members)))


def average(members: Sequence[Predictions], mean: Mean = mean_probability) -> Predictions:
    """An ensemble: what its members say, averaged.

    Raises:
        RaylabError: the members speak of other clips, or of other classes.
    """
    first = members[0]
    for other in members[1:]:
        if other.ids != first.ids:
            raise RaylabError("--ensemble: the models were evaluated on different clips")
        shapes = [{head: value.shape for head, value in m.values.items()} for m in (first, other)]
        if shapes[0] != shapes[1]:
            raise RaylabError(f"--ensemble: the models have different heads, {shapes[0]} and {shapes[1]}")
    means = {head: mean([member.values[head].astype(np.float64) for member in members]) for head in first.values}
    return Predictions(first.ids, means)


def say_classes(model: nn.Module, experiment: Experiment, batch: Batch, views: Views) -> Outputs:
    """Head → bounded log-probabilities of the clips of a batch, (B, classes)."""
    means = average_views(model, experiment, batch["video"], views)
    return {head: bound(values.cpu().numpy()) for head, values in means.items()}


def predict(
    model: nn.Module,
    experiment: Experiment,
    dataset: Dataset,
    split: str,
    views: Views = ONCE,
    share: tuple[int, int] = (0, 1),
    say: Say = say_classes,
) -> list[tuple[int, Predictions]]:
    """Run a model over a split.

    Args:
        model: in evaluation mode; its device decides where it runs.
        experiment: how clips are sampled and transformed; on a GPU also the precision, as in training.
        dataset: `load_dataset(views.reading(experiment.data), (split,), views.crops)`.
        split: of the data set.
        views: their probabilities are averaged.
        share: rank and number of those who do it together.
        say: asks the model.

    Returns:
        This rank's batches, each with its number. They hold the same bits for any number of ranks: a clip stands in the
        same batch.

    Raises:
        RaylabError: no clip of the split can be read.
    """
    rank, world_size = share
    config = views.reading(experiment.data)
    clips = ClipDataset.of(dataset, split, config, crops=views.crops)
    if not len(clips):
        raise RaylabError(f"{split}: none of the clips can be read: see the clip store's manifest")
    batch_size = max(1, batches(experiment).size // (views.clips * views.crops))  # all views go through at once
    shares = EvalBatches(len(clips), batch_size, rank, world_size)
    device = next(model.parameters()).device
    loader = make_loader(clips, shares, config, pin=device.type == "cuda")
    transform = ClipTransform.for_model(model, experiment.data, train=False, seed=0)
    found = []
    for number, batch in enumerate(Prefetch(device)(loader, transform, epoch=0)):
        said = say(model, experiment, batch, views)
        found.append((rank + number * world_size, Predictions(batch["ids"], said)))
    return found


@torch.no_grad()
def average_views(model: nn.Module, experiment: Experiment, video: Tensor, views: Views) -> dict[str, Tensor]:
    """The logarithm of the mean of probabilities over all views.

    Args:
        model: video → head → logits.
        experiment: whose precision holds on a GPU.
        video: float32 (B, crops · T · clips, 3, H, W).
        views: how it is divided.

    Returns:
        Head → float64 (B, classes).
    """
    number = views.clips * views.crops
    with autocast(video.device, precision_on(video.device, experiment)):
        logits = model(views.divide(video).flatten(0, 1))
    means = {}
    for head, values in logits.items():
        each = values.double().log_softmax(1).reshape(-1, number, values.shape[1])
        means[head] = each.logsumexp(1) - log(number) if number > 1 else each[:, 0]
    return means


def precision_on(device: torch.device, experiment: Experiment) -> str:
    """The precision that models are judged in: on a GPU that of their training, elsewhere fp32."""
    return experiment.train.precision if device.type == "cuda" else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Computing in this precision."""
    return torch.autocast(device.type, DTYPES[precision], enabled=precision != "fp32")


def bound(log_probabilities: NDArray[np.float64]) -> NDArray[np.float32]:
    """Log-probabilities no lower than `FLOOR`, in the same order.

    Down to `KNEE`, a probability of 2 · 10⁻⁹, they stay as they are. What lies further below approaches `FLOOR` by a
    hyperbola, so that classes far from likely are still ranked, and products of two probabilities stay within float32.
    """
    room = KNEE - FLOOR
    below = np.maximum(KNEE - log_probabilities, 0)
    squeezed = KNEE - room * (1 - room / (below + room))
    return np.where(below > 0, squeezed, log_probabilities).astype(np.float32)
