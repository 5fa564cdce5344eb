"""What a model says of a few validation clips, as pictures: their frames, and below them the truth and the prediction.

Nothing is computed for them: what the model says is kept as validation passes by, and their frames are decoded once.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from raylab.config import Experiment
from raylab.data.clips import Dataset
from raylab.data.dataset import Batch, ClipDataset
from raylab.prediction.pictures import INK, PAPER

FRAMES, SIDE, GAP, LINE = 8, 96, 4, 20  # of a strip: frames, and in pixels: their sides, what is between them, text
CURVE = 72  # pixels: height of a curve
WIDTH = FRAMES * (SIDE + GAP) + GAP
TRUE, SAID, WRONG = "#1b6e3c", "#1f4e9c", "#a61b1b"  # on white, contrast of 6 to 1 and more
QUALITY = 85  # of JPEG
LONGEST = 80  # characters of a clip's id: a path's end says more than its beginning


class SampleClips:
    """A few clips of the validation split: the same in all epochs of a run.

    They are evenly spaced among those that this process validates, in their order.

    Args:
        experiment: `train.sample_clips` of them; 0 for none.
        dataset: whose validation split.
        batches: the places in it that this process validates, batch by batch.
    """

    def __init__(self, experiment: Experiment, dataset: Dataset, batches: Iterable[Sequence[int]]) -> None:
        config = experiment.data.model_copy(update={"jpeg": "cpu"})
        self.clips = ClipDataset.of(dataset, "val", config, seed=experiment.seed)
        self.labels = dataset.labels
        places = list(chain.from_iterable(batches))
        count = min(experiment.train.sample_clips, len(places))
        chosen = [places[i * len(places) // count] for i in range(count)]
        self.places = {self.clips.clip(place).id: place for place in chosen}
        self.said: dict[str, tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]] = {}
        self.strips: dict[str, Image.Image] = {}

    def note(self, batch: Batch, predictions: Mapping[str, Tensor]) -> None:
        """Keep what the model says of those clips that are in a batch. No device is waited for."""
        for at, id in enumerate(batch["ids"]):
            if id in self.places:
                mask = batch["mask"][at] if "mask" in batch else None
                self.said[id] = _row(predictions, at), _row(batch["labels"], at), mask

    def pictures(self) -> dict[str, Image.Image]:
        """`clips/NUMBER` → a clip's frames, with what the model has last said of it."""
        return {f"clips/{n}": self.picture(id) for n, id in enumerate(self.places) if id in self.said}

    def picture(self, id: str) -> Image.Image:
        """One of the clips."""
        predictions, labels, mask = self.said[id]
        if id not in self.strips:
            shown = len(self.clips[self.places[id]]["video"]) if mask is None else int(mask.sum())
            self.strips[id] = strip(self.clips[self.places[id]]["video"][:shown])
        if mask is not None:
            true, said = (values["importance"][mask].float().cpu().numpy() for values in (labels, predictions))
            return stacked(self.strips[id], curves(id, true, said))
        lines = [(id[-LONGEST:], INK)]
        for head, names in self.labels.items():
            lines.append(verdict(head, names, int(labels[head]), predictions[head].float().softmax(0).cpu().numpy()))
        return stacked(self.strips[id], written(lines))


def verdict(head: str, names: Sequence[str], true: int, probabilities: NDArray[np.float32]) -> tuple[str, str]:
    """A line about one head, and its colour: `verb: take — right, 0.61`, or what was wrong."""
    said = int(probabilities.argmax())
    if said == true:
        return f"{head}: {names[true]} — right, {probabilities[said]:.2f}", TRUE
    said_as = f"predicted {names[said]}, {probabilities[said]:.2f}"
    return f"{head}: {names[true]}, {probabilities[true]:.2f} — {said_as}", WRONG


def strip(video: Tensor) -> Image.Image:
    """Frames of a clip, uint8 (T, 3, S, S), evenly spaced, side by side."""
    made = Image.new("RGB", (WIDTH, SIDE + 2 * GAP), PAPER)
    count = min(FRAMES, len(video))
    for column in range(count):
        frame = video[column * len(video) // count].permute(1, 2, 0).numpy()
        made.paste(Image.fromarray(frame).resize((SIDE, SIDE)), (GAP + column * (SIDE + GAP), GAP))
    return made


def written(lines: Sequence[tuple[str, str]]) -> Image.Image:
    """Lines of text, each with its colour."""
    made = Image.new("RGB", (WIDTH, LINE * len(lines) + GAP), PAPER)
    draw = ImageDraw.Draw(made)
    for number, (text, colour) in enumerate(lines):
        draw.text((GAP, number * LINE), text, colour, font())
    return made


def curves(id: str, true: NDArray[np.float32], said: NDArray[np.float32]) -> Image.Image:
    """The importance of a window's samples, (N,), true and predicted, each over its own range."""
    made = Image.new("RGB", (WIDTH, CURVE + 2 * GAP), PAPER)
    draw = ImageDraw.Draw(made)
    for values, colour, width in ((true, TRUE, 3), (said, SAID, 2)):
        low, span = values.min(), max(float(np.ptp(values)), 1e-9)
        across = np.linspace(GAP, WIDTH - GAP, len(values)) if len(values) > 1 else np.array([GAP, WIDTH - GAP])
        down = np.broadcast_to(GAP + CURVE * (1 - (values - low) / span), across.shape)
        draw.line(list(zip(across.tolist(), down.tolist(), strict=True)), colour, width)
    ranges = [f"{name} {v.min():.3f}–{v.max():.3f}" for name, v in (("annotators", true), ("predicted", said))]
    return stacked(written([(f"{id[-LONGEST:]}: importance of {len(true)} samples", INK)]), made, key(ranges))


def key(names: Sequence[str]) -> Image.Image:
    """Which curve is which."""
    made = Image.new("RGB", (WIDTH, LINE + GAP), PAPER)
    draw = ImageDraw.Draw(made)
    for number, (name, colour) in enumerate(zip(names, (TRUE, SAID), strict=True)):
        draw.text((GAP + number * WIDTH // 2, 0), name, colour, font())
    return made


def stacked(*parts: Image.Image) -> Image.Image:
    """Pictures of one width, one below the other."""
    made = Image.new("RGB", (WIDTH, sum(part.height for part in parts)), PAPER)
    top = 0
    for part in parts:
        made.paste(part, (0, top))
        top += part.height
    return made


@cache
def font() -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which has more alphabets than Pillow's own."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 13)


def jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _row(values: Mapping[str, Tensor], at: int) -> dict[str, Tensor]:
    """One clip of a batch; a copy, or the whole batch would stay in memory."""
    return {name: value[at].detach().clone() for name, value in values.items()}
