"""Which frames of a clip the model sees: evenly spaced, one from each of n equal segments, or so many a second."""

from __future__ import annotations

import math
from random import Random

import numpy as np


def frame_numbers(start_frame: int, stop_frame: int, n: int) -> list[int]:
    """`n` evenly spaced frame numbers, for clips stored as extracted frames.

    `linspace(start_frame, stop_frame - 1, n)`, rounded to the nearest frame (halves to the even one):
    the last number is the last frame *inside* the segment, not the first one after it. Segments shorter
    than `n` frames repeat frames; `n = 1` gives the first frame.

    Args:
        start_frame: first frame, inclusive.
        stop_frame: just past the last frame.
        n: how many.

    Returns:
        `n` ascending numbers in [start_frame, stop_frame - 1].

    Raises:
        ValueError: the segment has no frame, or `n` is below 1.
    """
    _check(start_frame, stop_frame, n)
    numbers: list[int] = np.rint(np.linspace(start_frame, stop_frame - 1, n)).astype(np.int64).tolist()
    return numbers


def frame_times(start: float, stop: float, fps: float, n: int) -> list[float]:
    """`n` evenly spaced times, for clips read from video files.

    The rule of `frame_numbers` in seconds: `linspace(start, stop - 1 / fps, n)`. A segment shorter than
    one frame repeats its start.

    Args:
        start: seconds, inclusive.
        stop: seconds, exclusive.
        fps: frames per second of the video file.
        n: how many.

    Returns:
        `n` ascending times in [start, max(start, stop - 1 / fps)].

    Raises:
        ValueError: the segment is empty, `fps` is not positive, or `n` is below 1.
    """
    _check(start, stop, n)
    if not fps > 0:
        raise ValueError(f"fps must be positive, not {fps}")
    times: list[float] = np.linspace(start, max(start, stop - 1 / fps), n).tolist()
    return times


def segment_fractions(n: int, random: Random | None = None) -> list[float]:
    """One moment in each of `n` equal segments of a clip, as fractions of the clip (TSN: Wang et al., ECCV 2016).

    Args:
        n: how many.
        random: where in its segment each lies; None for the middle.

    Returns:
        `n` ascending numbers in [0, 1).

    Raises:
        ValueError: `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
    below_one = math.nextafter(1, 0)  # what the last sum may round up to
    return [min((i + (random.random() if random else 0.5)) / n, below_one) for i in range(n)]


def sample_count(seconds: float, fps: float) -> int:
    """How many frames `sample_times` takes in so many seconds: at least one.

    Raises:
        ValueError: there are no seconds, or not finitely many, or `fps` is not positive.
    """
    if not (0 < seconds < math.inf and fps > 0):
        raise ValueError(f"seconds and fps must be positive and finite, not {seconds} and {fps}")
    return max(1, math.ceil(seconds * fps - 1e-6))  # less than a rounding error of a sample later is no sample


def sample_times(start: float, stop: float, fps: float) -> list[float]:
    """Times from `start` on, 1 / `fps` apart, as long as they lie before `stop`.

    Raises:
        ValueError: as `sample_count`.
    """
    return [start + k / fps for k in range(sample_count(stop - start, fps))]


def _check(start: float, stop: float, n: int) -> None:
    if not start < stop:
        raise ValueError(f"an empty segment has no frames: start {start}, stop {stop}")
    if n < 1:
        raise ValueError(f"n must be at least 1, not {n}")
