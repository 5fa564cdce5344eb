"""Whole videos as clips of a fixed length, for models that score every frame.

A window holds so many *samples*, frames taken at a fixed rate: sample k of a video is the frame on screen at k / fps
seconds, and is in one window. The last window of a video may be shorter.
"""

from __future__ import annotations

from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

from raylab.data.clips import Clip
from raylab.data.sampling import sample_count, sample_times

EPSILON = 1e-3
"""Seconds: as in `raylab.data.video`, a frame that appears so much after a time counts as on screen then."""


def windows(video: str, seconds: float, rate: float, fps: float, samples: int) -> list[Clip]:
    """The windows of one video, in order of time.

    Args:
        video: its id, which is the windows' group too. A window's id is that and its number, from 0: `ID@3`.
        seconds: that the video lasts.
        rate: frames a second of the video.
        fps: samples a second.
        samples: of a window, at most.

    Raises:
        ValueError: the video lasts no time, or `fps` is not positive.
    """
    total = sample_count(seconds, fps)
    cut = []
    for number, first in enumerate(range(0, total, samples)):
        start, stop = first / fps, min(first + samples, total) / fps
        frames = floor((start + EPSILON) * rate) + 1, max(floor(start * rate) + 1, ceil(min(stop, seconds) * rate)) + 1
        cut.append(Clip(f"{video}@{number}", video, start, stop, *frames, labels={}, group=video))
    return cut


def pick(frames: int, rate: float, fps: float) -> NDArray[np.int64]:
    """The frame that each sample of a video is.

    Args:
        frames: of the video.
        rate: frames a second of the video.
        fps: samples a second.

    Returns:
        int64 (samples,), ascending, counted from 0.
    """
    times = np.array(sample_times(0.0, frames / rate, fps))
    return np.minimum(np.floor((times + EPSILON) * rate), frames - 1).astype(np.int64)
