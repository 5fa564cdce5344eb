"""Videos with known pixels, of the kinds that are awkward to measure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared" / "data" / "videos"


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8, smooth shapes and some noise: neither flat nor white."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    shapes = 128 + 60 * np.sin(x / 7 + seed) * np.cos(y / 11)
    return (shapes + random.normal(0, 4, (height, width))).clip(16, 235).astype(np.uint8)


def film(
    path: Path,
    pictures: Sequence[np.ndarray],
    pixels: str = "yuv420p",
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    gaps: Iterable[int] | None = None,
    format: str | None = None,
) -> Path:
    """Write luma planes (uint8, or uint16 for more bits) as they are, chroma neutral, at 25 frames/s.

    `gaps`, where given, are ticks of 1/1000 s between frames.
    """
    height, width = pictures[0].shape
    times = [0, *np.cumsum(list(gaps)).tolist()] if gaps is not None else [40 * n for n in range(len(pictures))]
    with av.open(str(path), "w", format=format) as out:
        stream = out.add_stream(codec, rate=25, options=options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for time, picture in zip(times, pictures, strict=True):
            frame = planar(picture, pixels)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def planar(picture: np.ndarray, pixels: str) -> av.VideoFrame:
    """A frame whose first plane is `picture`, the others grey."""
    frame = av.VideoFrame(picture.shape[1], picture.shape[0], pixels)
    bits = frame.format.components[0].bits
    for number, plane in enumerate(frame.planes):
        samples = np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16).reshape(plane.height, -1)
        samples[:] = 1 << bits - 1
        if number == 0:
            samples[:, : plane.width] = picture
    return frame


def remux(source: Path, target: Path, later: float = 0, **options: str) -> Path:
    """Copy the packets of an MP4 file's video into another container, so many seconds later."""
    with av.open(str(source)) as given, av.open(str(target), "w", options=options) as out:
        stream = given.streams.video[0]
        copy = out.add_stream_from_template(stream)
        for packet in given.demux(stream):
            if packet.dts is not None:
                packet.pts += round(later / packet.time_base)
                packet.dts += round(later / packet.time_base)
                packet.stream = copy
                out.mux(packet)
    return target


def sound(path: Path) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path
