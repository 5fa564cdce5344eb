"""What a large data set costs before its first frame: time to open it, and memory for each process that holds it.

    python benchmarks/clip_index.py
    python benchmarks/clip_index.py --clips 67000 --processes 1 4

Annotations are made up in EPIC-KITCHENS-100's layout. raylab parses them once and from then on maps the table from its
cache; it sends loader processes the file's path. The peer is a list of `Clip` objects, sent whole: what a PyTorch data
set with a list costs each of its loader processes. Times are CPU seconds of a fresh process that has imported what it
needs, medians of interleaved repeats; opening covers all of `load_dataset`, and for the peer unpickling. Memory is how
far the proportional set sizes of all processes together rise (PSS: a page is divided among those who share it) while
each unpickles the clips and reads some. *Ratio* is peer to raylab.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import pickle
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import psutil
from rich import box
from rich.console import Console
from rich.table import Table

from raylab.config import DataConfig
from raylab.data.clips import Clip, ClipTable
from raylab.data.datasets import load_dataset
from raylab.data.epic import CLASSES, SPLITS, VIDEO_INFO
from raylab.data.store.manifest import Manifest, Shard, StoreSettings

SPAWN = multiprocessing.get_context("spawn")
MIB = 2**20
VIDEOS = 700
READS = 20_000  # random clips that each process reads
CLIP_COLUMNS = (
    *("narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp"),
    *("start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class"),
    *("all_nouns", "all_noun_classes"),
)
LOADER = DataConfig(dataset="kitchen", kitchen="tiny", frames=4, size=64, batch_size=8, store=False)

Opener = Callable[[], Sequence[Clip]]


class Cost(NamedTuple):
    """Of a process: CPU seconds to open the clips, and of reading one."""

    opening: float
    reading: float


# The annotations


def write_annotations(root: Path, clips: int) -> None:
    """As many training clips, a hundredth of them for validation, and an empty file for every video."""
    videos = [f"P{video % 37:02}_{video // 37:03}" for video in range(VIDEOS)]
    (root / "videos").mkdir(parents=True)
    for video in videos:
        (root / "videos" / f"{video}.MP4").touch()
    write_csv(root / VIDEO_INFO, ("video_id", "duration", "fps"), ((video, "90000.0", "60.0") for video in videos))
    for (head, name), count in zip(CLASSES.items(), (97, 300), strict=True):
        write_csv(root / name, ("id", "key"), ((i, f"{head} {i}") for i in range(count)))
    for name, count in zip(SPLITS.values(), (clips, clips // 100), strict=True):
        write_csv(root / name, CLIP_COLUMNS, (annotation(videos, i) for i in range(count)))


def annotation(videos: Sequence[str], number: int) -> tuple[Any, ...]:
    video, second = videos[number % VIDEOS], 3 * (number // VIDEOS)
    start, stop = timestamp(second), timestamp(second + 2)
    verb, noun = number % 97, number % 300
    return (
        *(f"{video}_{number}", video[:3], video, start, start, stop, 60 * second + 1, 60 * second + 121),
        *("open the door", f"verb {verb}", verb, f"noun {noun}", noun, f"['noun {noun}']", f"[{noun}]"),
    )


def timestamp(second: int) -> str:
    return f"{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}.00"


def write_csv(path: Path, header: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


# Opening and reading


def open_table(config: DataConfig) -> ClipTable:
    return load_dataset(config).splits["train"].clips


def open_stored(config: DataConfig) -> Any:
    """As a training process opens clips whose frames lie in a clip store."""
    dataset = load_dataset(config)
    return dataset.splits["train"].clips, dataset.stored


def write_index(config: DataConfig, folder: Path) -> None:
    """A clip store with empty shards: what is opened before the first frame is read."""
    from raylab.data.store import index
    from raylab.data.store.shards import shard_path

    dataset = load_dataset(config)
    (folder / "shards").mkdir(parents=True)
    shards = {}
    tables = []
    for clips in (split.clips for split in dataset.splits.values()):
        for first in range(0, len(clips), 256):
            name = f"{len(shards):024x}"
            held = list(clips.take(range(first, min(first + 256, len(clips)))))
            tables.append(index.rows_of(name, [(clip, bytes(16)) for clip in held], {}))
            shard_path(folder, name).touch()
            shards[name] = Shard(clips=len(held), bytes=0, digest="")
    rows, name = index.merge(tables), f"index-{0:016x}.arrow"
    index.write_rows(folder / name, rows)
    manifest = Manifest(settings=StoreSettings(frames=(16,)), index=name, clips=rows.num_rows, shards=shards)
    manifest.write(folder)


def unpickle(path: Path) -> Sequence[Clip]:
    clips: Sequence[Clip] = pickle.loads(path.read_bytes())  # noqa: S301 - written below
    return clips


def write_pickles(config: DataConfig, table: Path, peer: Path) -> None:
    clips = open_table(config)
    table.write_bytes(pickle.dumps(clips))
    peer.write_bytes(pickle.dumps(list(clips)))


def cost(opener: Opener) -> Cost:
    started = time.process_time()
    clips = opener()
    opened = time.process_time()
    read_some(clips)
    return Cost(opened - started, (time.process_time() - opened) / READS)


def cost_of_opening(opener: Callable[[], Any]) -> float:
    import raylab.data.dataset  # noqa: F401 - what it needs, PyTorch too

    started = time.process_time()
    opener()
    return time.process_time() - started


def read_some(clips: Sequence[Clip]) -> None:
    for index in np.random.default_rng(0).integers(len(clips), size=READS).tolist():
        clips[index]


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    with ProcessPoolExecutor(1, SPAWN) as pool:
        return pool.submit(function, *arguments).result()


def drawing(clips: int) -> tuple[float, float]:
    """CPU seconds of an epoch's batches: raylab's, PyTorch's."""
    from torch.utils.data import BatchSampler, RandomSampler

    from raylab.data.loader import TrainBatches

    times = [time.process_time()]
    for batches in (TrainBatches(clips, 24, 0, 1, 0), BatchSampler(RandomSampler(range(clips)), 24, drop_last=True)):
        deque(batches, maxlen=0)
        times.append(time.process_time())
    return times[1] - times[0], times[2] - times[1]


# Memory


def hold(opener: Opener, parent: Connection) -> None:
    """Open the clips when told to, and hold them until told to end."""
    import raylab.data.dataset  # noqa: F401 - PyTorch too, before the first measurement

    read_some([Clip("", "", 0, 0, 0, 0, {})])  # and generator and allocator are set up
    parent.send("ready")
    parent.recv()
    held = opener()
    if not isinstance(held, tuple):
        read_some(held)
    parent.send("open")
    parent.recv()


def memory_of_holders(opener: Opener, processes: int) -> float:
    """MiB by which the PSS of all processes together rises."""
    with holders(opener, processes) as (pids, connections):
        before = pss(pids)
        for connection in connections:
            connection.send("open")
        for connection in connections:
            connection.recv()
        return pss(pids) - before


@contextmanager
def holders(opener: Opener, count: int) -> Iterator[tuple[list[int], list[Connection]]]:
    connections, started = [], []
    for _ in range(count):
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=hold, args=(opener, theirs))
        process.start()
        connections.append(ours)
        started.append(process)
    for connection in connections:
        connection.recv()
    yield [process.pid for process in started if process.pid], connections
    for connection, process in zip(connections, started, strict=True):
        connection.send("end")
        process.join()


def pss(pids: Sequence[int]) -> float:
    return sum(psutil.Process(pid).memory_full_info().pss for pid in pids) / MIB


def memory_of_loader(workers: int, clips: int, folder: Path) -> tuple[float, float]:
    """MiB of PSS of the loader processes and their fork server together, and of one loader process at the mean.

    The clips are those of the built-in data set, repeated, in a mapped table.
    """
    import torch

    from raylab.data.dataset import ClipDataset
    from raylab.data.loader import TrainBatches, make_loader

    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)  # more processes than cores
    dataset = load_dataset(LOADER)
    table = dataset.splits["train"].clips
    path = folder / f"{clips}-{workers}.arrow"
    table.take(np.arange(clips) % len(table)).write(path)
    config = LOADER.model_copy(update={"loader_workers": workers})
    batches = TrainBatches(clips, config.batch_size, rank=0, world_size=1, seed=0)
    loader = iter(make_loader(ClipDataset(ClipTable.open(path), dataset.sources, config), batches, config, pin=False))
    for _ in range(8 * workers):
        next(loader)
    this = psutil.Process()
    below = this.children(recursive=True)
    loaders = [process.pid for process in below if process.ppid() != this.pid]  # what the fork server has forked
    return pss([process.pid for process in below]), pss(loaders) / len(loaders)


# The tables


def times(clips: int, config: DataConfig, table: Path, peer: Path, repeats: int) -> Table:
    parsing = in_fresh_process(cost, partial(open_table, config)).opening
    in_fresh_process(write_pickles, config, table, peer)
    ours, theirs, orders = [], [], []
    for _ in range(repeats):
        ours.append(in_fresh_process(cost, partial(open_table, config)))
        theirs.append(in_fresh_process(cost, partial(unpickle, peer)))
        orders.append(in_fresh_process(drawing, clips))
    store = Path(config.root) / "store"
    in_fresh_process(write_index, config, store)
    stored = [
        in_fresh_process(cost_of_opening, partial(open_stored, config.model_copy(update={"store": str(store)})))
        for _ in range(repeats)
    ]
    shown = Table(f"{clips:,} clips", "raylab", "peer", "ratio", box=box.MARKDOWN)
    shown.add_row("first parse of the CSV files, s", f"{parsing:.2f}", "", "")
    for what, pairs in {
        "opening, with a clip store, ms": [(1e3 * a, 1e3 * b.opening) for a, b in zip(stored, theirs, strict=True)],
        "opening, ms": [(1e3 * a.opening, 1e3 * b.opening) for a, b in zip(ours, theirs, strict=True)],
        "reading a random clip, µs": [(1e6 * a.reading, 1e6 * b.reading) for a, b in zip(ours, theirs, strict=True)],
        "drawing an epoch's batches, ms (peer: PyTorch's samplers)": [(1e3 * a, 1e3 * b) for a, b in orders],
    }.items():
        a, b = (median(values) for values in zip(*pairs, strict=True))
        shown.add_row(what, f"{a:.1f}", f"{b:.1f}", f"{b / a:.2g}")
    return shown


def memory(clips: int, stored: DataConfig, table: Path, peer: Path, processes: Sequence[int]) -> Table:
    shown = Table(f"{clips:,} clips: MiB in all", "raylab", "peer", "ratio", box=box.MARKDOWN)
    for count in processes:
        ours, theirs = (memory_of_holders(partial(unpickle, path), count) for path in (table, peer))
        what = f"{count} loader process{'es' * (count > 1)}"
        shown.add_row(what, f"{ours:.0f}", f"{theirs:.0f}", f"{theirs / ours:.1f}")
    for count in processes:
        ours = memory_of_holders(partial(open_stored, stored), count)
        shown.add_row(f"{count} training process{'es' * (count > 1)}, with a clip store", f"{ours:.0f}", "", "")
    return shown


def loaders(clips: int, folder: Path, processes: Sequence[int]) -> Table:
    shown = Table(f"DataLoader, {clips:,} clips", "MiB in all", "MiB a worker", box=box.MARKDOWN)
    for count in processes:
        total, each = in_fresh_process(memory_of_loader, count, clips, folder)
        shown.add_row(f"{count} worker{'s' * (count > 1)}", f"{total:.0f}", f"{each:.0f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description="What a large data set costs before its first frame.")
    parser.add_argument("--clips", type=int, nargs="+", default=[67_000, 1_000_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    console = Console(width=120)
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["RAYLAB_CACHE"] = str(folder / "cache")
        load_dataset(LOADER)  # rendered once
        for clips in options.clips:
            root = folder / str(clips)
            write_annotations(root, clips)
            table, peer = root / "table.pickle", root / "list.pickle"
            console.print(times(clips, DataConfig(root=str(root)), table, peer, options.repeats))
            stored = DataConfig(root=str(root), store=str(root / "store"))
            console.print(memory(clips, stored, table, peer, options.processes))
            console.print(loaders(clips, folder, options.processes))


if __name__ == "__main__":
    main()
