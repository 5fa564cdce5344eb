"""Which of the stores at hand serves an experiment. Without one that may, PyTorch is not imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from raylab.config import DataConfig
from raylab.data.clips import ClipTable
from raylab.data.store.manifest import MANIFEST, PREPARE, Manifest
from raylab.errors import RaylabError

if TYPE_CHECKING:
    from raylab.data.store.reader import StoredFrames


def find_store(
    config: DataConfig, folder: Path, clips: Mapping[str, ClipTable], crops: int = 1
) -> tuple[dict[str, StoredFrames], list[str]]:
    """The frames of every split, from the smallest store that holds what `config` asks for.

    Args:
        config: `store` says whether to look, and whether there must be one; `frames` and `size` what it must hold.
        folder: of stores; or one store.
        clips: split → its clips.
        crops: of each frame, as for `ClipDataset`.

    Returns:
        Split → its frames, empty where they are to be decoded from video; and why stores that are there will not do.

    Raises:
        RaylabError: `config.store` names a folder, and no store in it will do; says why.
    """
    if config.store is False:
        return {}, []
    refusals: list[str] = []
    for place, manifest in sorted(_stores(folder), key=lambda store: _cost(store[1])):
        refusal = manifest.settings.refusal(config, crops)
        if refusal is None:
            from raylab.data.store.reader import Store, StoredFrames

            store = Store(place, manifest)
            frames = {split: StoredFrames(store, table, config, crops) for split, table in clips.items()}
            missing = sum(split.missing for split in frames.values())
            gone = len(manifest.shards.keys() - {path.stem for path in place.glob("shards/*.arrow")})
            if not missing and not gone:
                return frames, refusals
            refusal = (
                f"lacks {missing:,} of {sum(map(len, clips.values())):,} clips"
                if missing
                else f"{gone} shards are gone"
            )
        refusals.append(f"{place}: {refusal}")
    if config.store is True:
        return {}, refusals
    raise RaylabError("\n".join([f"data.store = {config.store}: no clip store there will do: {PREPARE}", *refusals]))


def _stores(folder: Path) -> list[tuple[Path, Manifest]]:
    """The complete stores in a folder; the folder itself where it is one."""
    found = [folder / MANIFEST] if (folder / MANIFEST).exists() else sorted(folder.glob(f"*/{MANIFEST}"))
    return [(path.parent, manifest) for path in found if (manifest := Manifest.read(path.parent))]


def _cost(manifest: Manifest) -> tuple[bool, int, int]:
    settings = manifest.settings
    return settings.fps is not None, settings.short_side, len(settings.frames)
