"""What a trained model sees in videos, or in a camera as it runs; the keyframes of videos.

python -m raylab.predict epic_phase2 kitchen.mp4 --start 12.5 --stop 15
python -m raylab.predict results/my_run videos/*.mp4 --json -
python -m raylab.predict keyframes videos/*.mp4 --keyframes out/
python -m raylab.predict epic_phase2 --webcam auto
python -m raylab.predict epic_phase2 --webcam recorded.mp4 --window 3
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from raylab.cli import console, errors, run_verb
from raylab.errors import RaylabError
from raylab.results import DEFAULT_STORAGE, Checkpoint, find_checkpoint
from raylab.storage import Folder, replacing

if TYPE_CHECKING:
    from raylab.prediction.classes import Guess, Predictor, Sighting

WEBCAM_WINDOW = 2.0  # seconds; half of EPIC-KITCHENS-100's segments are shorter

Act = Callable[[str], Any]
"""Looks at one video, and says what it has found as JSON can hold it."""


def as_table(top: Mapping[str, Sequence[Guess]], title: str) -> Table:
    """The heads side by side."""
    view = Table(title=escape(title), title_justify="left")
    for head in top:
        view.add_column(escape(head))
        view.add_column("%", justify="right")
    for row in range(max(map(len, top.values()))):
        cells = [
            cell
            for guesses in top.values()
            for cell in (
                (escape(guesses[row].name), f"{100 * guesses[row].probability:.1f}") if row < len(guesses) else ("", "")
            )
        ]
        view.add_row(*cells)
    return view


def seconds(text: str | None, option: str) -> float | None:
    """`75.5`, `1:15.5` or `00:01:15.5` as seconds.

    Raises:
        RaylabError: the text is something else.
    """
    if text is None:
        return None
    if not re.fullmatch(r"(\d+:)?(\d+:)?\d+(\.\d+)?", text):
        raise RaylabError(f"{option} {text}: write seconds, or HH:MM:SS.sss")
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total


def predict(
    checkpoint: Annotated[str, typer.Argument(help="A sweep, a run, or a checkpoint's folder.")],
    videos: Annotated[list[str] | None, typer.Argument(help="Video files.")] = None,
    start: Annotated[str | None, typer.Option(help="Where to begin: seconds or HH:MM:SS.sss.")] = None,
    stop: Annotated[str | None, typer.Option(help="Where to end.")] = None,
    top: Annotated[int | None, typer.Option(min=1, help="How many classes to show; 5 if not given.")] = None,
    keyframes: Annotated[
        str | None, typer.Option(help="Write the keyframes of each video to its own folder in this one.")
    ] = None,
    share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Of a video, that keyframes are; 0.15 if not given.")
    ] = None,
    as_json: Annotated[str | None, typer.Option("--json", help="Write JSON to this file, or - for the output.")] = None,
    webcam: Annotated[str | None, typer.Option(help="Watch a camera: auto, a device, or a video file.")] = None,
    window: Annotated[float, typer.Option(min=0.1, help="Seconds of the camera to look at.")] = WEBCAM_WINDOW,
    limit: Annotated[float | None, typer.Option("--seconds", min=0, help="Watch the camera so long.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU if there is one.")] = None,
    storage: Annotated[str, typer.Option(help="Results folder: a path or a URI.")] = DEFAULT_STORAGE,
) -> None:
    """Show the most probable classes of videos, or of a camera as it runs; or write the keyframes of videos.

    Example: raylab predict epic_phase2 kitchen.mp4 --start 12.5 --stop 15
    """
    if bool(videos) == bool(webcam):
        raise RaylabError("give videos, or --webcam, one of the two")
    if keyframes and webcam:
        raise RaylabError("--keyframes: are found in videos, not in a camera: leave --webcam out")
    if keyframes and top:
        raise RaylabError(f"--top {top}: counts classes: leave it out, or say with --share how many keyframes")
    if share is not None and not keyframes:
        raise RaylabError(f"--share {share:g}: is of keyframes: add --keyframes FOLDER")
    if device not in (None, "cpu", "cuda"):
        raise RaylabError(f"--device {device}: write cpu or cuda")
    first, last = seconds(start, "--start") or 0.0, seconds(stop, "--stop")
    found = find_checkpoint(checkpoint, storage)
    quiet = as_json is not None
    if keyframes:
        act = _keyframes(found, device, share, Folder.open(keyframes), (first, last), quiet)
    else:
        from raylab.prediction.classes import Predictor

        predictor = Predictor(found, device, top or 5)
        if webcam:
            watch(predictor, webcam, window, limit, as_json)
            return
        act = _classes(predictor, (first, last), quiet)
    content, failed = one_by_one(list(dict.fromkeys(videos or [])), act)
    if as_json is not None:
        _write_json(content, as_json)
    if failed:
        raise typer.Exit(1)


def one_by_one(videos: Sequence[str], act: Act) -> tuple[list[Any], list[str]]:
    """What is found in each video, and which could not be looked at: a bad one does not end the others."""
    found, failed = [], []
    for number, path in enumerate(videos, start=1):
        waiting = errors.status(escape(f"{path} ({number} of {len(videos)})")) if errors.is_terminal else nullcontext()
        try:
            with waiting:
                found.append(act(path))
        except Exception as error:  # of whatever kind: videos are of all kinds, too
            reason = str(error) if isinstance(error, RaylabError) else f"{path}: {type(error).__name__}: {error}"
            errors.print(f"[bold red]error:[/] {escape(reason)}")
            failed.append(path)
    if failed and len(videos) > 1:
        errors.print(f"{len(failed)} of {len(videos)} videos failed: {', '.join(failed)}", markup=False)
    return found, failed


def _classes(predictor: Predictor, between: tuple[float, float | None], quiet: bool) -> Act:
    def act(path: str) -> dict[str, Any]:
        found = predictor.video(path, *between)
        if not quiet:
            console.print(as_table(found.top, f"{found.video}, {found.start:.2f} to {found.stop:.2f} s"))
        return asdict(found)

    return act


def _keyframes(
    checkpoint: Checkpoint,
    device: str | None,
    share: float | None,
    out: Folder,
    between: tuple[float, float | None],
    quiet: bool,
) -> Act:
    from raylab.data.keyshots import SHARE
    from raylab.prediction.keyframes import KeyframePredictor
    from raylab.prediction.pictures import counted

    predictor = KeyframePredictor(checkpoint, device, SHARE if share is None else share)
    out.check_writable()

    def act(path: str) -> dict[str, Any]:
        found = predictor.video(path, *between)
        folder = found.write(out)
        if not quiet:
            count = f"{counted(found.keyframes, 'keyframe')} of {counted(found.seconds, 'sample')}"
            console.print(f"{path}: {count} → {folder}", markup=False)
        return {"folder": str(folder), **found.record()}

    return act


def watch(predictor: Predictor, source: str, window: float, limit: float | None, as_json: str | None) -> None:
    """Show what a camera sees until it ends, `limit` seconds are over, or Ctrl-C.

    On a terminal in one place; elsewhere a line for each answer, of JSON if wanted.

    Raises:
        RaylabError: the camera cannot be opened, or was lost.
    """
    import torch

    from raylab.data.camera import Camera

    if as_json not in (None, "-"):
        raise RaylabError(f"--json {as_json}: with --webcam write --json -, one line for each answer")
    data = predictor.experiment.data
    predictor.answer(torch.zeros(data.frames, 3, data.side, data.side, dtype=torch.uint8))  # the first one is slow
    with Camera(source, data.side, window) as camera, suppress(KeyboardInterrupt):
        in_place = as_json is None and console.is_terminal
        with Live(console=console, auto_refresh=False) if in_place else nullcontext() as live:
            began = time.monotonic()
            for sighting in predictor.camera(camera):
                if as_json:
                    print(json.dumps(asdict(sighting)), flush=True)
                elif live:
                    live.update(as_table(sighting.top, pace(sighting)), refresh=True)
                else:
                    best = ", ".join(f"{head} {found[0].name}" for head, found in sighting.top.items())
                    console.print(f"{best}  ({pace(sighting)})", markup=False)
                if limit is not None and time.monotonic() - began > limit:
                    break


def pace(sighting: Sighting) -> str:
    """How well the model keeps up, in one line."""
    return (
        f"frame {sighting.frame}, {1000 * sighting.latency:.0f} ms behind, {sighting.rate:.1f} answers/s, "
        f"camera {sighting.camera_rate:.1f} frames/s, {sighting.skipped} skipped"
    )


def _write_json(content: Any, where: str) -> None:
    text = json.dumps(content, indent=1)
    if where == "-":
        print(text)
        return
    try:
        with replacing(Path(where)) as writing:
            writing.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RaylabError(f"--json {where}: cannot be written ({error.strerror or error})") from None


if __name__ == "__main__":
    run_verb(predict)
