"""What a trained model sees in videos, or in a camera as it runs.

python -m raylab.predict epic_phase2 kitchen.mp4 --start 12.5 --stop 15
python -m raylab.predict results/my_run videos/*.mp4 --json -
python -m raylab.predict epic_phase2 --webcam auto
python -m raylab.predict epic_phase2 --webcam recorded.mp4 --window 3
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from raylab.cli import console, errors, run_verb
from raylab.errors import RaylabError
from raylab.results import DEFAULT_STORAGE, Checkpoint, find_checkpoint
from raylab.storage import replacing

if TYPE_CHECKING:
    from torch import Tensor

    from raylab.data.camera import Camera

ACTION = "action"
WEBCAM_WINDOW = 2.0  # seconds; half of EPIC-KITCHENS-100's segments are shorter


@dataclass(frozen=True)
class Guess:
    """One class, or for `action` one of each head, and how probable the model takes it to be."""

    name: str
    probability: float


@dataclass(frozen=True)
class Answer:
    """What the model says of one stretch of one video.

    Attributes:
        video: the file.
        start, stop: seconds.
        top: head → the most probable classes, and with several heads `action` → their most probable combinations, best
            first.
    """

    video: str
    start: float
    stop: float
    top: dict[str, list[Guess]]


@dataclass(frozen=True)
class Sighting:
    """What the model says of the last seconds of a camera.

    Attributes:
        top: as in `Answer`.
        frame: number of the newest frame, counted from 1.
        latency: seconds from that frame's capture to the answer.
        skipped: frames captured since the answer before, besides the newest: looked at in no window's end.
        rate: answers a second, over all so far.
        camera_rate: frames a second.
    """

    top: dict[str, list[Guess]]
    frame: int
    latency: float
    skipped: int
    rate: float
    camera_rate: float


class Predictor:
    """A checkpoint's model, ready to answer.

    Args:
        checkpoint: to load.
        device: where the model runs; by default on the GPU if there is one.
        top: how many classes an answer has.
    """

    def __init__(self, checkpoint: Checkpoint, device: str | None = None, top: int = 5) -> None:
        import torch

        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.checkpoint = checkpoint
        self.experiment = checkpoint.experiment
        self.model = checkpoint.load_model(self.device)
        self.transform = checkpoint.transform(self.model)
        self.top = top

    def video(self, path: str | Path, start: float = 0.0, stop: float | None = None) -> Answer:
        """What is seen between two moments of a video, by default in all of it.

        Raises:
            RaylabError: the file cannot be read, or has nothing between these moments.
        """
        from raylab.data.clips import Clip
        from raylab.data.dataset import ClipDataset
        from raylab.data.video import probe

        name = str(path)
        duration = probe(Path(path)).duration
        if start >= duration:
            raise RaylabError(f"--start {start:g}: {name} ends at {duration:.2f} s")
        if stop is not None and stop <= start:
            raise RaylabError(f"--stop {stop:g}: not after --start {start:g}")
        end = min(stop or math.inf, duration)
        clip = Clip(name, name, start, end, 1, 2, {})
        config = self.experiment.data.model_copy(update={"jpeg": "cpu"})
        frames = ClipDataset([clip], {name: Path(path)}, config)[0]["video"]
        return Answer(name, start, end, self.answer(frames))

    def camera(self, camera: Camera) -> Iterator[Sighting]:
        """What is seen in a running camera, again and again, each time in its newest frames, until it ends.

        Raises:
            RaylabError: the camera was lost.
        """
        began, last, answers = time.monotonic(), 0, 0
        while shot := camera.latest(self.experiment.data.frames, after=last):
            top = self.answer(shot.frames)
            now = time.monotonic()
            answers += 1
            yield Sighting(
                top=top,
                frame=shot.number,
                latency=now - shot.captured,
                skipped=shot.number - last - 1,
                rate=answers / max(now - began, 1e-9),
                camera_rate=camera.rate,
            )
            last = shot.number

    def answer(self, frames: Tensor) -> dict[str, list[Guess]]:
        """What `Answer.top` is, of uint8 frames (T, 3, S, S), transformed as in evaluation."""
        from raylab.evaluation.predictions import ONCE, average_views, bound
        from raylab.evaluation.scores import rank_actions

        video = self.transform(frames[None].to(self.device), [""], 0)
        means = average_views(self.model, self.experiment, video, ONCE)
        logs = {head: bound(values.cpu().numpy()) for head, values in means.items()}
        labels = self.checkpoint.labels
        asked = {head: {head: values} for head, values in logs.items()} | ({ACTION: logs} if len(logs) > 1 else {})
        found = {}
        for name, parts in asked.items():
            places, probabilities = rank_actions(parts, self.top)
            found[name] = _guesses({head: at[0] for head, at in places.items()}, probabilities[0], labels)
        return found


def _guesses(places: Mapping[str, Any], probabilities: Any, labels: Mapping[str, Sequence[str]]) -> list[Guess]:
    return [
        Guess(" ".join(labels[head][at[i]] for head, at in places.items()), float(probability))
        for i, probability in enumerate(probabilities)
    ]


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
    top: Annotated[int, typer.Option(min=1, help="How many classes to show.")] = 5,
    as_json: Annotated[str | None, typer.Option("--json", help="Write JSON to this file, or - for the output.")] = None,
    webcam: Annotated[str | None, typer.Option(help="Watch a camera: auto, a device, or a video file.")] = None,
    window: Annotated[float, typer.Option(min=0.1, help="Seconds of the camera to look at.")] = WEBCAM_WINDOW,
    limit: Annotated[float | None, typer.Option("--seconds", min=0, help="Watch the camera so long.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; by default the GPU if there is one.")] = None,
    storage: Annotated[str, typer.Option(help="Results folder: a path or a URI.")] = DEFAULT_STORAGE,
) -> None:
    """Show the most probable classes of videos, or of a camera as it runs.

    Example: raylab predict epic_phase2 kitchen.mp4 --start 12.5 --stop 15
    """
    if bool(videos) == bool(webcam):
        raise RaylabError("give videos, or --webcam, one of the two")
    if device not in (None, "cpu", "cuda"):
        raise RaylabError(f"--device {device}: write cpu or cuda")
    first, last = seconds(start, "--start") or 0.0, seconds(stop, "--stop")
    predictor = Predictor(find_checkpoint(checkpoint, storage), device, top)
    if webcam:
        watch(predictor, webcam, window, limit, as_json)
        return
    answers, failed = [], False
    for path in videos or []:
        try:
            answers.append(predictor.video(path, first, last))
        except RaylabError as error:
            errors.print(f"[bold red]error:[/] {escape(str(error))}")
            failed = True
            continue
        if as_json is None:
            found = answers[-1]
            console.print(as_table(found.top, f"{found.video}, {found.start:.2f} to {found.stop:.2f} s"))
    if as_json is not None:
        _write_json([asdict(answer) for answer in answers], as_json)
    if failed:
        raise typer.Exit(1)


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
