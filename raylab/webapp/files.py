"""The files of a page: uploads while they are looked at, results until they are downloaded; all in one private folder.

It goes when the page ends. What a page that was killed has left goes when the next one starts.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import StreamReader
from filelock import FileLock, Timeout

from raylab.errors import RaylabError
from raylab.storage import private_folder
from raylab.webapp.limits import MB, Limits, too_large

PIECE = 1 << 18  # bytes
SILENCE = 60  # seconds without a byte after which an upload is given up
SPARE = 1000 * MB  # of the disk, that uploads leave free
NAME = 100  # characters


def home() -> Path:
    """The folder of all pages of this user.

    Raises:
        RaylabError: somebody else has its name.
    """
    return private_folder(Path(tempfile.gettempdir(), f"raylab-app-{os.getuid()}"), "remove it, or set TMPDIR")


def plain_name(name: str) -> str:
    """A file's name that is safe as one, and as a part of messages and pages: no path, nothing that is not shown."""
    last = re.split(r"[/\\]", name)[-1]
    return re.sub(r"[^\w .,()+=@-]", "_", last).strip(" .-")[-NAME:] or "video"


@dataclass
class Result:
    """What can be downloaded of one upload.

    Attributes:
        folder: with `keyframes.zip`.
        title: the video's name, without ending.
        members: names of the keyframes in it.
        size: bytes.
        used: when somebody last asked for it.
    """

    folder: Path
    title: str
    members: dict[str, str]
    size: int
    used: float = field(default_factory=time.monotonic)

    def picture(self, kind: str, name: str) -> bytes:
        """A small picture, `thumb`, by its number, or a keyframe, `frame`, by its name.

        Raises:
            KeyError: there is none.
        """
        if kind == "frame":
            with zipfile.ZipFile(self.folder / "keyframes.zip") as archive:
                return archive.read(self.members[name])
        if not name.isdecimal() or not (path := self.folder / f"{int(name)}.jpg").is_file():
            raise KeyError(name)
        return path.read_bytes()


class Files:
    """Use it as a context: its folder is there while it is open."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.results: dict[str, Result] = {}

    def __enter__(self) -> Files:
        parent = home()
        for left in parent.iterdir():
            if left.suffix != ".lock":
                _remove_unused(left)
        self.folder = parent / secrets.token_hex(8)
        self._lock = FileLock(self.folder.with_suffix(".lock"))
        self._lock.acquire()
        self.folder.mkdir(mode=0o700)
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.release()
        self.folder.with_suffix(".lock").unlink(missing_ok=True)

    @contextmanager
    def place(self) -> Iterator[Path]:
        """A folder for one upload, until the block ends."""
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def receive(self, content: StreamReader, declared: int | None, path: Path) -> None:
        """Write what is uploaded to a file, of which at most a piece is in memory.

        Raises:
            RaylabError: it is too large, there is no room for it, or it did not arrive.
        """
        name, size = path.name, 0
        if declared is not None and declared > self._limits.size:
            raise too_large(name, declared, self._limits)
        if shutil.disk_usage(self.folder).free < SPARE + (declared or self._limits.size):
            raise RaylabError(f"{name}: the page's disk is full: try later, or start the page with another TMPDIR")
        with path.open("wb") as file:
            while True:
                try:
                    piece = await asyncio.wait_for(content.read(PIECE), SILENCE)
                except asyncio.TimeoutError:
                    raise RaylabError(f"{name}: nothing arrived for {SILENCE} s: upload it again") from None
                if not piece:
                    return
                size += len(piece)
                if size > self._limits.size:
                    raise too_large(name, size, self._limits)
                file.write(piece)

    def keep(self, made: Path, title: str) -> str:
        """Take up what was made of an upload; the name under which it can be asked for, which nobody can guess."""
        token = secrets.token_urlsafe(16)
        folder = self.folder / f"result-{secrets.token_hex(8)}"
        with zipfile.ZipFile(made / "keyframes.zip") as archive:
            members = {name.rpartition("/")[2]: name for name in archive.namelist()}
        size = sum(path.stat().st_size for path in made.iterdir() if path.is_file())
        made.rename(folder)
        self.results[token] = Result(folder, title, members, size)
        self.tidy()
        return token

    def get(self, token: str) -> Result | None:
        if result := self.results.get(token):
            result.used = time.monotonic()
        return result

    def remove(self, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)

    def tidy(self) -> None:
        """Let go of what has waited too long, and of the oldest while there is too much; the newest stays."""
        now = time.monotonic()
        by_age = sorted(self.results, key=lambda token: self.results[token].used)
        total = sum(result.size for result in self.results.values())
        for token in by_age:
            result = self.results[token]
            crowded = total > self._limits.kept and token != by_age[-1]
            if crowded or now - result.used > self._limits.keep:
                total -= result.size
                shutil.rmtree(self.results.pop(token).folder, ignore_errors=True)


def _remove_unused(folder: Path) -> None:
    lock = folder.with_suffix(".lock")
    with suppress(Timeout, OSError), FileLock(lock, timeout=0):
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
