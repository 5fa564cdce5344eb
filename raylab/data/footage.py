"""The frames of a clip where they were recorded: in a video file, or in a folder of extracted frames.

A *position* says which frame: seconds for a video file, the 1-based frame number for extracted frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil, floor
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from raylab.data.clips import Clip
from raylab.data.extracted import read_extracted
from raylab.data.sampling import frame_numbers, frame_times, sample_times
from raylab.data.video import VideoInfo, probe, read_frames
from raylab.errors import RaylabError


def positions(clip: Clip, source: Path, frames: int, fractions: Sequence[float] | None = None) -> list[float]:
    """Positions of `frames` evenly spaced frames, the first and the last of the clip included.

    Args:
        clip: the stretch to sample.
        source: where it was recorded.
        frames: how many.
        fractions: instead of evenly spaced, the frames on screen at these fractions of the clip, in [0, 1).

    Raises:
        RaylabError: the video cannot be read, or ends before the clip begins.
    """
    if source.is_dir():
        if fractions is not None:
            recorded = clip.stop_frame - clip.start_frame
            return [clip.start_frame + floor(fraction * recorded) for fraction in fractions]
        return list(frame_numbers(clip.start_frame, clip.stop_frame, frames))
    start, stop, fps = _stretch(clip, source)
    if fractions is not None:
        last = max(start, stop - 0.5 / fps)  # a time so near the stop that it is taken for it shows the frame after it
        return [min(start + fraction * (stop - start), last) for fraction in fractions]
    # The frame on screen half a frame later is the nearest one: what `frame_numbers` rounds to.
    return [time + 0.5 / fps for time in frame_times(start, stop, fps, frames)]


def positions_at_rate(clip: Clip, source: Path, rate: float) -> list[float]:
    """Positions of the frames on screen every 1 / `rate` seconds from the start of a window on: see `data.windows`.

    Args:
        clip: a window.
        source: a video file.
        rate: frames a second.

    Raises:
        RaylabError: the video cannot be read, or ends before the window begins.
    """
    _stretch(clip, source)
    return sample_times(clip.start, clip.stop, rate)


def frames_at_rate(clip: Clip, source: Path, rate: float) -> int:
    """How many evenly spaced frames of a clip lie no more than 1 / `rate` seconds apart: all of them at most.

    Raises:
        RaylabError: the video cannot be read, or ends before the clip begins.
    """
    if source.is_dir():
        recorded, seconds = clip.stop_frame - clip.start_frame, clip.stop - clip.start
    else:
        start, stop, fps = _stretch(clip, source)
        recorded, seconds = max(1, round((stop - start) * fps)), stop - start
    return min(recorded, 1 + ceil((seconds - seconds / recorded) * rate - 1e-6))


def read_positions(source: Path, positions: Sequence[float], decoder: str) -> Tensor:
    """The frames at these positions.

    Args:
        source: a video file, or a folder of extracted frames.
        positions: in any order.
        decoder: for video files, a name in `raylab.data.video.DECODERS`.

    Returns:
        uint8 RGB of shape (len(positions), 3, height, width).

    Raises:
        VideoError: the frames cannot be read; names the file.
    """
    if source.is_dir():
        return read_extracted(source, [round(number) for number in positions])
    return read_frames(source, positions, decoder)


def fit(frames: Tensor, side: int, crops: int = 1) -> Tensor:
    """The centre square of every frame, or several squares along its longer side.

    Args:
        frames: uint8 (T, 3, H, W).
        side: height and width wanted, in pixels.
        crops: 1 for the centre; more from one end to the other.

    Returns:
        uint8 (crops · T, 3, side, side): all frames of the first crop, then those of the next.
    """
    resized = functional.resize(frames, [side], antialias=True)  # the short side
    if crops == 1:
        square: Tensor = functional.center_crop(resized, [side, side])
        return square
    axis = 3 if resized.shape[3] > resized.shape[2] else 2
    starts = [round(i * (resized.shape[axis] - side) / (crops - 1)) for i in range(crops)]
    return torch.cat([resized.narrow(axis, start, side) for start in starts])


def _stretch(clip: Clip, source: Path) -> tuple[float, float, float]:
    """Start and stop of a clip in its video file, seconds, and the file's frame rate."""
    info = _probe(source, source.stat().st_mtime_ns if source.exists() else 0)
    if clip.start >= info.duration:
        raise RaylabError(
            f"starts at {clip.start:.2f} s, but {source} ends at {info.duration:.2f} s; "
            "replace the file if it is cut short, or leave the clip out"
        )
    return clip.start, min(clip.stop, info.duration), info.fps


@lru_cache(maxsize=1024)
def _probe(source: Path, modified: int) -> VideoInfo:
    """`modified` tells a video from the one that it replaced."""
    return probe(source)
