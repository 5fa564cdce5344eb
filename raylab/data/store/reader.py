"""Reading a store: the frames of its clips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raylab.config import DataConfig
from raylab.data.clips import Clip, ClipTable
from raylab.data.footage import fit
from raylab.data.store import index, jpeg
from raylab.data.store.manifest import PREPARE, Manifest
from raylab.data.store.shards import read_clip, reading, shard_path
from raylab.data.store.sources import UNREADABLE, look, read_seen
from raylab.data.store.stage import Stage
from raylab.errors import RaylabError


@dataclass(frozen=True)
class Store:
    """A sealed store, as its manifest said when it was opened.

    Attributes:
        folder: of the store.
        manifest: what it holds.
    """

    folder: Path
    manifest: Manifest

    @cached_property
    def index(self) -> pa.Table:
        """See `raylab.data.store.index`; memory-mapped."""
        return index.read_rows(self.folder / self.manifest.index)

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.folder, self.manifest)

    def check_sources(self) -> None:
        """Refuse videos that have changed since they were read; those that are out of reach now do not matter.

        Raises:
            RaylabError: names the videos.
        """
        seen = read_seen(self.folder)
        now = look({video: Path(was.path) for video, was in seen.items()}, seen)
        within_reach = {video: found for video, found in now.items() if found.size != UNREADABLE}
        changed = [video for video, found in within_reach.items() if found.fingerprint != seen[video].fingerprint]
        if changed:
            names = ", ".join(changed[:5]) + (", …" if len(changed) > 5 else "")
            raise RaylabError(
                f"{self.folder}: {len(changed)} videos have changed since it was made ({names}): {PREPARE}"
            )


class StoredFrames:
    """The frames of one split's clips, from a store.

    What grows with the data set is shared by a training process and its loader processes: the index is a mapped
    file, and PyTorch sends tensors to another process through shared memory.

    Args:
        store: where they are.
        clips: of one split.
        config: `frames`, `sampling`, `size` and `stage` are used.
        crops: of each frame, as for `ClipDataset`.

    Attributes:
        missing: clips that the store does not know, or knows with another segment.
        chosen: int64, the positions in `clips` of those that can be read.
    """

    def __init__(self, store: Store, clips: ClipTable, config: DataConfig, crops: int = 1) -> None:
        rows = index.locate(store.index, clips)
        known = rows >= 0
        readable = known & store.index["shard"].is_valid().to_numpy()[rows]
        self.missing = int(len(rows) - known.sum())
        self.chosen = torch.from_numpy(np.flatnonzero(readable))
        self.store = store
        self.stage = Stage.of(store.folder, config.stage)
        self._rows = torch.from_numpy(rows[readable])
        self._frames = None if config.sampling == "rate" else config.frames  # None: a store of windows has no others
        self._crops = crops

    def read(self, number: int, clip: Clip, place: Tensor, fractions: Sequence[float] | None = None) -> None:
        """Decode one of the chosen clips into `place`, uint8 (crops · T, S, S, 3).

        Raises:
            RaylabError: its shard is gone or damaged.
        """
        path, row = self._place(number)
        with reading(path):
            found = read_clip(path, row, self._frames, fractions)
            if self._crops == 1:
                jpeg.decode_squares(found.squares, place)
            else:
                whole = jpeg.decode_whole(found.squares, found.sides, wide=found.width > found.height)
                place.copy_(fit(whole, place.shape[1], self._crops).permute(0, 2, 3, 1))

    def images(self, number: int, fractions: Sequence[float] | None = None) -> list[Any]:
        """JPEG images of the centre squares of T frames, as buffers.

        Raises:
            RaylabError: their shard is gone or damaged.
        """
        path, row = self._place(number)
        with reading(path):
            return read_clip(path, row, self._frames, fractions).squares

    def _place(self, number: int) -> tuple[Path, int]:
        """The shard of one of the chosen clips, and its row there."""
        row = int(self._rows[number])
        name = self.store.index["shard"][row].as_py()
        copy = self.stage.copy_of(self.store.manifest.shards[name])
        return copy or shard_path(self.store.folder, name), self.store.index["row"][row].as_py()

    def shards(self) -> set[str]:
        """The names of all shards that hold a chosen clip."""
        return set(self.store.index["shard"].take(self._rows.numpy()).unique().to_pylist())


def stage(stored: Mapping[str, StoredFrames]) -> Thread | None:
    """Begin to copy the shards of all splits to the node's own disk, if they are to be: see `Stage`."""
    frames = next(iter(stored.values()), None)
    if frames is None or frames.stage.folder is None:
        return None
    names = sorted(set().union(*(split.shards() for split in stored.values())))
    manifest = frames.store.manifest
    return frames.stage.fill(frames.store.folder, {name: manifest.shards[name] for name in names})
