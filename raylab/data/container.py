"""A video file as PyAV opens it: its clock, its length, its frames in order of display."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from av.format import Flags
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray

from raylab.errors import RaylabError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

EPSILON = 1e-3
"""Seconds: a frame that appears within this time after `t` counts as on screen at `t`. Matroska and FLV round each
frame's time to a whole millisecond, so frame n may be stored a little after n / fps."""

CUT_SHORT = 1.0
"""Seconds of declared video that may be missing at the end of a file before it is refused as cut short."""

NO_FRAME = "no frame could be decoded; record, convert or download the file again"
_PROGRESSIVE = 1  # AV_FIELD_PROGRESSIVE


class VideoError(RaylabError):
    """A video, or a folder of frames, that cannot be read. The message names the file and the reason."""


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its best video stream; any failure of FFmpeg inside the block becomes a `VideoError`."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None or stream.disposition & Disposition.attached_pic:
                raise VideoError(f"{path}: has no video stream that can be decoded; give a file with moving pictures")
            timeless = stream.start_time is None and container.format.flags & Flags.no_timestamps.value
            if timeless or not stream.average_rate:
                raise VideoError(f"{path}: states no times or frame rate; wrap it: ffmpeg -i FILE -c copy FILE.mp4")
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror}); record, convert or download it again") from error


def frames_shown(
    path: Path, container: InputContainer, stream: VideoStream, times: Sequence[float]
) -> Iterator[tuple[VideoFrame, list[int]]]:
    """The frames on screen at some times, each decoded once.

    Args:
        path: of the file.
        container, stream: of it, just opened.
        times: seconds after the stream's start, in any order.

    Yields:
        A frame, as decoded, and the positions of the times that it is on screen at.

    Raises:
        VideoError: there is no frame, or the file is cut short before a time.
    """
    targets = ticks(stream, times)
    slots = sorted(range(len(targets)), key=targets.__getitem__)
    for count, frame in on_screen(path, container, stream, sorted(targets)):
        yield frame, slots[:count]
        del slots[:count]


def on_screen(
    path: Path, container: InputContainer, stream: VideoStream, targets: Sequence[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """The frames on screen at some moments, each decoded once.

    Args:
        path: of the file.
        container, stream: of it, just opened.
        targets: presentation times in the stream's ticks, ascending.

    Yields:
        A frame, and how many of the next targets it is on screen at.

    Raises:
        VideoError: there is no frame, or the file is cut short before a target.
    """
    frames = (
        _all_frames(container, stream)
        if container.format.name == "avi"
        else frames_near(container, stream, sorted(set(targets)))
    )
    settled = 0
    shown: tuple[int, VideoFrame] | None = None
    for pts, frame in frames:
        passed = bisect_left(targets, pts)
        if passed > settled:
            yield passed - settled, shown[1] if shown else frame
            settled = passed
        if settled == len(targets):
            return
        shown = pts, frame
    if shown is None:
        raise VideoError(f"{path}: {NO_FRAME}")
    pts, frame = shown
    start, tick = clock(stream)
    refuse_cut(path, container, stream, (pts + (frame.duration or 0) - start) * tick, (targets[-1] - start) * tick)
    yield len(targets) - settled, frame


def _all_frames(container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, VideoFrame]]:
    """Frames of an AVI file, from its beginning: each appears when it leaves the decoder.

    AVI stores no presentation times, and those that FFmpeg guesses are out of order where there are B-frames.
    """
    start, _ = clock(stream)
    first, position = None, start - 1
    for frame in container.decode(stream):
        first = frame.dts if first is None else first
        # The decoder's last frames, flushed at the end of the file, have no decode time.
        position = position + 1 if frame.dts is None or first is None else start + frame.dts - first
        yield position, frame


def frames_near(
    container: InputContainer, stream: VideoStream, targets: Sequence[int]
) -> Iterator[tuple[int, VideoFrame]]:
    """Frames in display order with their presentation times, enough of them to settle every target.

    Args:
        targets: presentation times in the stream's ticks, sorted.
    """
    context = stream.codec_context
    # In progressive H.264 no other picture uses one marked "non-reference": it need not be decoded to be passed.
    droppable = context.name == "h264" and context.field_order == _PROGRESSIVE
    beginning = next(container.demux(stream)).dts
    # An index that goes by decode times lists a keyframe this much before it appears.
    lag = 0 if beginning is None else clock(stream)[0] - beginning
    sought = 0
    while True:
        for packet, needed in _needed(_from_keyframe(container, stream, targets[sought], beginning), targets):
            context.skip_frame = "DEFAULT" if needed or not droppable else "NONREF"
            following = sought
            for frame in packet.decode():
                if frame.pts is not None:
                    yield frame.pts, frame
                    following = bisect_left(targets, frame.pts)
            if sought < following < len(targets) and _keyframe_between(stream, packet.dts, targets[following] - lag):
                sought = following
                break
        else:
            return


def _from_keyframe(
    container: InputContainer, stream: VideoStream, target: int, beginning: int | None
) -> Iterator[Packet[VideoStream]]:
    """Packets from the last keyframe that appears no later than `target`, or else from the file's beginning.

    Some containers seek by decode time, which may land on a keyframe that appears after the target, and MPEG streams
    seek to any packet: so look at where the seek landed, and step further back until it fits.
    """
    start, tick = clock(stream)
    beginning = start if beginning is None else beginning
    offset, step = target, math.ceil(1 / tick)
    while offset > beginning:
        container.seek(offset, stream=stream)
        packets = container.demux(stream)
        first = next((packet for packet in packets if packet.is_keyframe and packet.pts is not None), None)
        if first is not None and first.pts is not None and first.pts <= target:
            return chain([first], packets)
        offset -= step
        step *= 2
    container.seek(beginning, stream=stream)
    return container.demux(stream)


def _keyframe_between(stream: VideoStream, decoded: int | None, target: int) -> bool:
    """Whether the container's index, where it has one, knows a keyframe past `decoded` and not past `target`."""
    entries = stream.index_entries
    nearest = entries.search_timestamp(target)
    return decoded is not None and nearest >= 0 and entries[nearest].timestamp > decoded


def _needed(
    packets: Iterator[Packet[VideoStream]], targets: Sequence[int]
) -> Iterator[tuple[Packet[VideoStream], bool]]:
    """Each packet, and whether its frame may be the one on screen at a target.

    It is not when another frame appears later but no later than the next target. Decode times rise and never pass
    presentation times, so reading ahead ends at the first packet that is decoded past the target.
    """
    ahead: deque[Packet[VideoStream]] = deque()
    appearing: list[int] = []
    horizon = -math.inf

    def read() -> bool:
        nonlocal horizon
        packet = next(packets, None)
        if packet is None:
            horizon = math.inf
            return False
        ahead.append(packet)
        if packet.pts is not None and not packet.is_discard:
            insort(appearing, packet.pts)
        if packet.dts is not None:
            horizon = packet.dts
        return True

    def on_screen(pts: int) -> bool:
        following = bisect_left(targets, pts)
        if following == len(targets):
            return False
        while True:
            successor = bisect_right(appearing, pts)
            if successor < len(appearing) and appearing[successor] <= targets[following]:
                return False
            if horizon > targets[following]:
                return True
            read()

    while ahead or read():
        packet = ahead.popleft()
        yield packet, packet.pts is None or on_screen(packet.pts)


def upright(frame: VideoFrame, stream: VideoStream, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    """(height, width, 3), rotated for display; a frame of another size is brought to the stream's."""
    rgb = reformatter.reformat(frame, stream.width, stream.height, "rgb24").to_ndarray()
    return np.rot90(rgb, quarter_turns(frame))


def quarter_turns(frame: VideoFrame) -> int:
    """Counter-clockwise quarter turns that bring the stored picture upright."""
    return round(frame.rotation / 90) % 4


def clock(stream: VideoStream) -> tuple[int, float]:
    """The stream's first timestamp, and the seconds in one tick of its timestamps."""
    return stream.start_time or 0, float(stream.time_base)  # type: ignore[arg-type]  # every demuxer sets it


def ticks(stream: VideoStream, times: Sequence[float]) -> list[int]:
    """Times, in seconds, as presentation times of a stream: each the latest that a frame on screen then may have."""
    start, tick = clock(stream)
    return [start + math.floor((max(time, 0) + EPSILON) / tick) for time in times]


def declared(container: InputContainer, stream: VideoStream) -> float | None:
    """Seconds from the stream's start that the header promises: of the stream, else of the whole file."""
    start, tick = clock(stream)
    if stream.duration:
        return stream.duration * tick
    # Matroska, the container without a length for each stream, counts its length from time 0.
    return container.duration / av.time_base - start * tick if container.duration else None


def duration(path: Path, container: InputContainer, stream: VideoStream) -> float:
    """Seconds from the first frame to the end of the last: as declared, else as the packets say."""
    promised = declared(container, stream)
    if promised is not None and stream.duration:
        return promised
    # Another stream may be longer than this one, so look at its last packets; without any length, at all of them.
    start, tick = clock(stream)
    for offset in (start + math.floor((promised or 0) / tick), start):
        container.seek(offset, stream=stream)
        ends = [packet.pts + (packet.duration or 0) for packet in container.demux(stream) if packet.pts is not None]
        if ends:
            return (max(ends) - start) * tick
    raise VideoError(f"{path}: {NO_FRAME}")


def refuse_cut(path: Path, container: InputContainer, stream: VideoStream, end: float, wanted: float) -> None:
    """Refuse a time that the header promises but that lies well past the end of the last frame found."""
    promised = declared(container, stream)
    if promised is not None and min(wanted, promised) > end + CUT_SHORT:
        raise VideoError(
            f"{path}: is cut short: its frames end at {end:.1f} s although its header says {promised:.1f} s; "
            "copy or download it again"
        )
