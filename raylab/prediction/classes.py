"""Models that name classes: the most probable ones of a stretch of a video, or of a camera's last seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from raylab.data.camera import Camera
from raylab.data.clips import Clip
from raylab.data.dataset import ClipDataset
from raylab.errors import RaylabError
from raylab.evaluation.predictions import ONCE, average_views, bound
from raylab.evaluation.scores import rank_actions
from raylab.prediction.stretch import cut

if TYPE_CHECKING:
    from raylab.results import Checkpoint

ACTION = "action"


@dataclass(frozen=True)
class Guess:
    """One class, or for `action` one of each head, and how probable the model takes it to be."""

    name: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What the model says of one stretch of one video.

    Attributes:
        video: the file.
        start, stop: seconds.
        top: head → the most probable classes, and with several heads `action` → their most probable combinations, best
            first.
    """

    video: str
    start: float
    stop: float
    top: dict[str, list[Guess]]


@dataclass(frozen=True)
class Sighting:
    """What the model says of the last seconds of a camera.

    Attributes:
        top: as in `Answer`.
        frame: number of the newest frame, counted from 1.
        latency: seconds from that frame's capture to the answer.
        skipped: frames captured since the answer before, besides the newest: looked at in no window's end.
        rate: answers a second, over all so far.
        camera_rate: frames a second.
    """

    top: dict[str, list[Guess]]
    frame: int
    latency: float
    skipped: int
    rate: float
    camera_rate: float


class Predictor:
    """A checkpoint's model, ready to answer.

    Args:
        checkpoint: to load.
        device: where the model runs; by default on the GPU if there is one.
        top: how many classes an answer has.

    Raises:
        RaylabError: the model names no classes, or its weights are damaged.
    """

    def __init__(self, checkpoint: Checkpoint, device: str | None = None, top: int = 5) -> None:
        if not checkpoint.labels:
            raise RaylabError(
                f"{checkpoint.path}: the model scores the frames of videos, and names no classes: add "
                "--keyframes FOLDER; in Python: raylab.KeyframePredictor"
            )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.checkpoint = checkpoint
        self.experiment = checkpoint.experiment
        self.model = checkpoint.load_model(self.device)
        self.transform = checkpoint.transform(self.model)
        self.top = top

    def video(self, path: str | Path, start: float = 0.0, stop: float | None = None) -> Answer:
        """What is seen between two moments of a video, by default in all of it.

        Raises:
            RaylabError: the file cannot be read, or has nothing between these moments.
        """
        name, where = str(path), cut(path, start, stop)
        clip = Clip(name, name, where.start, where.stop, 1, 2, {})
        config = self.experiment.data.model_copy(update={"jpeg": "cpu"})
        frames = ClipDataset([clip], {name: Path(path)}, config)[0]["video"]
        return Answer(name, where.start, where.stop, self.answer(frames))

    def camera(self, camera: Camera) -> Iterator[Sighting]:
        """What is seen in a running camera, again and again, each time in its newest frames, until it ends.

        Raises:
            RaylabError: the camera was lost.
        """
        began, last, answers = time.monotonic(), 0, 0
        while shot := camera.latest(self.experiment.data.frames, after=last):
            top = self.answer(shot.frames)
            now = time.monotonic()
            answers += 1
            yield Sighting(
                top=top,
                frame=shot.number,
                latency=now - shot.captured,
                skipped=shot.number - last - 1,
                rate=answers / max(now - began, 1e-9),
                camera_rate=camera.rate,
            )
            last = shot.number

    def answer(self, frames: Tensor) -> dict[str, list[Guess]]:
        """What `Answer.top` is, of uint8 frames (T, 3, S, S), transformed as in evaluation."""
        video = self.transform(frames[None].to(self.device), [""], 0)
        means = average_views(self.model, self.experiment, video, ONCE)
        logs = {head: bound(values.cpu().numpy()) for head, values in means.items()}
        labels = self.checkpoint.labels
        asked = {head: {head: values} for head, values in logs.items()} | ({ACTION: logs} if len(logs) > 1 else {})
        found = {}
        for name, parts in asked.items():
            places, probabilities = rank_actions(parts, self.top)
            found[name] = _guesses({head: at[0] for head, at in places.items()}, probabilities[0], labels)
        return found


def _guesses(places: Mapping[str, Any], probabilities: Any, labels: Mapping[str, Sequence[str]]) -> list[Guess]:
    return [
        Guess(" ".join(labels[head][at[i]] for head, at in places.items()), float(probability))
        for i, probability in enumerate(probabilities)
    ]
