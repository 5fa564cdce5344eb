"""Frames straight from video files.

Three decoders stand behind one function, `read_frames`, and return the same frames for the same times:

- `pyav` reads only the stretch of the file that it needs, from the keyframe before the first time wanted. It reads
  whatever FFmpeg reads, save raw streams, which have no times at all.
- `torchcodec` indexes the whole file each time it is opened, which is slow for hour-long files. It needs the system's
  FFmpeg libraries. It is refused for AVI and MPEG program or transport streams, where it returns other frames.
- `decord` does the same. Its last release is of 2021, with an FFmpeg of its own: no AV1, no file without a duration.
  It is refused where it would return other frames: as torchcodec, and for open GOPs (as x265 makes) and edit lists.

Nothing is kept between calls, so everything here is safe in forked and spawned loader workers. Each call decodes in
one thread: many workers, one clip each, is faster than one clip in many threads.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import torch
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from torch import Tensor

from raylab.errors import RaylabError, unknown_name

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

_PROGRESSIVE = 1  # AV_FIELD_PROGRESSIVE
_UNINDEXED = {"avi", "mpeg", "mpegts"}  # containers without presentation times, or without an index of keyframes
_USE_PYAV = "use data.decoder=pyav"
_NO_FRAME = "no frame could be decoded; record, convert or download the file again"


class VideoError(RaylabError):
    """A video, or a folder of frames, that cannot be read. The message names the file and the reason."""


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video file's header says.

    Attributes:
        path: the file.
        width: pixels, as displayed: after rotation. Pixels are taken as square.
        height: pixels, as displayed.
        fps: average frames per second.
        frames: number of frames; None where the header does not say.
        duration: seconds from the first frame to the end of the last.
        rotation: degrees clockwise (0, 90, 180 or 270) by which the stored picture is turned for display.
    """

    path: Path
    width: int
    height: int
    fps: float
    frames: int | None
    duration: float
    rotation: int


def probe(path: Path | str) -> VideoInfo:
    """Size, rate and length of a file's best video stream.

    Decodes one frame (the only place where every container shows its rotation) and reads the end of the file, or all
    packets, only when the header gives the stream no duration.

    Raises:
        VideoError: the file is missing, is not a video, or its first frame cannot be decoded.
    """
    path = Path(path)
    with open_video(path) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise VideoError(f"{path}: {_NO_FRAME}")
        turns = _quarter_turns(frame)
        width, height = (stream.height, stream.width) if turns % 2 else (stream.width, stream.height)
        return VideoInfo(
            path=path,
            width=width,
            height=height,
            fps=float(stream.average_rate),  # type: ignore[arg-type]  # checked when opened
            frames=stream.frames or None,
            duration=_duration(path, container, stream),
            rotation=-90 * turns % 360,
        )


def read_frames(path: Path | str, times: Sequence[float], decoder: str = "pyav") -> Tensor:
    """The frame on screen at each time: the last one that appears no later than `EPSILON` after it.

    Args:
        path: a video file; its best video stream (as FFmpeg chooses) is read, rotated as its header asks.
        times: seconds after the stream's start; in any order, with or without repetition. Times before the first
            frame give the first frame, times past the end give the last.
        decoder: a name in `DECODERS`.

    Returns:
        uint8 RGB of shape (len(times), 3, height, width), channels last in memory: as FFmpeg delivers pictures, and as
        they are fastest to resize.

    Raises:
        VideoError: the file is missing, is not a video, is damaged on the way to a wanted frame, or is cut short
            before a wanted frame.
        RaylabError: the decoder is unknown or not installed, or a time is missing or not finite.
    """
    path = Path(path)
    if decoder not in DECODERS:
        raise unknown_name("decoder", decoder, DECODERS)
    if len(times) == 0 or not all(map(math.isfinite, times)):
        raise RaylabError(f"{path}: times = {list(times)}: give at least one, each a finite number of seconds")
    return DECODERS[decoder](path, times)


def _read_pyav(path: Path, times: Sequence[float]) -> Tensor:
    reformatter = VideoReformatter()
    video = np.empty(0, np.uint8)
    with open_video(path) as (container, stream):
        for frame, slots in frames_shown(path, container, stream, times):
            picture = _rgb(frame, stream, reformatter)
            if not video.size:
                video = np.empty((len(times), *picture.shape), np.uint8)
            for slot in slots:
                video[slot] = picture
    return torch.from_numpy(video).permute(0, 3, 1, 2)


def _read_decord(path: Path, times: Sequence[float]) -> Tensor:
    try:
        from decord import DECORDError, VideoReader
    except ImportError as error:
        raise _not_loaded("decord", "pip install decord (x86-64 only), or use pyav", error) from error
    indices, frames = _index(path, times)
    try:
        reader = VideoReader(str(path), num_threads=1)
        # It counts frames that edit lists hide, and finds keyframes by decode order: in open GOPs, the wrong ones.
        keyframes = [index for index, (_, keyframe, _) in enumerate(frames) if keyframe]
        if len(reader) != len(frames) or list(reader.get_key_indices()) != keyframes:
            raise VideoError(f"{path}: decord would take other frames of this file; {_USE_PYAV}")
        distinct = sorted(set(indices))
        batch = torch.from_numpy(reader.get_batch(distinct).asnumpy())
    except DECORDError as error:
        raise VideoError(f"{path}: decord cannot read it ({_first_line(error)}); {_USE_PYAV}") from error
    if indices != distinct:
        batch = batch[[bisect_left(distinct, index) for index in indices]]
    return batch.permute(0, 3, 1, 2)


def _read_torchcodec(path: Path, times: Sequence[float]) -> Tensor:
    try:
        from torchcodec.decoders import VideoDecoder  # type: ignore[attr-defined]

        indices, frames = _index(path, times)
        reader = VideoDecoder(str(path), num_ffmpeg_threads=1, seek_mode="exact")
        batch = reader.get_frames_at(indices)
    except ImportError as error:
        raise _not_loaded("torchcodec", "pip install raylab[torchcodec], or use pyav", error) from error
    except (RuntimeError, ValueError, IndexError) as error:
        if "load libtorchcodec" in str(error):  # at import, or in newer versions at first use
            raise _not_loaded("torchcodec", "install FFmpeg's shared libraries, or use pyav", error) from error
        raise VideoError(f"{path}: torchcodec cannot read it ({_first_line(error)}); {_USE_PYAV}") from error
    expected = torch.tensor([frames[index][0] for index in indices], dtype=torch.float64)
    if not torch.allclose(batch.pts_seconds, expected, rtol=0, atol=EPSILON):
        raise VideoError(f"{path}: torchcodec takes other frames of this file; {_USE_PYAV}")
    return batch.data


DECODERS: dict[str, Callable[[Path, Sequence[float]], Tensor]] = {
    "pyav": _read_pyav,
    "decord": _read_decord,
    "torchcodec": _read_torchcodec,
}
"""Decoder name → function of a file and times, as in `read_frames`."""


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The file and its best video stream; any failure of FFmpeg inside the block becomes a `VideoError`."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            if stream is None or stream.codec_context is None or stream.disposition & Disposition.attached_pic:
                raise VideoError(f"{path}: has no video stream that can be decoded; give a file with moving pictures")
            raw = stream.start_time is None and not container.duration  # Matroska of few frames has a duration alone
            if raw or not stream.average_rate:
                raise VideoError(f"{path}: states no times or frame rate; wrap it: ffmpeg -i FILE -c copy FILE.mp4")
            stream.codec_context.thread_count = 1
            yield container, stream
    except av.FFmpegError as error:
        raise VideoError(f"{path}: cannot be read ({error.strerror}); record, convert or download it again") from error


def frames_shown(
    path: Path, container: InputContainer, stream: VideoStream, times: Sequence[float]
) -> Iterator[tuple[VideoFrame, list[int]]]:
    """Each frame that is on screen at some of the times, as decoded, and the positions of these times.

    Args:
        path: for messages.
        container, stream: of `open_video`.
        times: as for `read_frames`.

    Raises:
        VideoError: as `read_frames`.
    """
    start, tick = _clock(stream)
    targets = [start + math.floor((max(time, 0) + EPSILON) / tick) for time in times]
    slots = sorted(range(len(targets)), key=targets.__getitem__)
    waiting = [targets[slot] for slot in slots]
    frames = (
        _all_frames(container, stream)
        if container.format.name == "avi"
        else _frames_near(container, stream, sorted(set(targets)))
    )
    shown: tuple[int, VideoFrame] | None = None
    for pts, frame in frames:
        if passed := bisect_left(waiting, pts):
            yield shown[1] if shown else frame, slots[:passed]
            del slots[:passed], waiting[:passed]
        if not waiting:
            break
        shown = pts, frame
    if waiting:
        if shown is None:
            raise VideoError(f"{path}: {_NO_FRAME}")
        pts, frame = shown
        _refuse_cut(path, container, stream, (pts + (frame.duration or 0) - start) * tick, times)
        yield frame, slots


def _all_frames(container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, VideoFrame]]:
    """Frames of an AVI file, from its beginning: each appears when it leaves the decoder.

    AVI stores no presentation times, and those that FFmpeg guesses are out of order where there are B-frames.
    """
    start, _ = _clock(stream)
    first, position = None, start - 1
    for frame in container.decode(stream):
        first = frame.dts if first is None else first
        # The decoder's last frames, flushed at the end of the file, have no decode time.
        position = position + 1 if frame.dts is None or first is None else start + frame.dts - first
        yield position, frame


def _frames_near(
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
    lag = 0 if beginning is None else _clock(stream)[0] - beginning
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
    start, tick = _clock(stream)
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


def _rgb(frame: VideoFrame, stream: VideoStream, reformatter: VideoReformatter) -> NDArray[np.uint8]:
    """(height, width, 3), rotated for display; a frame of another size is brought to the stream's."""
    rgb = reformatter.reformat(frame, stream.width, stream.height, "rgb24").to_ndarray()
    return np.rot90(rgb, _quarter_turns(frame))


def _quarter_turns(frame: VideoFrame) -> int:
    """Counter-clockwise quarter turns that bring the stored picture upright."""
    return round(frame.rotation / 90) % 4


def _index(path: Path, times: Sequence[float]) -> tuple[list[int], list[tuple[float, bool, float]]]:
    """Frame numbers for decoders that count frames: reads every packet of the file.

    Returns:
        For each time the index, in display order, of the frame on screen; and for each frame of the file its timestamp
        in seconds, whether it is a keyframe, and its length in seconds.
    """
    with open_video(path) as (container, stream):
        if container.format.name in _UNINDEXED:
            raise VideoError(f"{path}: other decoders miss frames of {container.format.name} files; {_USE_PYAV}")
        start, tick = _clock(stream)
        frames = sorted(
            (packet.pts * tick, packet.is_keyframe, (packet.duration or 0) * tick)
            for packet in container.demux(stream)
            if packet.pts is not None and not packet.is_discard
        )
        if not frames:
            raise VideoError(f"{path}: {_NO_FRAME}")
        begin, (last, _, length) = start * tick, frames[-1]
        _refuse_cut(path, container, stream, last + length - begin, times)
    return [max(bisect_right(frames, begin + t + EPSILON, key=itemgetter(0)) - 1, 0) for t in times], frames


def _clock(stream: VideoStream) -> tuple[int, float]:
    """The stream's first timestamp, and the seconds in one tick of its timestamps."""
    return stream.start_time or 0, float(stream.time_base)  # type: ignore[arg-type]  # every demuxer sets it


def _declared(container: InputContainer, stream: VideoStream) -> float | None:
    """Seconds from the stream's start that the header promises: of the stream, else of the whole file."""
    start, tick = _clock(stream)
    if stream.duration:
        return stream.duration * tick
    # Matroska, the container without a length for each stream, counts its length from time 0.
    return container.duration / av.time_base - start * tick if container.duration else None


def _duration(path: Path, container: InputContainer, stream: VideoStream) -> float:
    declared = _declared(container, stream)
    if declared is not None and stream.duration:
        return declared
    # Another stream may be longer than this one, so look at its last packets; without any length, at all of them.
    start, tick = _clock(stream)
    for offset in (start + math.floor((declared or 0) / tick), start):
        container.seek(offset, stream=stream)
        ends = [packet.pts + (packet.duration or 0) for packet in container.demux(stream) if packet.pts is not None]
        if ends:
            return (max(ends) - start) * tick
    raise VideoError(f"{path}: {_NO_FRAME}")


def _refuse_cut(path: Path, container: InputContainer, stream: VideoStream, end: float, times: Sequence[float]) -> None:
    """Refuse times that the header promises but that lie well past the last frame found."""
    declared = _declared(container, stream)
    if declared is not None and min(max(times), declared) > end + CUT_SHORT:
        raise VideoError(
            f"{path}: is cut short: its frames end at {end:.1f} s although its header says {declared:.1f} s; "
            "copy or download it again"
        )


def _not_loaded(decoder: str, remedy: str, error: Exception) -> RaylabError:
    return RaylabError(f"data.decoder = {decoder}: cannot be loaded ({_first_line(error)}): {remedy}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
