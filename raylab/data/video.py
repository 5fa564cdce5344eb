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
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from torch import Tensor

from raylab.data.container import (
    EPSILON,
    NO_FRAME,
    VideoError,
    clock,
    duration,
    frames_shown,
    on_screen,
    open_video,
    quarter_turns,
    refuse_cut,
    ticks,
    upright,
)
from raylab.errors import RaylabError, unknown_name

_UNINDEXED = {"avi", "mpeg", "mpegts"}  # containers without presentation times, or without an index of keyframes
_USE_PYAV = "use data.decoder=pyav"


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
            raise VideoError(f"{path}: {NO_FRAME}")
        turns = quarter_turns(frame)
        width, height = (stream.height, stream.width) if turns % 2 else (stream.width, stream.height)
        return VideoInfo(
            path=path,
            width=width,
            height=height,
            fps=float(stream.average_rate),  # type: ignore[arg-type]  # checked when opened
            frames=stream.frames or None,
            duration=duration(path, container, stream),
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


def stream_frames(path: Path | str, times: Sequence[float]) -> Iterator[Tensor]:
    """The frames that `read_frames` gives, one after another: memory holds one, however long the video.

    Args:
        path: as there.
        times: as there, but ascending.

    Yields:
        For each time, uint8 RGB (3, height, width); the same tensor again where one frame is on screen at several.

    Raises:
        VideoError: as there, when the frame is asked for.
    """
    path = Path(path)
    with open_video(path) as (container, stream):
        reformatter = VideoReformatter()
        for count, frame in on_screen(path, container, stream, ticks(stream, times)):
            picture = np.ascontiguousarray(upright(frame, stream, reformatter))
            yield from repeat(torch.from_numpy(picture).permute(2, 0, 1), count)


def frame_numbers(path: Path | str, times: Sequence[float]) -> list[int]:
    """The number of each frame that `read_frames` gives, from 0 in order of display. No frame is decoded.

    By the average rate where packets have no times of their own, or hold several frames (AVI, MPEG streams).

    Raises:
        VideoError: the file is missing, or is not a video.
    """
    path = Path(path)
    with open_video(path) as (container, stream):
        targets = np.array(ticks(stream, times), np.int64)
        if container.format.name in _UNINDEXED:
            start, tick = clock(stream)
            numbers = np.floor((targets - start) * tick * float(stream.average_rate))  # type: ignore[arg-type]
            numbers = np.minimum(numbers, (stream.frames or math.inf) - 1)
        else:
            packets = (packet for packet in container.demux(stream) if not packet.is_discard)
            shown = np.sort(np.fromiter((packet.pts for packet in packets if packet.pts is not None), np.int64))
            numbers = np.maximum(np.searchsorted(shown, targets, side="right") - 1, 0)
    return [int(number) for number in numbers]


def _read_pyav(path: Path, times: Sequence[float]) -> Tensor:
    reformatter = VideoReformatter()
    video = np.empty(0, np.uint8)
    with open_video(path) as (container, stream):
        for frame, slots in frames_shown(path, container, stream, times):
            picture = upright(frame, stream, reformatter)
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


def _index(path: Path, times: Sequence[float]) -> tuple[list[int], list[tuple[float, bool, float]]]:
    """Frame numbers for decoders that count frames: reads every packet of the file.

    Returns:
        For each time the index, in display order, of the frame on screen; and for each frame of the file its timestamp
        in seconds, whether it is a keyframe, and its length in seconds.
    """
    with open_video(path) as (container, stream):
        if container.format.name in _UNINDEXED:
            raise VideoError(f"{path}: other decoders miss frames of {container.format.name} files; {_USE_PYAV}")
        start, tick = clock(stream)
        frames = sorted(
            (packet.pts * tick, packet.is_keyframe, (packet.duration or 0) * tick)
            for packet in container.demux(stream)
            if packet.pts is not None and not packet.is_discard
        )
        if not frames:
            raise VideoError(f"{path}: {NO_FRAME}")
        begin, (last, _, length) = start * tick, frames[-1]
        refuse_cut(path, container, stream, last + length - begin, max(times))
    return [max(bisect_right(frames, begin + t + EPSILON, key=itemgetter(0)) - 1, 0) for t in times], frames


def _not_loaded(decoder: str, remedy: str, error: Exception) -> RaylabError:
    return RaylabError(f"data.decoder = {decoder}: cannot be loaded ({_first_line(error)}): {remedy}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
