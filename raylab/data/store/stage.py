"""A copy of a store on the node's own disk, made in the background from storage that all nodes share."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from threading import Thread

from filelock import FileLock, Timeout

from raylab.data.store.manifest import Shard
from raylab.data.store.shards import digest, shard_path
from raylab.errors import RaylabError
from raylab.storage import PARTIAL, replacing

SHARED = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "9p", "panfs", "wekafs", "afs", "fuse.")
IN_MEMORY = ("tmpfs", "ramfs")
RESERVE = 0.05  # of the disk, left free
KEPT_DAYS = 7
"""A copy that no run has asked for in so long is deleted when another run copies."""


@dataclass(frozen=True)
class Stage:
    """Where shards are copied to.

    Attributes:
        folder: on the node's disk; None where nothing is to be copied.
    """

    folder: Path | None

    @classmethod
    def of(cls, store: Path, setting: bool | str) -> Stage:
        """Decide where to copy a store to.

        Args:
            store: its folder.
            setting: `data.stage`. True: into the temporary folder (`$TMPDIR`), if the store is on a network
                filesystem and that folder on a disk; false: nowhere; else the folder to use.

        Raises:
            RaylabError: the folder to use cannot be made, or others may read or write there.
        """
        if setting is False:
            return cls(None)
        scratch = Path(gettempdir()) if setting is True else Path(setting)
        if setting is True and not (
            _kind(store).startswith(SHARED) and not _kind(scratch).startswith((*SHARED, *IN_MEMORY))
        ):
            return cls(None)
        folder = scratch / f"raylab-{os.getuid()}"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = folder.lstat()
        except OSError as error:
            if setting is True:
                return cls(None)
            raise RaylabError(
                f"data.stage = {setting}: {error.strerror}: name a folder on the node's own disk"
            ) from None
        if status.st_uid == os.getuid() and status.st_mode & 0o077 == 0:
            return cls(folder)
        if setting is True:
            return cls(None)
        raise RaylabError(  # whoever else may write there could put anything into a run
            f"data.stage = {setting}: {folder} is not yours alone: delete it, or name another folder"
        )

    def copy_of(self, shard: Shard) -> Path | None:
        """The copy of a shard; None where there is none yet. It is known by its content."""
        copy = self.folder and shard_path(self.folder, shard.digest)
        return copy if copy and copy.exists() else None

    def fill(self, store: Path, shards: dict[str, Shard]) -> Thread | None:
        """Copy shards in the background, as long as there is room. One process of a node does, the others see it.

        Args:
            store: where they are.
            shards: by name.
        """
        if self.folder is None:
            return None
        thread = Thread(target=self._fill, args=(self.folder, store, shards), daemon=True)
        thread.start()
        return thread

    def _fill(self, folder: Path, store: Path, shards: dict[str, Shard]) -> None:
        try:
            with FileLock(folder / "filling.lock", timeout=0):
                for copy in [found for shard in shards.values() if (found := self.copy_of(shard))]:
                    copy.touch()
                for path in folder.glob("shards/*"):
                    if PARTIAL in path.name or time.time() - path.stat().st_mtime > KEPT_DAYS * 86400:
                        path.unlink()
                for name, shard in shards.items():
                    disk = shutil.disk_usage(folder)
                    if disk.free - shard.bytes < RESERVE * disk.total:
                        return
                    if not self.copy_of(shard):
                        _copy(shard_path(store, name), shard_path(folder, shard.digest))
        except (Timeout, OSError):  # another process is at it, or the disk fails: shards are read where they are
            return


def _copy(shard: Path, copy: Path) -> None:
    """Copy a file to the name of its digest; one with another content is left where it is."""
    with suppress(ValueError), replacing(copy) as writing:
        shutil.copyfile(shard, writing)
        if digest(writing) != copy.stem:
            raise ValueError(f"{shard} is damaged")


def _kind(path: Path) -> str:
    """The type of the filesystem that holds a path, as Linux names it."""
    best = ("", "")
    mounted = Path("/proc/self/mounts")
    if not mounted.exists():  # not Linux
        return ""
    path = path.resolve()
    with mounted.open() as mounts:
        for line in mounts:
            _, mount, kind, *_ = line.split()
            if path.is_relative_to(mount) and len(mount) >= len(best[0]):
                best = (mount, kind)
    return best[1]
