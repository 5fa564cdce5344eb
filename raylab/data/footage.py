"""The frames of a clip where they were recorded: in a video file, or in a folder of extracted frames.

A *position* says which frame: seconds for a video file, the 1-based frame number for extracted frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import ceil
from pathlib import Path

from torch import Tensor

from raylab.data.clips import Clip
from raylab.data.extracted import read_extracted
from raylab.data.sampling import frame_numbers, frame_times
from raylab.data.video import VideoInfo, probe, read_frames
from raylab.errors import RaylabError


def positions(clip: Clip, source: Path, frames: int) -> list[float]:
    """Positions of `frames` evenly spaced frames, the first and the last of the clip included.

    Raises:
        RaylabError: the video cannot be read, or ends before the clip begins.
    """
    if source.is_dir():
        return list(frame_numbers(clip.start_frame, clip.stop_frame, frames))
    start, stop, fps = _stretch(clip, source)
    # The frame on screen half a frame later is the nearest one: what `frame_numbers` rounds to.
    return [time + 0.5 / fps for time in frame_times(start, stop, fps, frames)]


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
