"""How fast frames arrive: raylab's decoders beside those that it could be replaced by.

    python benchmarks/decode.py
    python benchmarks/decode.py --kinds 256p --clips 40 --video recording.mp4

Every reader brings 16 evenly spaced frames of random 3-second segments of an H.264 file to uint8 (16, 3, 256, 256), as
training does, and opens the file for each clip: a data set's random clips lie in many files. The clip store has been
prepared from the same file with its default settings. Figures are CPU time of
one process, in which each decoder has one thread; medians over repeats, where the readers take turns clip by clip. A
ratio to a peer is to the fastest of its rows. The limit is what decoding JPEG takes (256 × 256, quality 90, 4:2:0) when
the pictures lie in memory. The last column is the mean difference of the worst clip's pixels, in values of 0 to 255,
from those of raylab's default decoder.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from videos import KINDS, Kind, default_video, encode

from raylab.config import DataConfig
from raylab.data.clips import Clip, ClipTable
from raylab.data.dataset import ClipDataset
from raylab.data.footage import fit
from raylab.data.sampling import frame_numbers
from raylab.data.store.build import Building
from raylab.data.store.find import find_store
from raylab.data.store.manifest import StoreSettings
from raylab.data.store.sources import look
from raylab.data.video import DECODERS, probe, read_frames
from raylab.errors import RaylabError

FRAMES, SECONDS, SIDE = 16, 3, 256
REFERENCE = "raylab, pyav"
LIMIT = "limit: JPEG in memory"
PEERS = ("decord", "torchcodec")
CLIPS = {"256p": 8, "320p": 8, "1080p": 2}

Reader = Callable[[Clip], Tensor]


class Outcome(NamedTuple):
    """One reader: CPU seconds per clip of each repeat, and of each clip the mean difference in pixels, of 0–255."""

    seconds: list[float]
    differences: list[float]


def read_decord(path: Path, numbers: Sequence[int], **options: int) -> Tensor:
    """As decord's documentation reads frames."""
    from decord import VideoReader

    reader = VideoReader(str(path), num_threads=1, **options)
    return torch.from_numpy(reader.get_batch(numbers).asnumpy()).permute(0, 3, 1, 2)


def read_torchcodec(path: Path, numbers: Sequence[int], **options: Any) -> Tensor:
    """As torchcodec's performance tips read frames: all at once, on one thread where several processes decode."""
    from torchcodec.decoders import VideoDecoder

    return VideoDecoder(path, num_ffmpeg_threads=1, **options).get_frames_at(numbers).data


def read_resized_torchcodec(path: Path, numbers: Sequence[int], shape: tuple[int, int]) -> Tensor:
    """The same, resized by the decoder."""
    from torchcodec.transforms import Resize

    return read_torchcodec(path, numbers, seek_mode="approximate", transforms=[Resize(shape)])


def read_raylab(path: Path, numbers: Sequence[int], fps: float, decoder: str) -> Tensor:
    """As raylab reads frames: by time."""
    return read_frames(path, [(number + 0.5) / fps for number in numbers], decoder)


def readers(path: Path, kind: Kind, clips: Sequence[Clip]) -> dict[str, Reader]:
    """Name → function of a clip of `path`, to uint8 (16, 3, 256, 256). Names of peers begin with the package's."""
    height, width = SIDE, round(SIDE * kind.width / kind.height)
    decoders: dict[str, Callable[[Path, Sequence[int]], Tensor]] = {
        **{f"raylab, {name}": partial(read_raylab, fps=kind.fps, decoder=name) for name in DECODERS},
        "decord": read_decord,
        "decord, width and height": partial(read_decord, width=width, height=height),
        "torchcodec, exact": partial(read_torchcodec, seek_mode="exact"),
        "torchcodec, approximate": partial(read_torchcodec, seek_mode="approximate"),
        "torchcodec, approximate, Resize": partial(read_resized_torchcodec, shape=(height, width)),
    }

    def read(decode: Callable[[Path, Sequence[int]], Tensor], clip: Clip) -> Tensor:
        return fit(decode(path, _numbers(clip)), SIDE)

    from_video = {name: partial(read, decode) for name, decode in decoders.items()}
    limit = jpeg_reader(clips, from_video[REFERENCE])
    return {**store_readers(path, clips), **from_video, LIMIT: limit}


def store_readers(path: Path, clips: Sequence[Clip]) -> dict[str, Reader]:
    """A clip store of these clips beside the file, read into memory of its own, or into a place that lies ready."""
    folder, settings, sources = path.with_suffix(".store"), StoreSettings(frames=(FRAMES,)), {path.stem: path}
    folder.mkdir()
    table = ClipTable.of(clips)
    fingerprint = look(sources, {})[path.stem].fingerprint
    building = Building(folder, settings, "pyav")
    for piece in building.plan(table, [settings.content_key(fingerprint, clip) for clip in table], sources):
        building.write(piece)
    building.seal()
    config = DataConfig(frames=FRAMES, store=str(folder))
    dataset = ClipDataset(table, {}, config, find_store(config, folder, {"all": table})[0]["all"])
    rows = {clip.id: row for row, clip in enumerate(table)}
    place = torch.empty(dataset.shape, dtype=torch.uint8)

    def read_in_place(clip: Clip) -> Tensor:
        dataset.decode(rows[clip.id], place)
        return place.permute(0, 3, 1, 2)

    return {"raylab, clip store": lambda clip: dataset[rows[clip.id]]["video"], "the same, in place": read_in_place}


def jpeg_reader(clips: Sequence[Clip], read: Reader) -> Reader:
    """Decodes pictures that lie in memory as JPEG into an array that lies ready, and does nothing else."""
    pictures = {
        clip.id: [
            simplejpeg.encode_jpeg(picture, quality=90, colorsubsampling="420")
            for picture in read(clip).permute(0, 2, 3, 1).contiguous().numpy()
        ]
        for clip in clips
    }
    video = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)

    def decode(clip: Clip) -> Tensor:
        for picture, place in zip(pictures[clip.id], video, strict=True):
            simplejpeg.decode_jpeg(picture, buffer=place)
        return torch.from_numpy(video).permute(0, 3, 1, 2)

    return decode


def segment(path: Path, fps: int, first: int, frames: int) -> Clip:
    """A stretch of a file, from a frame counted from 1."""
    start = (first - 1) / fps
    return Clip(f"{path.stem}-{first}", path.stem, start, start + frames / fps, first, first + frames, {})


def _numbers(clip: Clip) -> list[int]:
    """Frames counted from 0."""
    return [number - 1 for number in frame_numbers(clip.start_frame, clip.stop_frame, FRAMES)]


def measure(path: Path, kind: Kind, clips: int, repeats: int) -> dict[str, Outcome]:
    """Reader → outcome, over random segments. A reader that cannot be loaded is left out, with a line that says so."""
    length, frames = SECONDS * kind.fps, round(probe(path).duration * kind.fps)
    firsts = random.Random(0).sample(range(1, frames - length), clips)
    drawn = [segment(path, kind.fps, first, length) for first in firsts]
    start = segment(path, kind.fps, 1, FRAMES)
    found: dict[str, tuple[Reader, Outcome]] = {}
    for name, read in readers(path, kind, [start, *drawn]).items():
        try:
            read(start)
        except (ImportError, RuntimeError, RaylabError) as error:
            print(f"{name} is left out: {str(error).strip().splitlines()[0]}")
        else:
            found[name] = read, Outcome([0.0] * repeats, [])
    for repeat in range(repeats):
        for clip in drawn:
            videos = {}
            for name, (read, outcome) in found.items():
                started = time.process_time()
                videos[name] = read(clip)
                outcome.seconds[repeat] += (time.process_time() - started) / clips
            for name, (_, outcome) in found.items():
                outcome.differences.append((videos[name].int() - videos[REFERENCE].int()).abs().float().mean().item())
    return {name: outcome for name, (_, outcome) in found.items()}


def table(outcomes: Iterable[tuple[str, Mapping[str, Outcome]]]) -> Table:
    """Milliseconds and clips per second of one core, as Markdown."""
    ratios = [f"× {peer}" for peer in (*PEERS, "limit")]
    shown = Table("file", "reader", "ms", "clips/s", *ratios, "pixels differ by", box=box.MARKDOWN)
    for kind, readers in outcomes:
        for number, (name, outcome) in enumerate(readers.items()):
            seconds = median(outcome.seconds)
            times = [_ratio(readers, peer, outcome) for peer in (*PEERS, LIMIT)]
            figures = f"{1000 * seconds:.1f}", f"{1 / seconds:.1f}", *times, f"{max(outcome.differences):.2f}"
            shown.add_row("" if number else kind, name, *figures)
    return shown


def _ratio(readers: Mapping[str, Outcome], peer: str, outcome: Outcome) -> str:
    """How many times as fast as the fastest way of a peer."""
    ways = [other.seconds for name, other in readers.items() if name.startswith(peer)]
    if not ways:
        return "–"
    fastest = min(ways, key=median)
    return f"{median(a / b for a, b in zip(fastest, outcome.seconds, strict=True)):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description="How fast frames arrive: decoders compared.")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument(
        "--video", type=Path, help="file whose pixels are encoded; by default a real one, if there is one"
    )
    parser.add_argument("--clips", type=int, help=f"of each kind; by default {CLIPS}")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        video = options.video or default_video()
        probe(video)
    except RaylabError as error:
        parser.error(str(error))

    started = time.monotonic()
    console = Console(width=120)
    outcomes = {}
    with TemporaryDirectory() as folder:
        for name in options.kinds:
            kind, path = KINDS[name], Path(folder, f"{name}.mp4")
            encode(kind, video, path)
            rate = path.stat().st_size * 8e-6 / probe(path).duration
            console.print(f"{name}: {kind}, {rate:.1f} Mbit/s", highlight=False)
            outcomes[name] = measure(path, kind, options.clips or CLIPS[name], options.repeats)
    console.print(table(outcomes.items()))
    packages = ", ".join(f"{name} {version(name)}" for name in ("av", *PEERS, "simplejpeg") if find_spec(name))
    console.print(
        f"CPU time per clip on one core; {packages}; {time.monotonic() - started:.0f} s in all.", highlight=False
    )


if __name__ == "__main__":
    main()
