"""Which part of a video is looked at."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from raylab.data.video import VideoInfo, probe
from raylab.errors import RaylabError


class Stretch(NamedTuple):
    """A video from `start` to `stop`, seconds."""

    info: VideoInfo
    start: float
    stop: float


def cut(path: str | Path, start: float = 0.0, stop: float | None = None) -> Stretch:
    """A video between two moments, by default all of it; a `stop` past its end is its end.

    Raises:
        RaylabError: the file cannot be read, or has nothing between these moments.
    """
    info = probe(path)
    duration = info.duration or 1 / info.fps  # a single frame may have no length
    if start >= duration:
        raise RaylabError(f"--start {start:g}: {path} ends at {duration:.2f} s")
    if stop is not None and stop <= start:
        raise RaylabError(f"--stop {stop:g}: not after --start {start:g}")
    return Stretch(info, start, min(stop or math.inf, duration))
