"""H.264 files of the kinds that video data sets come in, encoded from real pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import cycle, islice
from math import ceil
from pathlib import Path
from typing import NamedTuple

import av
from av.video.frame import PictureType

from raylab.data.kitchen import kitchen_root

ENCODED = 260  # frames that x264 encodes, at most; a longer file repeats them, GOP by GOP
REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "videos" / "bigbuckbunny.mp4"


class Kind(NamedTuple):
    """One kind of file: picture size, frames per second, frames from one keyframe to the next, length in seconds."""

    width: int
    height: int
    fps: int
    gop: int
    seconds: int

    def __str__(self) -> str:
        return f"{self.width}×{self.height}, {self.fps} frames/s, a keyframe every {self.gop}, {self.seconds} s"


KINDS = {
    "256p": Kind(456, 256, 50, 50, 60),  # EPIC-KITCHENS' small videos
    "320p": Kind(568, 320, 30, 15, 15),  # EPIC-KITCHENS in chunks, as AVION prepares it
    "1080p": Kind(1920, 1080, 60, 250, 60),  # as a camera records it, with x264's default of 250
}


def default_video() -> Path:
    """A real video where there is one, else one of the built-in data set."""
    return REAL if REAL.exists() else next(kitchen_root("tiny").rglob("*.MP4"))


def encode(kind: Kind, video: Path, target: Path) -> None:
    """Write the pixels of a video, played forwards and backwards over and over, as a file of one kind.

    Each source frame becomes one frame, at whatever rate it was recorded, scaled to the kind's size. Except for the
    keyframes, x264 has FFmpeg's default settings. The file is as long as the kind says, or a few seconds longer.
    """
    tick = Fraction(1, kind.fps)
    frames = kind.seconds * kind.fps
    encoded = min(frames, ENCODED) // kind.gop * kind.gop
    with av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=kind.fps)
        stream.width, stream.height, stream.pix_fmt = kind.width, kind.height, "yuv420p"
        stream.options = {"g": str(kind.gop), "sc_threshold": "0"}
        packets = []
        for number, frame in enumerate(islice(_forwards_and_backwards(_scaled(kind, video)), encoded)):
            frame.pts, frame.time_base = number, tick
            frame.pict_type = PictureType.NONE  # or x264 would be told to repeat the source's choice
            packets += stream.encode(frame)
        packets += stream.encode(None)
        for repetition in range(ceil(frames / encoded)):
            for packet in packets:
                if repetition:
                    packet.pts += round(encoded * tick / packet.time_base)
                    packet.dts += round(encoded * tick / packet.time_base)
                out.mux(packet)


def _scaled(kind: Kind, video: Path) -> list[av.VideoFrame]:
    with av.open(str(video)) as container:
        return [
            frame.reformat(kind.width, kind.height, "yuv420p") for frame in islice(container.decode(video=0), ENCODED)
        ]


def _forwards_and_backwards(frames: Sequence[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    return cycle([*frames, *frames[-2:0:-1]])
