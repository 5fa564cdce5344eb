"""Comparing a store with its manifest's checksums and with the videos it was made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from raylab.data.clips import Clip
from raylab.data.store import index, jpeg
from raylab.data.store.build import Building
from raylab.data.store.manifest import Manifest, Shard
from raylab.data.store.shards import StoredClip, digest, read_clip, shard_path
from raylab.errors import RaylabError

TOLERANCE = 1.0
"""Mean difference of pixels, of 255, up to which two frames are the same: another version of a decoder, of PyTorch's
resizing or of libjpeg-turbo may round otherwise."""

Frame = tuple[Any, Any]  # its square, and what lies beside it


@dataclass(frozen=True)
class Suspect:
    """A shard to be compared: its name, what the manifest says of it, and its clips by row."""

    name: str
    recorded: Shard
    clips: dict[int, Clip]


def suspects(building: Building, manifest: Manifest) -> Iterator[Suspect]:
    """Every shard of a store."""
    rows = index.read_rows(building.folder / manifest.index).select(["shard", "row", "id", *index.SEGMENT])
    rows = rows.filter(rows["shard"].is_valid()).sort_by([("shard", "ascending"), ("row", "ascending")])
    entries = (entry for batch in rows.to_batches(max_chunksize=4096) for entry in batch.to_pylist())
    for name, held in groupby(entries, key=lambda entry: str(entry["shard"])):
        clips = {entry["row"]: Clip(labels={}, **{f: entry[f] for f in ("id", *index.SEGMENT)}) for entry in held}
        yield Suspect(name, manifest.shards[name], clips)


@dataclass(frozen=True)
class Comparison:
    """Finds what is wrong with shards.

    Attributes:
        building: the store.
        sources: video id → its source, for all videos that are at hand; the clips of others are not compared.
    """

    building: Building
    sources: Mapping[str, Path]

    def faults(self, suspect: Suspect) -> list[str]:
        """What is wrong with one shard, in words."""
        path = shard_path(self.building.folder, suspect.name)
        if not path.exists():
            return [f"{path}: is gone"]
        if digest(path) != suspect.recorded.digest:
            return [f"{path}: is damaged"]
        found = [(clip, self.difference(read_clip(path, row), clip)) for row, clip in suspect.clips.items()]
        return [f"{path}: clip {clip.id} {fault}" for clip, fault in found if fault]

    def difference(self, stored: StoredClip, clip: Clip) -> str | None:
        source = self.sources.get(clip.video)
        if source is None:
            return None
        try:
            fresh = self.building.read(clip, source)
        except RaylabError as error:
            return f"can no longer be read: {error}"
        if (fresh.height, fresh.width, fresh.positions) != (stored.height, stored.width, stored.positions):
            return f"has other frames than {source}"
        frames = list(zip(*([*zip(clip.squares, clip.sides, strict=True)] for clip in (stored, fresh)), strict=True))
        if any((one[1] is None) != (other[1] is None) for one, other in frames):
            return f"has other sides than {source}"
        wide = stored.width > stored.height
        difference = max((_difference(one, other, wide) for one, other in frames if one != other), default=0.0)
        return f"differs from {source} by {difference:.1f} of 255" if difference > TOLERANCE else None


def _difference(one: Frame, other: Frame, wide: bool) -> float:
    pixels, others = (jpeg.decode_whole([square], [beside], wide).float() for square, beside in (one, other))
    return (pixels - others).abs().mean().item()
