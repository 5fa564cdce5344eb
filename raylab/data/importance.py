"""How important the frames of a video are: annotators' scores, shots and summaries, and where they are kept.

Frames are counted twice: *frames* are those of the video file, *samples* those taken from it at `data.fps`, which
models score. Sample k is the frame on screen at k / fps seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from raylab.data.clips import Clip, ClipTable
from raylab.data.keyshots import summarize
from raylab.data.sampling import sample_count
from raylab.storage import replacing

ARRAYS = ("scores", "shots", "picks", "summaries", "published_mean")


@dataclass(frozen=True, eq=False)
class Importance:
    """What is known of one video.

    Attributes:
        scores: float32 (A, N), of A annotators in [0, 1] for N samples; A is 0 where only their mean is known.
        shots: int64 (S, 2), first and last frame of each shot, both inclusive; together they are all frames.
        frames: of the video.
        picks: int64 (N,), the frame that each sample is.
        summaries: uint8 (A, frames), 1 where a frame is in an annotator's summary; None where none are published.
        category: of the video, e.g. TVSum's `VT`; empty where it is not known.
        published_mean: float32 (N,), where only the mean score is known.
    """

    scores: NDArray[np.float32]
    shots: NDArray[np.int64]
    frames: int
    picks: NDArray[np.int64]
    summaries: NDArray[np.uint8] | None = None
    category: str = ""
    published_mean: NDArray[np.float32] | None = None

    @cached_property
    def mean(self) -> NDArray[np.float32]:
        """float32 (N,): the mean score over the annotators."""
        return self.scores.mean(0) if self.published_mean is None else self.published_mean

    @cached_property
    def references(self) -> NDArray[np.uint8]:
        """uint8 (A, frames): `summaries`, or where none are published those that the annotators' own scores make."""
        if self.summaries is not None:
            return self.summaries
        made = [summarize(scores, self.shots, self.frames, self.picks) for scores in self.scores]
        return np.array(made, np.uint8).reshape(-1, self.frames)


def window_scores(
    clips: Sequence[Clip], importance: Mapping[str, Importance], fps: float, samples: int
) -> NDArray[np.float32]:
    """The mean scores of windows' samples.

    Args:
        clips: windows, as `raylab.data.windows` cuts them.
        importance: of their videos.
        fps: samples a second.
        samples: of the longest window, T.

    Returns:
        float32 (windows, T), 0 past the end of a window.
    """
    table = ClipTable.of(clips)
    scores = np.zeros((len(table), samples), np.float32)
    for row, clip in zip(scores, table, strict=True):
        first, count = round(clip.start * fps), sample_count(clip.stop - clip.start, fps)
        row[:count] = importance[clip.video].mean[first : first + count]
    return scores


def write_importance(path: Path, importance: Mapping[str, Importance]) -> None:
    """Write a safetensors file; its tensors are named `<array>/<video>`.

    Raises:
        OSError: it cannot be written.
    """
    tensors = {
        f"{name}/{video}": np.ascontiguousarray(array)
        for video, known in importance.items()
        for name in ARRAYS
        if (array := getattr(known, name)) is not None
    }
    with replacing(path) as writing:
        writing.write_bytes(save(tensors))


def read_importance(path: Path, about: Mapping[str, tuple[int, str]]) -> dict[str, Importance]:
    """What `write_importance` has written.

    Args:
        path: the file.
        about: video → its number of frames, and its category.

    Raises:
        OSError, SafetensorError, TypeError: the file is gone, damaged, or lacks a video.
    """
    tensors = load_file(path)
    return {
        video: Importance(
            **{name: tensors[f"{name}/{video}"] for name in ARRAYS if f"{name}/{video}" in tensors},
            frames=frames,
            category=category,
        )
        for video, (frames, category) in about.items()
    }
