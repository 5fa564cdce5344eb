"""Luma as it was coded: no resizing, no rotation, no colour conversion, since each would blur what is measured."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_LUMA_FIRST = re.compile(r"(?P<kind>yuv[aj]?4\d\dp|gray|nv(?:12|16|21|24|42))(?P<bits>9|1[0246])?(?:le)?")
"""Pixel formats whose first plane is luma, in the low bits of its samples."""


def luma(frame: VideoFrame) -> NDArray[np.float32]:
    """The luma of a decoded frame, (height, width), as it is stored: black is 0 and white 255, whatever the bit depth.

    Video that does not state its range is taken to be limited (16 to 235), grey video to be full, as FFmpeg does.
    Values below black and above white are kept. Formats without a plane of luma (RGB, packed) are converted by FFmpeg.
    """
    found = _LUMA_FIRST.fullmatch(frame.format.name)
    if not found:
        deep = max(component.bits for component in frame.format.components) > 8
        name = "gray16le" if deep else "gray"
        return luma(frame.reformat(format=name, dst_color_range=ColorRange.JPEG))
    bits = int(found["bits"] or 8)
    plane = frame.planes[0]
    samples = np.frombuffer(plane, np.uint8 if bits == 8 else "<u2")  # type: ignore[call-overload]  # a buffer it is
    samples = samples.reshape(plane.height, -1)[:, : plane.width]
    if _is_full(frame, found["kind"]):
        black, white = 0, (1 << bits) - 1
    else:
        black, white = 16 << bits - 8, 235 << bits - 8
    values = samples.astype(np.float32)
    values -= black
    values *= 255 / (white - black)
    return values


def _is_full(frame: VideoFrame, kind: str) -> bool:
    if kind.startswith("yuvj") or frame.color_range == ColorRange.JPEG:
        return True
    return kind == "gray" and frame.color_range != ColorRange.MPEG
