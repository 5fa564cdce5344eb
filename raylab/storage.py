"""A folder on any filesystem pyarrow speaks: a local path, `s3://`, `gs://`, `hdfs://`.

Writes appear whole or not at all: locally by renaming, on object stores because an object becomes
visible when its upload ends.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from pyarrow import ArrowInvalid, fs

from raylab.errors import RaylabError

PARTIAL = ".partial-"


@dataclass(frozen=True)
class Folder:
    """One folder. `folder / "name"` is a folder inside it; `str(folder)` opens it again.

    Attributes:
        filesystem: where it is.
        path: its path there, e.g. `bucket/results`.
        address: its URI, without credentials; None for a local path.
    """

    filesystem: fs.FileSystem
    path: str
    address: SplitResult | None = None

    @classmethod
    def open(cls, where: str | Path) -> Folder:
        """The folder at a local path or a URI. It need not exist.

        URIs are pyarrow's: `s3://bucket/results?region=eu-west-1`, with `endpoint_override=HOST:PORT&scheme=http`
        for another server that speaks S3; credentials are best left to the environment.

        Raises:
            RaylabError: the URI is malformed, its server does not answer, or a file is there.
        """
        text = str(where)
        address = urlsplit(text) if "://" in text else None
        try:
            filesystem, path = fs.FileSystem.from_uri(text if address else Path(text).expanduser().absolute().as_uri())
            kind = filesystem.get_file_info(path).type
        except (ArrowInvalid, OSError) as error:
            raise RaylabError(f"storage {text!r} cannot be opened: {error}") from None
        if kind == fs.FileType.File:
            raise RaylabError(f"storage {text!r} is a file: name a folder")
        return cls(filesystem, path, address and address._replace(netloc=address.netloc.rpartition("@")[2]))

    def __truediv__(self, name: str) -> Folder:
        address = self.address and self.address._replace(path=f"{self.address.path.rstrip('/')}/{quote(name)}")
        return Folder(self.filesystem, f"{self.path.rstrip('/')}/{name}", address)

    def __str__(self) -> str:
        return urlunsplit(self.address) if self.address and not self.local else self.path

    @property
    def name(self) -> str:
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def local(self) -> Path | None:
        """The path on this machine's disk, None on a remote filesystem."""
        return Path(self.path) if isinstance(self.filesystem, fs.LocalFileSystem) else None

    def exists(self, name: str = "") -> bool:
        return bool(self.filesystem.get_file_info((self / name).path).type != fs.FileType.NotFound)

    def folders(self) -> list[str]:
        """Names of the folders inside, sorted; unfinished writes are not shown."""
        entries = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        return sorted(e.base_name for e in entries if e.type == fs.FileType.Directory and PARTIAL not in e.base_name)

    def read_text(self, name: str) -> str:
        """Raises FileNotFoundError when the file is not there."""
        with self.filesystem.open_input_stream((self / name).path) as stream:
            return bytes(stream.readall()).decode()

    def write_text(self, name: str, text: str) -> None:
        self.write_bytes(name, text.encode())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a file that readers see whole or not at all."""
        target = (self / name).path
        self.filesystem.create_dir(self.path, recursive=True)
        writing = f"{target}{PARTIAL}{uuid.uuid4().hex}" if self.local else target
        with self.filesystem.open_output_stream(writing) as stream:
            stream.write(content)
        if writing != target:
            self.filesystem.move(writing, target)

    def read_json(self, name: str) -> Any:
        """Raises FileNotFoundError when the file is not there, RaylabError when it is not JSON."""
        try:
            return json.loads(self.read_text(name))
        except ValueError as error:
            raise RaylabError(f"{self / name}: not JSON ({error}): restore it, or remove {self}") from None

    def write_json(self, name: str, value: Any) -> None:
        self.write_text(name, json.dumps(value, indent=1, default=str) + "\n")

    def check_writable(self) -> None:
        """Write an empty file and delete it.

        Raises:
            RaylabError: that failed; the message has the filesystem's own reason.
        """
        probe = f"{PARTIAL}{uuid.uuid4().hex}"
        try:
            self.write_bytes(probe, b"")
            self.filesystem.delete_file((self / probe).path)
        except OSError as error:
            raise RaylabError(f"storage {self} cannot be written: {error}; mend it, or set another --storage") from None

    @contextmanager
    def new_folder(self, name: str, seal: str) -> Iterator[Path]:
        """A local folder to fill, which becomes `name` when the block ends without an error.

        Args:
            name: the folder to create, replacing one of the same name.
            seal: the file whose presence says that the folder is complete; it is uploaded last.
        """
        if self.local:
            self.local.mkdir(parents=True, exist_ok=True)
        filling = Path(tempfile.mkdtemp(prefix=f"{name}{PARTIAL}", dir=self.local))
        try:
            yield filling
            self.remove(name)
            if self.local:
                filling.chmod(0o777 & ~_umask())
                filling.rename(self.local / name)
            else:
                self.upload(filling, name, last=seal)
        finally:
            shutil.rmtree(filling, ignore_errors=True)

    def upload(self, source: Path, name: str, last: str | None = None) -> None:
        """Copy a local folder's files to `name`, `last` after all others."""
        files = sorted((p for p in source.rglob("*") if p.is_file()), key=lambda p: p.name == last)
        for file in files:
            target = (self / name / file.relative_to(source).as_posix()).path
            self.filesystem.create_dir(target.rpartition("/")[0], recursive=True)
            fs.copy_files(str(file), target, destination_filesystem=self.filesystem)

    @contextmanager
    def as_local(self) -> Iterator[Path]:
        """This folder on local disk: itself, or a temporary copy."""
        if self.local:
            yield self.local
            return
        with tempfile.TemporaryDirectory() as copy:
            fs.copy_files(self.path, copy, source_filesystem=self.filesystem)
            yield Path(copy)

    def remove(self, name: str, seal: str | None = None) -> None:
        """Delete a folder inside this one, if it is there; `seal`, the file that says it is complete, goes first."""
        if not self.exists(name):
            return
        if seal and (self / name).exists(seal):
            self.filesystem.delete_file((self / name / seal).path)
        self.filesystem.delete_dir((self / name).path)

    def remove_partial(self) -> None:
        """Delete what writes that were killed have left inside."""
        for entry in self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True)):
            if PARTIAL in entry.base_name:
                delete = (
                    self.filesystem.delete_dir if entry.type == fs.FileType.Directory else self.filesystem.delete_file
                )
                delete(entry.path)

    def move(self, name: str, new: str) -> None:
        """Rename a folder inside this one."""
        if self.local:
            self.filesystem.move((self / name).path, (self / new).path)
            return
        fs.copy_files(
            (self / name).path,
            (self / new).path,
            source_filesystem=self.filesystem,
            destination_filesystem=self.filesystem,
        )
        self.remove(name)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name to write a local file under; it becomes `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writing = path.with_name(f"{path.name}{PARTIAL}{uuid.uuid4().hex}")
    try:
        yield writing
        writing.replace(path)
    finally:
        writing.unlink(missing_ok=True)


def private_folder(path: Path, remedy: str) -> Path:
    """A local folder that only this user may enter, where others may write beside it. Made when it is not there.

    Args:
        path: its parent exists.
        remedy: what to do where somebody else has its name.

    Raises:
        RaylabError: somebody else has its name.
    """
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()  # a link is not followed
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise RaylabError(f"{path} is not a folder of yours: {remedy}")
    path.chmod(0o700)
    return path


def cache_folder() -> Path:
    """Where raylab keeps what it can make again: `$RAYLAB_CACHE`, or `raylab` in the user's cache folder."""
    if folder := os.environ.get("RAYLAB_CACHE"):
        return Path(folder).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raylab"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
