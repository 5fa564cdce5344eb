"""`kitchen`, the built-in data set: handwritten digits that move, filed as EPIC-KITCHENS-100 files its videos.

Nouns are the ten digits of scikit-learn's `load_digits` (UCI optical recognition of handwritten digits); no image of
the validation split occurs in the training split. Verbs are eight motions in four opposite pairs. Both verbs of a pair
draw their two end poses from one distribution and visit the same poses in opposite order, so each is exactly the time
reversal of the other: a model that ignores the order of the frames cannot tell them apart. The files are encoded
without loss to keep it so: at usual qualities a faint trail stays behind a moving digit and gives its direction away.

What is shown stands in `kitchen_plan`, as plain data; here it is drawn (`render_frames`) and filed (`kitchen_root`): as
EPIC's videos are, or in another `Layout`.
"""

from __future__ import annotations

import csv
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import cos, floor, radians, sin
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import av
import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from PIL import Image, ImageChops

from raylab.data import kitchen_plan
from raylab.data.kitchen_plan import NOUNS, SIZES, VERBS, Pose, Video, digits, plan
from raylab.errors import RaylabError, unknown_name
from raylab.storage import cache_folder

FORMAT = 2  # raise it when a change of the code changes what is rendered or filed: caches are told apart by it
WIDTH, HEIGHT = 128, 72
GLYPH = 40  # pixels along a digit's mask: its 8 × 8 cells and an empty border cell around them, 4 pixels each
ENCODER = {"qp": "0", "preset": "superfast", "g": "50", "sc_threshold": "0", "threads": "1"}

CLIP_COLUMNS = (
    *("narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp"),
    *("start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class"),
    *("all_nouns", "all_noun_classes"),
)
Splits = dict[str, tuple[Video, ...]]


class Film(Protocol):
    """What every kind of planned video has: its frame rate, and which of `digits` it shows."""

    @property
    def fps(self) -> Fraction: ...

    @property
    def images(self) -> list[int]: ...


class Backdrop(Protocol):
    """What decides a background: see `Video`."""

    @property
    def texture(self) -> int: ...

    @property
    def brightness(self) -> int: ...

    @property
    def inverted(self) -> bool: ...


F = TypeVar("F", bound=Film)


@dataclass(frozen=True)
class Layout(Generic[F]):
    """How the built-in data set is filed, and of which videos.

    Attributes:
        name: what the names of its folders begin with.
        plan: size → split → the videos to render.
        draw: a video and images of its digits, (n, 8, 8), 0–255 → its frames, as `render_frames`.
        path: where a video lies under the root.
        annotate: writes the annotations of all splits into a folder.
        settings: what its plan follows, besides those of `kitchen_plan`.
    """

    name: str
    plan: Callable[[str], dict[str, tuple[F, ...]]]
    draw: Callable[[F, NDArray[np.uint8]], Iterator[Image.Image]]
    path: Callable[[F], Path]
    annotate: Callable[[Path, dict[str, tuple[F, ...]]], None]
    settings: tuple[object, ...] = ()


def kitchen_root(
    size: str,
    cache: Path | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    layout: Layout[Any] | None = None,
) -> Path:
    """The folder of the built-in data set, rendered on the first call.

    Its layout is EPIC-KITCHENS-100's: `EPIC_100_{train,validation,verb_classes,noun_classes,video_info}.csv`, the lists
    of unseen participants and of tail classes, and `<participant>/videos/<video_id>.MP4` (H.264). No participant is in
    both splits, so all of validation are unseen; classes are equally frequent, so the last fifth stand for a tail.

    Files and decoded frames do not depend on `workers`. The folder appears complete or not at all; processes that ask
    at the same time wait for the one that renders.

    Args:
        size: a key of `SIZES`.
        cache: folder of the cache; by default `$RAYLAB_CACHE`, else `$XDG_CACHE_HOME/raylab`, else `~/.cache/raylab`.
        workers: rendering processes; by default one for each usable CPU.
        progress: called with (videos rendered, videos in all) after each video.
        layout: in place of EPIC's.

    Raises:
        RaylabError: unknown size, fewer than one worker, or a cache that cannot be written.
    """
    if size not in SIZES:
        raise unknown_name("size of the kitchen data set", size, SIZES)
    if workers is not None and workers < 1:
        raise RaylabError(f"workers = {workers}: rendering the kitchen data set needs at least 1")
    layout = layout or EPIC
    base = cache or cache_folder()
    root = base / f"{layout.name}-{size}-{fingerprint(size, *layout.settings)}"
    if root.is_dir():
        return root
    try:
        base.mkdir(parents=True, exist_ok=True)
        with FileLock(base / f"{root.name}.lock"):
            if not root.is_dir():
                _render_root(layout, size, root, workers or _usable_cpus(), progress)
    except OSError as error:
        remedy = "set RAYLAB_CACHE to a writable folder with free space"
        raise RaylabError(
            f"{root}: cannot render the kitchen data set ({error.strerror or error}): {remedy}"
        ) from error
    return root


def fingerprint(size: str, *of_layout: object) -> str:
    """Ten hex digits that change with the size and with any setting of the generator, and of a layout."""
    drawn = {name: value for name, value in vars(kitchen_plan).items() if name.isupper() and name != "SIZES"}
    settings = (FORMAT, WIDTH, HEIGHT, ENCODER, sorted(drawn.items()), SIZES[size], *of_layout)
    return hashlib.sha256(repr(settings).encode()).hexdigest()[:10]


def render_frames(video: Video, images: NDArray[np.uint8]) -> Iterator[Image.Image]:
    """The frames of a video, as RGB images of WIDTH × HEIGHT.

    Args:
        images: the digit of each segment, (segments, 8, 8), 0–255.
    """
    background = draw_background(video)
    rest = rest_frames(video.fps)
    shown = {
        frame: (segment, glyph)
        for segment, glyph in zip(video.segments, map(draw_glyph, images), strict=True)
        for frame in range(segment.start - rest, segment.stop + rest)
    }
    for frame in range(video.frames):
        image = background.copy()
        if frame in shown:
            segment, glyph = shown[frame]
            image.paste(segment.ink, None, place_glyph(glyph, segment.pose(frame)))
        yield image


def rest_frames(fps: Fraction) -> int:
    """How many frames a digit stands still before its motion, and after it."""
    return round(kitchen_plan.REST_SECONDS * fps)


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def draw_background(video: Backdrop) -> Image.Image:
    """Static cloudy texture: coarse coloured noise and fine grey noise about the mean brightness."""
    rng = np.random.default_rng(video.texture)
    coarse = rng.normal(0, 14, size=(5, 9, 3)) + rng.normal(0, 10, size=3)
    fine = np.repeat(rng.normal(0, 5, size=(HEIGHT // 2, WIDTH // 2, 1)), 3, axis=2)
    coarse_layer, fine_layer = (_enlarge(128 + layer, (WIDTH, HEIGHT)) for layer in (coarse, fine))
    image = ImageChops.add(coarse_layer, fine_layer, 1, video.brightness - 256)
    return ImageChops.invert(image) if video.inverted else image


def draw_glyph(digit: NDArray[np.uint8]) -> Image.Image:
    """Opacity mask of a digit, fading to 0 at its border."""
    return _enlarge(np.pad(digit, 1), (GLYPH, GLYPH))


def _enlarge(pixels: NDArray[Any], size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def place_glyph(glyph: Image.Image, pose: Pose) -> Image.Image:
    """The glyph's mask, placed in an otherwise empty frame."""
    zoom = 0.8 * GLYPH / (pose.size * HEIGHT)  # mask pixels per frame pixel; the digit fills 8 of 10 cells
    a, b = zoom * cos(radians(pose.angle)), zoom * sin(radians(pose.angle))
    x, y = WIDTH / 2 + pose.x * HEIGHT, HEIGHT / 2 + pose.y * HEIGHT
    # Frame to mask, the direction in which PIL maps: [a b; -b a] turns back what stands clockwise (y points down).
    matrix = (a, b, GLYPH / 2 - a * x - b * y, -b, a, GLYPH / 2 + b * x - a * y)
    return glyph.transform((WIDTH, HEIGHT), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)


def _render_root(
    layout: Layout[Any], size: str, root: Path, workers: int, progress: Callable[[int, int], None] | None
) -> None:
    """Render beside `root`, then rename. The caller holds the lock, so any other unfinished folder is abandoned."""
    # joblib's workers, unlike the standard library's, do not import the caller's main module (and torch with it).
    from joblib import Parallel, delayed

    for abandoned in root.parent.glob(f"{root.name}.*.partial"):
        shutil.rmtree(abandoned, ignore_errors=True)
    # Named anew each time: a worker that outlived a killed rendering must not write into this one.
    folder = root.with_name(f"{root.name}.{secrets.token_hex(4)}.partial")
    try:
        splits = layout.plan(size)
        videos = {folder / layout.path(video): video for split in splits.values() for video in split}
        images, _ = digits()
        for parent in {path.parent for path in videos}:
            parent.mkdir(parents=True)
        jobs = (
            delayed(_render_video)(layout.draw, video, images[video.images], path) for path, video in videos.items()
        )
        parallel = Parallel(workers, "loky", return_as="generator_unordered", idle_worker_timeout=2)
        for done, _ in enumerate(parallel(jobs), start=1):
            if progress is not None:
                progress(done, len(videos))
        layout.annotate(folder, splits)
        folder.rename(root)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _render_video(
    draw: Callable[[F, NDArray[np.uint8]], Iterator[Image.Image]], video: F, images: NDArray[np.uint8], path: Path
) -> None:
    with av.open(path, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=video.fps, options=dict(ENCODER))
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number, image in enumerate(draw(video, images)):
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
            frame.pts, frame.time_base = number, 1 / video.fps
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _write_annotations(folder: Path, splits: Splits) -> None:
    for split, videos in splits.items():
        rows = (_clip_row(video, number) for video in videos for number in range(len(video.segments)))
        _write_csv(folder / f"EPIC_100_{split}.csv", CLIP_COLUMNS, rows)
    categories = {"verb": [key.partition("-")[0] for key in VERBS], "noun": ["digit"] * len(NOUNS)}
    for head, keys in (("verb", VERBS), ("noun", NOUNS)):
        classes = ((i, key, [key], kind) for i, (key, kind) in enumerate(zip(keys, categories[head], strict=True)))
        _write_csv(folder / f"EPIC_100_{head}_classes.csv", ("id", "key", "instances", "category"), classes)
        tail = range(len(keys) * 4 // 5, len(keys))
        _write_csv(folder / f"EPIC_100_tail_{head}s.csv", (head,), ((index,) for index in tail))
    unseen = sorted({(video.participant,) for video in splits["validation"]})
    _write_csv(folder / "EPIC_100_unseen_participant_ids_validation.csv", ("participant_id",), unseen)
    info = (
        (video.id, float(video.frames / video.fps), float(video.fps), f"{WIDTH}x{HEIGHT}")
        for videos in splits.values()
        for video in videos
    )
    _write_csv(folder / "EPIC_100_video_info.csv", ("video_id", "duration", "fps", "resolution"), info)


def _clip_row(video: Video, number: int) -> tuple[object, ...]:
    segment = video.segments[number]
    verb, noun = VERBS[segment.verb], NOUNS[segment.noun]
    start, stop = (_hundredths(frame, video.fps) for frame in (segment.start, segment.stop))
    return (
        *(f"{video.id}_{number}", video.participant, video.id),
        *(f"{_timestamp(start)}0", _timestamp(start), _timestamp(stop), segment.start + 1, segment.stop + 1),
        *(f"{verb.replace('-', ' ')} {noun}", verb, segment.verb, noun, segment.noun, [noun], [segment.noun]),
    )


def _hundredths(frame: int, fps: Fraction) -> int:
    """The first hundredth of a second inside the time that a 0-based frame is shown.

    Never the very start of that time, so that `int(seconds * fps) + 1` gives its 1-based number in floating point too.
    """
    return floor(100 * frame / fps) + 1


def _timestamp(hundredths: int) -> str:
    minutes, rest = divmod(hundredths, 6_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 100:02}.{rest % 100:02}"


def _write_csv(path: Path, header: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


EPIC = Layout("kitchen", plan, render_frames, path=lambda video: video.path, annotate=_write_annotations)
