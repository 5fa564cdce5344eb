"""What a video's packets say: counted one by one, since headers may be silent or wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from numpy.typing import NDArray

from raylab.data.container import CUT_SHORT, VideoError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream


@dataclass(frozen=True)
class Packets:
    """The packets of one video stream; sound and other streams of the file do not count.

    Attributes:
        times: float64 (frames,), when each frame appears, seconds after the stream's start, in order.
        seconds: from the first frame to the end of the last, which is taken to last as long as the others on average:
            what containers say of it differs.
        bytes: of all packets, without the container around them.
        pixels: of a picture.
    """

    times: NDArray[np.float64]
    seconds: float
    bytes: int
    pixels: int

    @classmethod
    def read(cls, path: Path, container: InputContainer, stream: VideoStream) -> Packets:
        """Read to the end of the file, without decoding.

        Args:
            path: for messages.
            container, stream: of `open_video`, at the beginning of the file.

        Raises:
            VideoError: the stream has no frames, or the file ends before its header says.
        """
        tick, start = float(stream.time_base or 0), stream.start_time or 0
        timed_by_decoding = container.format.name == "avi"  # which stores no presentation times
        size, shown, first, end = 0, [], None, 0.0
        for packet in container.demux():
            time = packet.dts if timed_by_decoding else packet.pts
            if time is not None:
                end = max(end, float((time + (packet.duration or 0)) * packet.time_base))
            if packet.stream.index != stream.index:
                continue
            size += packet.size
            first = packet.dts if first is None else first
            if time is not None and not packet.is_discard:
                shown.append(time - ((first or 0) if timed_by_decoding else start))
        if not shown:
            raise VideoError(f"{path}: has no frames; record, convert or download the file again")
        _refuse_cut(path, container, end)
        times = np.sort(shown) * tick
        gap = (times[-1] - times[0]) / max(1, len(times) - 1) or 1 / float(stream.average_rate or 1)
        return cls(times=times, seconds=float(gap * len(times)), bytes=size, pixels=stream.width * stream.height)

    @property
    def fps(self) -> float:
        return len(self.times) / self.seconds

    @property
    def bit_rate(self) -> float:
        """Bits a second."""
        return 8 * self.bytes / self.seconds


def _refuse_cut(path: Path, container: InputContainer, end: float) -> None:
    """Refuse a file none of whose streams, sound included, comes near the end that its header declares."""
    declared = (container.duration or 0) / av.time_base  # from time 0 or from the first packet, as containers differ
    if declared > end + CUT_SHORT:
        raise VideoError(
            f"{path}: is cut short: it ends at {end:.1f} s although its header says {declared:.1f} s; "
            "copy or download it again"
        )
