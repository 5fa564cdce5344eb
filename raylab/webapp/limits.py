"""What the page takes and what it may cost; what of an uploaded file is refused before a frame of it is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from raylab.errors import RaylabError

MB = 1_000_000
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,mxf"
"""What FFmpeg may take an upload for. Playlists (HLS, concat …) are left out: they name other files to read."""
ARCHIVES = {
    b"PK\x03\x04": "a ZIP archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x1f\x8b": "gzip",
}


@dataclass(frozen=True)
class Limits:
    """Bounds of the page.

    Attributes:
        size: bytes of one file.
        seconds: of one video.
        pixels: of one picture.
        jobs: files looked at at once, each by a process of its own.
        waiting: files received or waiting besides; more are turned away.
        timeout: seconds that one file may take, once its turn has come.
        memory: bytes that one process may hold.
        kept: bytes of results that wait to be downloaded, the newest.
        keep: seconds that a result waits.
        viewers: webcams at once.
    """

    size: int = 500 * MB
    seconds: float = 1800
    pixels: int = 8192 * 4320
    jobs: int = 2
    waiting: int = 32
    timeout: float = 600
    memory: int = 4000 * MB
    kept: int = 2000 * MB
    keep: float = 1800
    viewers: int = 4


def clock(seconds: float) -> str:
    """`1:02:03`, or `2:03`."""
    whole = round(seconds)
    minutes = f"{whole // 60 % 60}:{whole % 60:02}"
    return minutes if whole < 3600 else f"{whole // 3600}:{minutes.zfill(5)}"


def too_large(name: str, size: int, limits: Limits) -> RaylabError:
    """The error for a file of so many bytes."""
    return RaylabError(
        f"{name}: has {size / MB:,.0f} MB, and this page takes up to {limits.size / MB:,.0f} MB: upload a part of it, "
        "or a smaller copy; or start the page with a larger --megabytes"
    )


def check(video: Path, limits: Limits) -> None:
    """Refuse what is no video, and what is too long or too large to look at. Reads headers, and at most one frame.

    Raises:
        RaylabError: names the file and the remedy.
    """
    import av

    from raylab.data.video import probe

    with video.open("rb") as file:
        start = file.read(8)
    if not start:
        raise RaylabError(f"{video}: is empty (0 bytes): upload it again")
    for magic, kind in ARCHIVES.items():
        if start.startswith(magic):
            raise RaylabError(f"{video}: is {kind}, not a video: unpack it and upload a video from it")
    try:
        with av.open(str(video), options={"format_whitelist": CONTAINERS}) as container:
            streams = container.streams.video
            if not streams and container.streams.audio:
                raise RaylabError(f"{video}: has sound but no pictures: upload a file with a video stream")
            pixels = max((stream.width * stream.height for stream in streams if stream.width), default=0)
    except (av.FFmpegError, ValueError):
        raise RaylabError(
            f"{video}: cannot be read as a video: it is damaged or of another kind; upload MP4, MOV, MKV, WebM or AVI, "
            "or convert it: ffmpeg -i FILE out.mp4"
        ) from None
    if pixels > limits.pixels:
        raise RaylabError(
            f"{video}: its pictures have {pixels / 1e6:.0f} megapixels, and this page takes up to "
            f"{limits.pixels / 1e6:.0f}: scale it down, e.g. ffmpeg -i FILE -vf scale=1920:-2 out.mp4"
        )
    duration = probe(video).duration
    if duration > limits.seconds:
        raise RaylabError(
            f"{video}: lasts {clock(duration)}, and this page takes up to {clock(limits.seconds)}: upload a part, "
            f"e.g. ffmpeg -i FILE -t {limits.seconds:.0f} -c copy part.mp4; or start the page with a larger --minutes"
        )
