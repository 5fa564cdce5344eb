"""What the built-in data set shows: every segment with all that is drawn for it, as plain data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from math import sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SEED = 100
LIMIT = 0.44  # in frame heights: nothing moves further from the centre, so the central 88 % of the height shows it all
FPS = (Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(50), Fraction(60000, 1001))
SEGMENT_SECONDS = (0.62, 1.18)
GAP_SECONDS = (0.25, 0.40)
REST_SECONDS = 0.08  # the digit stands still this long around its motion: an off-by-one reader still sees it

NOUNS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
VERBS = ("move-right", "move-left", "move-down", "move-up", "grow", "shrink", "turn-clockwise", "turn-counterclockwise")


class Pose(NamedTuple):
    """Where and how a digit stands: centre and size in frame heights from the frame's centre, clockwise degrees."""

    x: float
    y: float
    size: float
    angle: float


@dataclass(frozen=True, slots=True)
class Motion:
    """One pair of opposite verbs: the component of the pose that changes, and what is drawn for it.

    Attributes:
        axis: index into `Pose`.
        size: range of the digit's mean size, in frame heights.
        swing: range of half the change along the axis, in its units.
    """

    axis: int
    size: tuple[float, float]
    swing: tuple[float, float]


# Verb 2p raises the axis of MOTIONS[p], verb 2p + 1 lowers it.
MOTIONS = (
    Motion(axis=0, size=(0.26, 0.36), swing=(0.14, 0.18)),
    Motion(axis=1, size=(0.26, 0.36), swing=(0.14, 0.18)),
    Motion(axis=2, size=(0.36, 0.42), swing=(0.12, 0.18)),
    Motion(axis=3, size=(0.30, 0.44), swing=(30.0, 50.0)),
)


@dataclass(frozen=True, slots=True)
class Segment:
    """One digit in one motion.

    Attributes:
        verb: index into `VERBS`.
        noun: index into `NOUNS`.
        image: index of the digit's image in `sklearn.datasets.load_digits`.
        start: 0-based number of the first frame of the motion.
        stop: 0-based number just past the last frame of the motion.
        first: pose in frame `start`.
        last: pose in frame `stop - 1`.
        ink: the digit's colour, RGB 0–255.
    """

    verb: int
    noun: int
    image: int
    start: int
    stop: int
    first: Pose
    last: Pose
    ink: tuple[int, int, int]

    def pose(self, frame: int) -> Pose:
        """Pose in a frame: linear from first to last, at rest before and after.

        Weighing both ends by whole numbers makes the way back pass through bit-identical poses.
        """
        steps = self.stop - 1 - self.start
        done = min(max(frame - self.start, 0), steps)
        ends = zip(self.first, self.last, strict=True)
        return Pose(*((first * (steps - done) + last * done) / steps for first, last in ends))


@dataclass(frozen=True, slots=True)
class Video:
    """One video file: everything that decides its pixels, and nothing drawn yet.

    Attributes:
        id: EPIC's style, `P01_101`.
        participant: `P01`.
        fps: exact frame rate, in 1/s.
        frames: number of frames.
        segments: in order of time, without overlap.
        texture: seed of the static background.
        brightness: mean level of the background, 0–255, before inversion.
        inverted: dark digits on a bright background.
    """

    id: str
    participant: str
    fps: Fraction
    frames: int
    segments: tuple[Segment, ...]
    texture: int
    brightness: int
    inverted: bool

    @property
    def images(self) -> list[int]:
        """The digit of each segment, as an index into `digits`."""
        return [segment.image for segment in self.segments]

    @property
    def path(self) -> Path:
        """Of the video file, under the data set's root."""
        return Path(self.participant, "videos", f"{self.id}.MP4")


@dataclass(frozen=True, slots=True)
class Size:
    """Clips of both splits, and how they are dealt out to videos and participants."""

    train: int
    validation: int
    segments: int
    videos: int


SIZES = {
    "tiny": Size(train=48, validation=24, segments=6, videos=2),
    "small": Size(train=320, validation=160, segments=8, videos=4),
    "medium": Size(train=2_400, validation=480, segments=10, videos=16),
    "large": Size(train=12_000, validation=1_200, segments=10, videos=40),
}


def plan(size: str, test: bool = False) -> dict[str, tuple[Video, ...]]:
    """Split (`train`, `validation`) → its videos. Verbs and nouns, alone and combined, are balanced within ±1.

    The splits share no participant, and `train` no digit image with another.

    Args:
        size: a key of `SIZES`.
        test: plan a split `test` too: as many clips as in validation, of the same digit images, drawn anew.
    """
    layout, pools = SIZES[size], _digit_pools()
    splits: dict[str, tuple[Video, ...]] = {}
    last = 0
    for number, split in enumerate(("train", "validation", "test")[: 2 + test]):
        shown = "train" if split == "train" else "validation"
        splits[split] = _plan_split(number, getattr(layout, shown), layout, pools[shown], participants=last)
        last = int(splits[split][-1].participant[1:])
    return splits


def draw_motion(verb: int, rng: np.random.Generator) -> tuple[Pose, Pose]:
    """First and last pose of one motion.

    From generators in equal states a verb and its opposite draw the same two poses, in opposite order.
    """
    motion = MOTIONS[verb // 2]
    centre, swing = np.zeros(4), np.zeros(4)
    swing[motion.axis] = rng.uniform(*motion.swing)
    centre[2], centre[3] = rng.uniform(*motion.size), rng.uniform(-12, 12)
    room = LIMIT - (centre[2] + swing[2]) / sqrt(2)  # half the diagonal: a square of this size fits at any angle
    centre[:2] = rng.uniform(-1, 1, size=2) * (room - swing[:2])
    low, high = Pose(*(centre - swing).tolist()), Pose(*(centre + swing).tolist())
    return (low, high) if verb % 2 == 0 else (high, low)


@cache
def digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images of handwritten digits, (1797, 8, 8) of 0–255, and their classes (1797,)."""
    from sklearn.datasets import load_digits  # 1.5 s to import, needed only to plan and render

    data = load_digits()
    return (data.images * (255 / 16)).round().astype(np.uint8), data.target


def _digit_pools() -> dict[str, list[NDArray[np.int64]]]:
    """Split → for each noun the digit images that this split may show: three quarters train, one validation."""
    _, classes = digits()
    rng = np.random.default_rng(SEED)
    shuffled = [rng.permutation(np.flatnonzero(classes == noun)) for noun in range(len(NOUNS))]
    return {
        "train": [images[len(images) // 4 :] for images in shuffled],
        "validation": [images[: len(images) // 4] for images in shuffled],
    }


def _plan_split(
    split: int, clips: int, layout: Size, pool: list[NDArray[np.int64]], participants: int
) -> tuple[Video, ...]:
    order = np.random.default_rng((SEED, split)).permutation(clips)
    return tuple(
        _plan_video(
            participant=participants + 1 + index // layout.videos,
            number=101 + index % layout.videos,
            fps=FPS[index % len(FPS)],
            labels=[_label(clip) for clip in order[index * layout.segments : (index + 1) * layout.segments].tolist()],
            pool=pool,
            rng=np.random.default_rng((SEED, split, index)),
        )
        for index in range(clips // layout.segments)
    )


def _label(clip: int) -> tuple[int, int]:
    """Verb and noun of the n-th clip: any run of clips from 0 is balanced in verbs, nouns and (verb, noun)."""
    verbs, nouns = len(VERBS), len(NOUNS)
    # (n mod 8, n mod 10) repeats after 40 clips and visits half of the 80 combinations; a shift by one visits the rest.
    return clip % verbs, (clip + clip // 40 % 2) % nouns


def _plan_video(
    participant: int,
    number: int,
    fps: Fraction,
    labels: Iterable[tuple[int, int]],
    pool: list[NDArray[np.int64]],
    rng: np.random.Generator,
) -> Video:
    def frames(seconds: tuple[float, float]) -> int:
        return round(rng.uniform(*seconds) * fps)

    inverted = bool(rng.integers(2))
    brightness = int(rng.integers(40, 110))
    segments, stop = [], 0
    for verb, noun in labels:
        start = stop + frames(GAP_SECONDS)
        stop = start + frames(SEGMENT_SECONDS)
        first, last = draw_motion(verb, rng)
        ink = np.clip(brightness + rng.integers(80, 135) + rng.integers(-25, 25, size=3), 0, 255)
        red, green, blue = (255 - ink if inverted else ink).tolist()
        segments.append(Segment(verb, noun, int(rng.choice(pool[noun])), start, stop, first, last, (red, green, blue)))
    name = f"P{participant:02}"
    return Video(
        id=f"{name}_{number}",
        participant=name,
        fps=fps,
        frames=stop + frames(GAP_SECONDS),
        segments=tuple(segments),
        texture=int(rng.integers(2**31)),
        brightness=brightness,
        inverted=inverted,
    )
