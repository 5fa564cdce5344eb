"""The handcrafted features of one video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from raylab.data.container import VideoError, frames_shown, open_video
from raylab.data.sampling import segment_fractions
from raylab.handcrafted.container import Packets
from raylab.handcrafted.luma import luma
from raylab.handcrafted.measures import OF_FILES, OF_FRAMES
from raylab.handcrafted.moments import SMALLEST, Moments
from raylab.schema import Count, Section


class HandcraftedSettings(Section):
    """Which frames handcrafted features are computed from."""

    frames: Count = Field(16, description="frames of each video, the middle ones of equal parts; all, if it has fewer")


def extract(video: Path | str, settings: HandcraftedSettings | None = None) -> NDArray[np.float64]:
    """The vector of a video.

    Args:
        video: a file; its best video stream is measured, as it is stored, whatever rotation its header asks for.
        settings: by default, those of `HandcraftedSettings`.

    Returns:
        float64 (len(FEATURES),), finite; the same bits for the same file.

    Raises:
        VideoError: the file is missing, is not a video, is damaged on the way to a frame, or its pictures are smaller
            than `SMALLEST`.
    """
    path, settings = Path(video), settings or HandcraftedSettings()
    with open_video(path) as (container, stream):
        packets = Packets.read(path, container, stream)
    count = len(packets.times)
    chosen = [int(fraction * count) for fraction in segment_fractions(min(settings.frames, count))]
    measured = []
    with open_video(path) as (container, stream):
        for frame, _ in frames_shown(path, container, stream, packets.times[chosen].tolist()):
            if min(frame.width, frame.height) < SMALLEST:
                raise VideoError(
                    f"{path}: pictures of {frame.width} × {frame.height} pixels: handcrafted features need at least "
                    f"{SMALLEST} × {SMALLEST}; leave the video out"
                )
            moments = Moments.of(luma(frame))
            measured.append([measure.of(moments) for measure in OF_FRAMES])
    over_frames = np.array(measured)
    of_file = [measure.of(packets) for measure in OF_FILES]
    return np.concatenate([over_frames.mean(axis=0), over_frames.std(axis=0), of_file])
