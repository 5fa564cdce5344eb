"""`kitchen_keyframes`: the built-in data set as TVSum files its own, for models that score every frame.

A video is a series of scenes with hard cuts between them. In each, a handwritten digit rests or moves steadily, and now
and then its motion *changes*: it starts, stops or takes another way. Around a change the digit swells, the more the
stronger the change, and that is what is important. Steady motion is not, however fast, nor is a cut, though both change
more pixels: the difference of frames does not tell what is important. What a single frame shows does, in part: how
large the digit is; the rest is to be seen in the frames around it, which show its size at rest. No digit image stands
in two videos.

Twenty annotators score each second from 1 to 5; what one says is mostly noise: they agree with each other about as
little as TVSum's do, and their mean is a good score. Files are `tvsum.h5`, with the datasets that
`raylab.data.tvsum_files` lists and `n_steps`, `n_frame_per_seg`, `gtsummary` and `category`, but without `features`;
`tvsum_splits.json`, of which each of the five splits holds out a fifth of the videos; and `videos/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raylab.data.keyshots import summarize
from raylab.data.kitchen import Layout, draw_background, draw_glyph, place_glyph
from raylab.data.kitchen_plan import LIMIT, Pose, digits
from raylab.data.windows import pick

VIDEOS = {"tiny": 10, "small": 40, "medium": 100, "large": 250}
SEED = 300
FPS = (Fraction(8), Fraction(10), Fraction(12), Fraction(25, 2), Fraction(15000, 1001))
VIDEO_SECONDS = (14, 55)  # longer than 30 seconds is more than one window of 60 samples
SCENE_SECONDS = (6.0, 12.0)
LEG_SECONDS = (1.8, 4.0)  # of steady motion, or of rest
EDGE_SECONDS = 1.0  # a change keeps this distance from a cut
SWELL_SECONDS = 0.6  # standard deviation of a swell
SWELL = 0.85  # growth at the strongest change
STRENGTHS = (0.25, 1.0)
SIZES = (0.25, 0.29)  # of a digit at rest, in frame heights
SPEEDS = (0.05, 0.25)  # frame heights a second
TURNS = (10.0, 60.0)  # degrees a second
SHOT_SECONDS = 1.5  # at most; so short that a summary of 15 % holds some
ANNOTATORS = 20
SCORED_SECONDS = 1.0
NOISE = 0.33  # standard deviation of what one annotator sees, about the truth
BIAS = 0.1  # of all that one annotator sees
SCORE = (1.9, 1.75)  # what is seen becomes a score: the first and the second times it, rounded down
SAMPLES = 2.0  # a second, of `picks`


@dataclass(frozen=True, slots=True)
class Scene:
    """One digit before one background.

    Attributes:
        image: index of the digit's image in `sklearn.datasets.load_digits`.
        stop: number of the first frame after it.
        times: when the way of the digit bends, seconds of the video; the scene's beginning and end are first and last.
        poses: at those times; between them it moves steadily.
        strengths: of the change at each of those times but the first and the last, 0 to 1.
        ink: the digit's colour, RGB 0–255.
        texture, brightness, inverted: of the background, as in `kitchen_plan.Video`.
    """

    image: int
    stop: int
    times: tuple[float, ...]
    poses: tuple[Pose, ...]
    strengths: tuple[float, ...]
    ink: tuple[int, int, int]
    texture: int
    brightness: int
    inverted: bool

    def importance(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """How near a change is, and how strong: 0 to 1."""
        away = (seconds[:, None] - np.array(self.times[1:-1])) / SWELL_SECONDS
        return np.max(np.array(self.strengths) * np.exp(-(away**2) / 2), axis=1, initial=0.0)

    def pose(self, seconds: float) -> Pose:
        """Of the digit: on its way, and swollen as far as the moment is important."""
        x, y, size, angle = (float(np.interp(seconds, self.times, way)) for way in zip(*self.poses, strict=True))
        return Pose(x, y, size * (1 + SWELL * float(self.importance(np.array([seconds]))[0])), angle)


@dataclass(frozen=True, slots=True)
class Reel:
    """One video file: everything that decides its pixels and its scores."""

    id: str
    fps: Fraction
    scenes: tuple[Scene, ...]
    seed: int

    @property
    def frames(self) -> int:
        return self.scenes[-1].stop

    @property
    def images(self) -> list[int]:
        """The digit of each scene, as an index into `digits`."""
        return [scene.image for scene in self.scenes]

    @property
    def importance(self) -> NDArray[np.float64]:
        """(frames,), 0 to 1: what the annotators see, each with an error of their own."""
        seconds = np.arange(self.frames) / float(self.fps)
        parts = zip(self.scenes, np.split(seconds, [scene.stop for scene in self.scenes[:-1]]), strict=True)
        return np.concatenate([scene.importance(part) for scene, part in parts])

    @property
    def shots(self) -> NDArray[np.int64]:
        """(S, 2): each scene in equal parts."""
        longest, firsts = SHOT_SECONDS * float(self.fps), []
        start = 0
        for scene in self.scenes:
            parts = int(np.ceil((scene.stop - start) / longest))
            firsts += [start + (scene.stop - start) * part // parts for part in range(parts)]
            start = scene.stop
        return np.stack([firsts, [*firsts[1:], self.frames]], 1) - [0, 1]

    @property
    def scores(self) -> NDArray[np.uint8]:
        """(annotators, frames), 1 to 5."""
        rng = np.random.default_rng((SEED, self.seed))
        owner = (np.arange(self.frames) / float(self.fps) // SCORED_SECONDS).astype(np.int64)
        truth = np.bincount(owner, self.importance) / np.bincount(owner)
        seen = truth + rng.normal(0, BIAS, (ANNOTATORS, 1)) + rng.normal(0, NOISE, (ANNOTATORS, len(truth)))
        return np.clip(np.floor(SCORE[0] + SCORE[1] * seen), 1, 5).astype(np.uint8)[:, owner]


def plan_reels(size: str) -> dict[str, tuple[Reel, ...]]:
    """All videos, as the one split `all`.

    Args:
        size: a key of `VIDEOS`.
    """
    images = iter(np.random.default_rng(SEED).permutation(len(digits()[0])).tolist())
    return {"all": tuple(_plan_reel(number, images) for number in range(VIDEOS[size]))}


def _plan_reel(number: int, images: Iterator[int]) -> Reel:
    rng = np.random.default_rng((SEED, 1, number))
    fps = FPS[number % len(FPS)]
    # Lengths are spread evenly, so that every data set has videos of one window and of two.
    seconds = VIDEO_SECONDS[0] + (VIDEO_SECONDS[1] - VIDEO_SECONDS[0]) * ((number * 0.618) % 1)
    scenes: list[Scene] = []
    start = 0
    while start / fps < seconds:
        stop = start + round(rng.uniform(*SCENE_SECONDS) * fps)
        scenes.append(_plan_scene(start / float(fps), stop, fps, next(images), rng))
        start = stop
    return Reel(f"reel_{number + 1:03}", fps, tuple(scenes), number)


def _plan_scene(begin: float, stop: int, fps: Fraction, image: int, rng: np.random.Generator) -> Scene:
    end = stop / float(fps)
    times = [begin]
    while (following := times[-1] + rng.uniform(*LEG_SECONDS)) < end - EDGE_SECONDS:
        times.append(following)
    times.append(end)
    size = rng.uniform(*SIZES)
    room = LIMIT - size * (1 + SWELL) / 2
    x, y = rng.uniform(-room, room, 2).tolist()
    pose = Pose(x, y, size, rng.uniform(-25, 25))
    poses, moves = [pose], bool(rng.integers(2))
    for first, last in pairwise(times):
        if moves:
            pose = _moved(pose, last - first, room, rng)
        poses.append(pose)
        moves = not moves or rng.random() < 0.3
    inverted, brightness = bool(rng.integers(2)), int(rng.integers(40, 110))
    ink = np.clip(brightness + rng.integers(80, 135) + rng.integers(-25, 25, size=3), 0, 255)
    red, green, blue = (255 - ink if inverted else ink).tolist()
    strengths = tuple(rng.uniform(*STRENGTHS, len(times) - 2).tolist())
    texture = int(rng.integers(2**31))
    return Scene(image, stop, tuple(times), tuple(poses), strengths, (red, green, blue), texture, brightness, inverted)


def _moved(pose: Pose, seconds: float, room: float, rng: np.random.Generator) -> Pose:
    """Where a steady motion ends: a way off, or turned."""
    if rng.random() < 0.3:
        return pose._replace(angle=pose.angle + rng.choice((-1, 1)) * rng.uniform(*TURNS) * seconds)
    goal = rng.uniform(-room, room, 2)
    way = goal - [pose.x, pose.y]
    length = float(np.hypot(*way))
    scale = min(max(SPEEDS[0] * seconds / length, 1.0), SPEEDS[1] * seconds / length) if length else 0.0
    x, y = np.clip([pose.x, pose.y] + way * scale, -room, room).tolist()
    return pose._replace(x=x, y=y)


def render_reel(reel: Reel, images: NDArray[np.uint8]) -> Iterator[Image.Image]:
    """The frames of a video, RGB.

    Args:
        images: the digit of each scene, (scenes, 8, 8), 0–255.
    """
    start = 0
    for scene, image in zip(reel.scenes, images, strict=True):
        background, glyph = draw_background(scene), draw_glyph(image)
        for frame in range(start, scene.stop):
            shown = background.copy()
            shown.paste(scene.ink, None, place_glyph(glyph, scene.pose(frame / float(reel.fps))))
            yield shown
        start = scene.stop


def _path(reel: Reel) -> Path:
    return Path("videos", f"{reel.id}.mp4")


def _write_files(folder: Path, splits: dict[str, tuple[Reel, ...]]) -> None:
    (reels,) = splits.values()
    with h5py.File(folder / "tvsum.h5", "w") as file:
        for number, reel in enumerate(reels, start=1):
            group = file.create_group(f"video_{number}")
            for name, content in _datasets(reel).items():
                group.create_dataset(name, data=content, compression="gzip" if name.startswith("user_") else None)
    order = np.random.default_rng(SEED).permutation(len(reels)) + 1
    folds = [
        {
            "train_keys": [f"video_{key}" for key in sorted(set(order.tolist()) - set(order[fold::5].tolist()))],
            "test_keys": [f"video_{key}" for key in sorted(order[fold::5].tolist())],
        }
        for fold in range(5)
    ]
    (folder / "tvsum_splits.json").write_text(json.dumps(folds, indent=1), encoding="utf-8")


def _datasets(reel: Reel) -> dict[str, object]:
    picks = pick(reel.frames, float(reel.fps), SAMPLES)
    scores, shots = reel.scores, reel.shots
    scaled = (scores[:, picks].astype(np.float64) - 1) / 4
    mean = scaled.mean(0)
    return {
        "video_name": reel.id,
        "category": "kitchen",
        "fps": float(reel.fps),
        "n_frames": reel.frames,
        "n_steps": len(picks),
        "picks": picks,
        "gtscore": mean.astype(np.float32),
        "user_scores": scores,
        "change_points": shots,
        "n_frame_per_seg": shots[:, 1] - shots[:, 0] + 1,
        "user_summary": np.stack([summarize(own, shots, reel.frames, picks) for own in scaled]),
        "gtsummary": summarize(mean, shots, reel.frames, picks)[picks].astype(np.float32),
    }


_SETTINGS = {name: value for name, value in vars().items() if name.isupper() and name != "LIMIT"}
KEYFRAMES = Layout("kitchen-keyframes", plan_reels, render_reel, _path, _write_files, tuple(sorted(_SETTINGS.items())))
