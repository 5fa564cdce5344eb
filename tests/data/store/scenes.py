"""Videos whose pixels tell which frame they show, and stores made of them in one process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from torchvision.io import write_jpeg

from raylab.data.clips import Clip, ClipTable
from raylab.data.store.build import Building
from raylab.data.store.manifest import Manifest, StoreSettings
from raylab.data.store.sources import look, read_seen, write_seen

FPS, COUNT = 25, 50


def picture(number: int, width: int, height: int) -> np.ndarray:
    """Frame `number` (from 0), uint8 (H, W, 3): blue tells the number, red rises with x, green with y."""
    level = np.full((height, width, 3), 10.0 + 4 * number)
    level[..., 0] += np.linspace(0, 40, width)
    level[..., 1] += np.linspace(0, 40, height)[:, None]
    return level.round().astype(np.uint8)


def numbers(frames: Tensor) -> list[int]:
    """Which pictures these are: uint8 (T, 3, H, W)."""
    return ((frames[:, 2].float().mean((1, 2)) - 10) / 4).round().int().tolist()


def encode(path: Path, width: int = 96, height: int = 64, count: int = COUNT, first: int = 0, crf: int = 4) -> Path:
    """Write frames `first`, `first` + 1, … as a video file; any size."""
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(FPS), options={"g": "12", "crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        for number in range(first, first + count):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")))
        container.mux(stream.encode())
    return path


def extract(folder: Path, width: int = 96, height: int = 64, count: int = COUNT) -> Path:
    """Write frames as EPIC-KITCHENS-100 publishes them."""
    folder.mkdir()
    for number in range(count):
        pixels = torch.from_numpy(picture(number, width, height)).permute(2, 0, 1).contiguous()
        write_jpeg(pixels, str(folder / f"frame_{number + 1:010d}.jpg"), quality=95)
    return folder


def clip(id: str, video: str, first: int, stop: int) -> Clip:
    """The frames first … stop - 1, counted from 0."""
    return Clip(id, video, first / FPS, stop / FPS, first + 1, stop + 1, {"verb": first, "noun": stop}, "P01")


def spread_over(videos: Sequence[str], count: int) -> list[Clip]:
    """Clips of many lengths, in turn from each video."""
    starts = [(i, 7 * i % 30) for i in range(count)]
    return [clip(f"{videos[i % len(videos)]}_{i}", videos[i % len(videos)], at, at + 2 + i % 18) for i, at in starts]


def building(folder: Path, decoder: str = "pyav", **settings: object) -> Building:
    made = StoreSettings.model_validate({"frames": (4,), "short_side": 32, **settings})
    return Building(folder / made.name, made, decoder)


def prepare(
    store: Building, clips: Sequence[Clip], sources: Mapping[str, Path], pieces: int | None = None
) -> Manifest | None:
    """What `raylab.prepare` does, without Ray. With `pieces` it ends, as if killed, when so many are written."""
    table = ClipTable.of(clips)
    known = read_seen(store.folder)
    seen = look(sources, known)
    store.folder.mkdir(parents=True, exist_ok=True)
    keys = [store.settings.content_key(seen[clip.video].fingerprint, clip) for clip in table]
    for piece in islice(store.plan(table, keys, sources), pieces):
        store.write(piece)
    if pieces is not None:
        return None
    write_seen(store.folder, {**known, **seen})
    return store.seal()


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
