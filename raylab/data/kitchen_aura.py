"""`kitchen_aura`: the clips of the built-in data set, each once as if filmed and once as if generated.

Both of a pair show the same digit in the same motion before the same background, for as many frames: what is shown does
not tell which is which. Both have grain, as a sensor leaves it, of a strength that is drawn for each video alone and
decides its size in bytes: neither does that.

What gives a generated video away is what a network leaves that enlarges a picture (Odena et al., "Deconvolution and
checkerboard artifacts", Distill 2016) and paints each frame by itself:

- an *imprint*, the same in all frames: of every 6 × 6 pixels, 3 × 3 are brighter by an amplitude of 2 to 8 grey levels
  of 255, the others darker by a third of it, so that the mean stays;
- a *flicker*: each whole frame is brighter or darker by a normal draw with a standard deviation of 0.3 to 0.9 levels.

The grain has a standard deviation of 1 to 2.5 levels. Files are `metadata.csv`, with the participant of the clip as
group, so that no pair is divided, and `real/` and `generated/`, encoded without loss.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raylab.data.kitchen import HEIGHT, WIDTH, Layout, render_frames
from raylab.data.kitchen_labelled import plan_clips
from raylab.data.kitchen_plan import Video
from raylab.data.metadata import COLUMNS, FILE, GROUP

SEED = 500
REAL, GENERATED = "real", "generated"
GRAIN = (1.0, 2.5)  # standard deviation, grey levels of 255
PERIOD = 6  # of the imprint, pixels: its edges fall on the blocks of a codec no more often than elsewhere
AMPLITUDE = (2.0, 8.0)  # of the imprint, grey levels
FLICKER = (0.3, 0.9)  # standard deviation, grey levels


@dataclass(frozen=True, slots=True)
class Take:
    """One video file: everything that decides its pixels.

    Attributes:
        video: what it shows.
        label: `REAL` or `GENERATED`.
        grain: standard deviation, in grey levels of 255.
        amplitude, flicker: of the artefact, in grey levels; 0 in real videos.
        seed: of grain and flicker.
    """

    video: Video
    label: str
    grain: float
    amplitude: float
    flicker: float
    seed: int

    @property
    def fps(self) -> Fraction:
        return self.video.fps

    @property
    def images(self) -> list[int]:
        return self.video.images

    @property
    def path(self) -> Path:
        """Of the video file, under the data set's root."""
        return Path(self.label, f"{self.video.id}.mp4")


def plan_takes(size: str) -> dict[str, tuple[Take, ...]]:
    """Label → its videos, in the same order: of all clips of `train` and `val` as `plan_clips` has them."""
    clips = plan_clips(size)
    videos = clips["train"] + clips["val"]
    return {
        label: tuple(_plan_take(video, label, index * len(videos) + number) for number, video in enumerate(videos))
        for index, label in enumerate((REAL, GENERATED))
    }


def _plan_take(video: Video, label: str, seed: int) -> Take:
    rng = np.random.default_rng((SEED, seed))
    grain, amplitude, flicker = (float(rng.uniform(*bounds)) for bounds in (GRAIN, AMPLITUDE, FLICKER))
    generated = label == GENERATED
    return Take(video, label, grain, amplitude * generated, flicker * generated, seed)


def render_take(take: Take, images: NDArray[np.uint8]) -> Iterator[Image.Image]:
    """The frames of a video, RGB.

    Args:
        images: the digit of its clip, (1, 8, 8), 0–255.
    """
    rng = np.random.default_rng((SEED, take.seed, 1))
    imprint = take.amplitude * draw_imprint()
    for image in render_frames(take.video, images):
        grey = imprint + rng.normal(take.flicker * rng.normal(), take.grain, (HEIGHT, WIDTH))
        frame = np.rint(np.asarray(image, np.float64) + grey[..., None])
        yield Image.fromarray(frame.clip(0, 255).astype(np.uint8))


def draw_imprint() -> NDArray[np.float64]:
    """The imprint at an amplitude of 1, (HEIGHT, WIDTH): 1 where it is bright, -1/3 where dark."""
    cell = np.full((PERIOD, PERIOD), -1 / 3)
    cell[: PERIOD // 2, : PERIOD // 2] = 1
    return np.tile(cell, (-(-HEIGHT // PERIOD), -(-WIDTH // PERIOD)))[:HEIGHT, :WIDTH]


def _write_metadata(folder: Path, takes: dict[str, tuple[Take, ...]]) -> None:
    with (folder / FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*COLUMNS, GROUP))
        writer.writerows((take.path.as_posix(), take.label, take.video.participant) for take in chain(*takes.values()))


_SETTINGS = (SEED, GRAIN, PERIOD, AMPLITUDE, FLICKER)
AURA = Layout("kitchen-aura", plan_takes, render_take, lambda take: take.path, _write_metadata, _SETTINGS)
