"""A camera that is always up to date: the newest frames are kept, older ones let go, and nothing waits in a queue."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import av
import torch
from av.error import FFmpegError
from torch import Tensor

from raylab.data.footage import fit
from raylab.data.recent import Recent
from raylab.errors import RaylabError

AUTO = "auto"
DEVICES = {  # platform → FFmpeg's input format, its first camera, and how to list all
    "linux": ("v4l2", "/dev/video0", "v4l2-ctl --list-devices"),
    "darwin": ("avfoundation", "0", 'ffmpeg -f avfoundation -list_devices true -i ""'),
    "win32": ("dshow", "video=Integrated Camera", "ffmpeg -list_devices true -f dshow -i dummy"),
}
MOST = 2048  # frames kept, whatever the window


class Shot(NamedTuple):
    """What a model looks at.

    Attributes:
        frames: uint8 (T, 3, S, S), evenly spaced over the window, the last of them the newest.
        number: of the newest frame, counted from 1.
        captured: when that was, on the clock of `time.monotonic`.
    """

    frames: Tensor
    number: int
    captured: float


class Camera:
    """The last seconds of a camera, or of a video file played as one.

    A thread reads frames as they come, reduces each to the model's square, and keeps those of the window. Use it as a
    context: the thread and the device are given back at its end.

    Args:
        source: a device, a video file, or "auto" for the machine's first camera.
        side: height and width of the squares, in pixels.
        window: seconds that are kept.
        wait: waits so many seconds, and says whether to stop: how a file is played at its own speed.

    Attributes:
        count: frames captured so far.
        rate: frames a second in the window.

    Raises:
        RaylabError: the device or file cannot be opened.
    """

    def __init__(
        self, source: str, side: int, window: float = 2.0, wait: Callable[[float], bool] | None = None
    ) -> None:
        self._source, self._side = source, side
        self._container, self._recorded = _open(source)
        self._frames: Recent[Tensor] = Recent(window, MOST)
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._wait = wait or self._stop.wait
        self._ended = False
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Camera:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._container.close()

    @property
    def count(self) -> int:
        return self._frames.count

    @property
    def rate(self) -> float:
        with self._changed:
            return self._frames.rate

    def latest(self, frames: int, after: int = 0) -> Shot | None:
        """The newest window, as soon as there is a frame newer than number `after`; None when the camera has ended.

        Raises:
            RaylabError: the camera was lost.
        """
        with self._changed:
            self._changed.wait_for(lambda: self.count > after or self._ended)
            if self._error:
                raise RaylabError(f"--webcam {self._source}: lost after {self.count} frames ({self._error})")
            if self.count <= after:
                return None
            chosen = self._frames.evenly(frames)
        return Shot(torch.cat([frame.thing for frame in chosen]), chosen[-1].number, chosen[-1].at)

    def _run(self) -> None:
        try:
            for picture in self._pictures():
                square = fit(torch.from_numpy(picture).permute(2, 0, 1)[None], self._side)
                with self._changed:
                    self._frames.add(square, time.monotonic())
                    self._changed.notify_all()
        except (FFmpegError, OSError, ValueError) as error:
            self._error = error
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _pictures(self) -> Iterator[Any]:
        """Frames, uint8 (H, W, 3), as they come; those of a file when its own time stamps say so."""
        began: float | None = None
        for frame in self._container.decode(video=0):
            shown = (frame.time or 0.0) if self._recorded else time.monotonic()
            began = time.monotonic() - shown if began is None else began
            due = began + shown - time.monotonic()
            if self._stop.is_set() or (self._recorded and self._wait(max(due, 0.0))):
                return
            yield frame.to_ndarray(format="rgb24")


def _open(source: str) -> tuple[Any, bool]:
    """The container of a camera or a file, and whether it is a file."""
    if Path(source).is_file():
        with _opening(source, "is it a video?"):
            container = av.open(source)
            if not container.streams.video:
                raise ValueError("it has no video stream")
            return container, True
    kind, first, how = DEVICES.get(sys.platform, DEVICES["linux"])
    device = first if source == AUTO else source
    with _opening(device, f"no such file, and no camera for FFmpeg's {kind}; list cameras with: {how}"):
        return av.open(device, format=kind), False


@contextmanager
def _opening(name: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except (FFmpegError, OSError, ValueError) as error:
        raise RaylabError(f"--webcam {name}: cannot be opened ({error}): {remedy}") from None
