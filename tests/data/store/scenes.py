"""Videos whose pixels tell which frame they show, and stores made of them in one process."""

from __future__ import annotations

import subprocess
import sys
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
from raylab.data.footage import positions, read_positions
from raylab.data.store import jpeg
from raylab.data.store.build import Building
from raylab.data.store.manifest import Manifest, StoreSettings
from raylab.data.store.shards import read_clip, shard_path
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
        stream = container.add_stream(
            "libx264", rate=Fraction(FPS), options={"g": "12", "crf": str(crf), "threads": "1"}
        )
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


def held(store: Building) -> dict[str, tuple[str, int]]:
    """Clip id → its shard and row."""
    return {row["id"]: (row["shard"], row["row"]) for row in store.rows().to_pylist() if row["shard"]}


def shown(store: Building, id: str, frames: int | None = None) -> list[int]:
    """The numbers of the pictures that the store has of a clip."""
    shard, row = held(store)[id]
    stored = read_clip(shard_path(store.folder, shard), row, frames)
    return numbers(jpeg.decode_whole(stored.squares, stored.sides, wide=stored.width > stored.height))


def shown_directly(clip: Clip, source: Path, frames: int = 4) -> list[int]:
    return numbers(read_positions(source, positions(clip, source, frames), "pyav"))


def planned(store: Building, clips: list[Clip], sources: dict[str, Path]) -> tuple[object, ...]:
    from raylab.data.clips import ClipTable

    return ClipTable.of(clips), [store.settings.content_key("ab", each) for each in clips], sources


DAMAGE = """
import random, sys
from pathlib import Path
from raylab.errors import RaylabError
{imports}

whole, damaged = Path(sys.argv[1]), Path(sys.argv[1]).with_name("damaged.arrow")
content, rng, refused = whole.read_bytes(), random.Random(0), 0
for turn in range(1_500):
    spoilt = bytearray(content)
    at = rng.randrange(len(spoilt) - 8)
    if turn % 2:
        spoilt[at] ^= 1 << rng.randrange(8)
    else:
        spoilt[at : at + 8] = (1 << rng.randrange(40)).to_bytes(8, "little")
    damaged.unlink(missing_ok=True)
    damaged.write_bytes(spoilt[: rng.randrange(len(spoilt))] if turn % 10 == 0 else spoilt)
    try:
        {read}
    except RaylabError as error:
        assert str(damaged) in str(error)
        refused += 1
print(refused)
"""


def refusals(path: Path, imports: str, read: str) -> int:
    """How many of 1,500 damaged copies of a file `read` refuses, in a process that is to live through them all.

    Args:
        path: the file, whole.
        imports: what `read` needs, as source.
        read: statements that read the file `damaged`.
    """
    code = DAMAGE.format(imports=imports, read=read)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)
