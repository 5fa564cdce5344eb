"""Decode every clip of a sweep once, into a clip store that training reads many times faster than video.

    python -m raylab.prepare epic_phase2 data.root=$VSC_SCRATCH/epic
    python -m raylab.prepare epic_phase2 --fps 10 --short-side 320
    python -m raylab.prepare epic_phase2 --verify

The same command again goes on where it stopped, and adds what the annotations have gained.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer
from filelock import FileLock, Timeout
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from raylab.cli import console, run_verb
from raylab.config import DataConfig, Experiment
from raylab.data.clips import ClipTable, Dataset
from raylab.data.datasets import load_dataset, stores_folder
from raylab.data.store.manifest import MANIFEST, Manifest, StoreSettings
from raylab.data.store.sources import look, read_seen, write_seen
from raylab.errors import RaylabError
from raylab.schema import parse_overrides, read_yaml, validate
from raylab.sweeps.space import find
from raylab.train import load_experiment
from raylab.tune import choose

Counts = Iterable[tuple[int, int]]
LINE_SECONDS = 10  # between two lines where there is no terminal to draw a bar on


def make_store(
    data: DataConfig, settings: StoreSettings, show: Callable[[Counts, int], Counts] | None = None
) -> Manifest:
    """Bring a clip store up to date: read what it lacks of the data set, on all CPUs of the cluster.

    Args:
        data: the data set; `store` may name the folder of stores, `decoder` says how video is read.
        settings: of the store.
        show: passes on (clips read, clips that could not be) of each finished shard, of so many clips in all.

    Returns:
        What the store now holds. Clips that could not be read are named there.

    Raises:
        RaylabError: the data set cannot be read, or the store not be written.
    """
    dataset, folder = _open(data, settings)
    clips = ClipTable(pa.concat_tables(split.clips.table for split in dataset.splits.values()))
    with _alone(folder):
        known = read_seen(folder)
        seen = look(dataset.sources, known)
        keys = [settings.content_key(seen[clip.video].fingerprint, clip) for clip in clips]
        from raylab.data.store.build import Building  # which imports PyTorch

        building = Building(folder, settings, data.decoder)
        with _writing(folder):
            plan = building.plan(clips, keys, dataset.sources)
        if plan:
            from raylab.cluster.connect import connect
            from raylab.cluster.spread import spread

            connect()
            done = spread(building.write, plan)
            for _ in show(done, len(plan)) if show else done:
                pass
        with _writing(folder):
            write_seen(folder, {**known, **seen})
            return building.seal(clips)


def verify_store(data: DataConfig, settings: StoreSettings) -> list[str]:
    """Read a whole store again, and the videos it was made from.

    Returns:
        What is wrong with it, in words; empty where nothing is.

    Raises:
        RaylabError: there is no such store, or the data set cannot be read.
    """
    dataset, folder = _open(data, settings)
    manifest = Manifest.read(folder)
    if manifest is None:
        raise RaylabError(f"{folder}: no complete clip store to verify: run the command without --verify")
    from raylab.cluster.connect import connect
    from raylab.cluster.spread import spread
    from raylab.data.store.build import Building
    from raylab.data.store.verify import Comparison, suspects

    connect()
    building = Building(folder, settings, data.decoder)
    faults = spread(Comparison(building, dataset.sources).faults, suspects(building, manifest))
    return sorted(fault for found in faults for fault in found)


def _open(data: DataConfig, settings: StoreSettings) -> tuple[Dataset, Path]:
    """The data set, and the folder of its store."""
    parent = stores_folder(data)
    if (parent / MANIFEST).exists():
        raise RaylabError(f"data.store = {parent}: is one store: name the folder that holds it, {parent.parent}")
    return load_dataset(data.model_copy(update={"store": False})), parent / settings.name


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Only one process at a time may bring a store up to date. The lock ends with its process."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(folder / "preparing.lock").acquire(timeout=0)
        except Timeout:
            raise RaylabError(f"{folder}: another process is preparing this store: wait for it to end") from None
    with lock:
        yield


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RaylabError(
            f"{folder}: cannot be written ({error.strerror or error}): free some space there, or set data.store=FOLDER"
        ) from None


def watched(done: Counts, total: int) -> Counts:
    """Pass on what is done, and show how far it is: as a bar, or off a terminal as a line now and then."""
    clips, started = 0, time.monotonic()
    said = started
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("clips, {task.fields[rate]:.1f} clips/s"))
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=total, rate=0.0)
        for read, unreadable in done:
            clips += read
            now = time.monotonic()
            rate = clips / (now - started)
            bar.update(task, completed=clips, rate=rate)
            if bar.disable and now - said > LINE_SECONDS:
                left = timedelta(seconds=round((total - clips) / rate))
                console.print(f"{clips:,} of {total:,} clips, {rate:.1f} clips/s, about {left} left")
                said = now
            yield read, unreadable


def variants(name: str, overrides: list[str], demo: bool) -> tuple[Experiment, list[int], int, list[str]]:
    """What a store must hold for a sweep or an experiment.

    Returns:
        The experiment, the numbers of frames that its trials sample, the largest square they need, in pixels, and the
        ways in which they sample.
    """
    if "space" not in read_yaml(find(name)):
        experiment = load_experiment(name, demo=demo).override(parse_overrides(overrides))
        data = experiment.data
        return experiment, [data.frames], data.side, [data.sampling]
    space = choose(name, overrides, demo)
    side = space.experiment.override({"data.size": max(space.values("data.size"))}).data.side
    return space.experiment, sorted(set(space.values("data.frames"))), side, space.values("data.sampling")


def prepare(
    experiment: Annotated[str, typer.Argument(help="A sweep's name, or a YAML file of a sweep or an experiment.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, e.g. data.root=PATH.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="For the demo, on the built-in data set.")] = False,
    short_side: Annotated[
        int | None, typer.Option(help="Short side of frames; 256, or more if data.size needs it.")
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Frames a second, in place of data.frames per clip.")] = None,
    quality: Annotated[int, typer.Option(help="Of the JPEG compression, 1 to 100.")] = 90,
    square: Annotated[bool, typer.Option("--square", help="Keep the centre square only.")] = False,
    tolerance: Annotated[
        float, typer.Option(min=0, max=1, help="Share of unreadable clips past which the exit code is 1.")
    ] = 0.01,
    verify: Annotated[bool, typer.Option("--verify", help="Compare an existing store with the videos.")] = False,
) -> None:
    """Decode every clip once, into a clip store; the same command again goes on, or adds what is new.

    Example: raylab prepare epic_phase2 data.root=/data/epic
    """
    base, frames, side, sampling = variants(experiment, overrides or [], demo)
    windows = "rate" in sampling
    if windows and set(sampling) != {"rate"}:
        raise RaylabError(f"data.sampling = {', '.join(sampling)}: windows need a store of their own: set one")
    if windows and fps is not None:
        raise RaylabError(f"--fps {fps:g}: means nothing with data.sampling = rate: set data.fps")
    if "segments" in sampling and fps is None:
        raise RaylabError("data.sampling = segments: frames differ from epoch to epoch: give --fps")
    asked = {
        "frames": () if windows or fps is not None else frames,
        "fps": fps,
        "rate": base.data.fps if windows else None,
        "short_side": max(256, side) if short_side is None else short_side,
        "quality": quality,
        "sides": not square,
    }
    settings = validate(StoreSettings, asked, "store settings")
    if settings.short_side < side:
        raise RaylabError(f"--short-side {short_side}: the trials need {side} (data.size × 256/224) or more")
    if verify:
        faults = verify_store(base.data, settings)
        console.print("\n".join([*faults, f"{len(faults)} faults"]), markup=False)
        if faults:
            console.print("to mend it, delete shards that are damaged and run the command without --verify")
            raise typer.Exit(1)
        return
    try:
        manifest = make_store(base.data, settings, watched)
    except KeyboardInterrupt:
        console.print("interrupted: the same command goes on from here")
        raise typer.Exit(130) from None
    unreadable = manifest.unreadable
    size = sum(shard.bytes for shard in manifest.shards.values())
    console.print(
        f"{stores_folder(base.data) / settings.name}: {manifest.clips:,} clips in {len(manifest.shards):,} shards, "
        f"{decimal(size)}, {len(unreadable):,} unreadable",
        markup=False,
    )
    for clip in unreadable[:10]:
        console.print(f"  {clip.id}: {clip.reason}", markup=False)
    if len(unreadable) > tolerance * (manifest.clips + len(unreadable)):
        console.print(f"[bold red]more than {tolerance:.0%} of the clips cannot be read[/]; all are in {MANIFEST}")
        raise typer.Exit(1)


if __name__ == "__main__":
    run_verb(prepare)
