"""The process that looks at videos: it loads the models, and then answers one request after another.

A decoder that crashes, hangs or takes all memory ends this process and the one upload it was about, and nothing else.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import zipfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image

from raylab.errors import RaylabError
from raylab.prediction.classes import Predictor
from raylab.prediction.keyframes import RECORD, KeyframePredictor
from raylab.prediction.stretch import cut
from raylab.results import Checkpoint
from raylab.webapp.evidence import FeaturePredictor, measured, reference
from raylab.webapp.limits import Limits, check
from raylab.webapp.messages import HEAD, lengths, pack

THUMB = (320, 320)  # pixels at most, of a gallery's pictures
JPEG_PIXELS = 4_000_000  # at most, of a webcam's picture
Model = Predictor | KeyframePredictor | FeaturePredictor


class Models:
    """The checkpoints of a page, loaded, and what can be asked about them.

    Args:
        checkpoints: tab → paths and runs' names.
        device: where they run.
        limits: of the page.
    """

    def __init__(self, checkpoints: dict[str, list[tuple[str, str]]], device: str | None, limits: Limits) -> None:
        self.limits = limits
        self.models = {
            tab: [load(tab, Checkpoint.open(*found), device) for found in several]
            for tab, several in checkpoints.items()
        }
        self.answers: dict[str, Callable[[dict[str, Any], bytes], Any]] = {
            "keyframes": self.keyframes,
            "actions": self.actions,
            "labels": self.labels,
            "look": self.look,
            "reference": lambda asked, _: reference(self.models["labels"][asked["model"]].checkpoint),
        }

    def parameters(self) -> dict[str, list[int | None]]:
        """Tab → how many numbers each model has learned; None where that is not counted so."""
        return {
            tab: [sum(p.numel() for p in found.model.parameters()) or None for found in several]
            for tab, several in self.models.items()
        }

    def keyframes(self, asked: dict[str, Any], _: bytes) -> dict[str, Any]:
        """Fills `out` with `keyframes.zip`, which holds what `Keyframes.write` writes, and small pictures `0.jpg` …"""
        video, out = self._checked(asked), Path(asked["out"])
        predictor = self.models["keyframes"][asked["model"]]
        found = predictor.video(video, asked["start"], asked["stop"])
        folder = Path(str(found.write(out / "files")))
        record = found.record() | {"video": video.name, "checkpoint": predictor.checkpoint.name}
        (folder / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")
        for number, name in enumerate(found.names):
            with Image.open(folder / name) as picture:
                picture.thumbnail(THUMB)
                picture.save(out / f"{number}.jpg", quality=85)
        with zipfile.ZipFile(out / "keyframes.zip", "w") as archive:
            for path in sorted(folder.iterdir()):
                archive.write(path, f"{folder.name}/{path.name}")
                path.unlink()
        folder.rmdir()
        return record

    def actions(self, asked: dict[str, Any], _: bytes) -> dict[str, Any]:
        video = self._checked(asked)
        found = self.models["actions"][asked["model"]].video(video, asked["start"], asked["stop"])
        return asdict(found) | {"video": video.name}

    def labels(self, asked: dict[str, Any], _: bytes) -> dict[str, Any]:
        """The classes of a whole video, and its handcrafted features."""
        video = self._checked(asked)
        found = self.models["labels"][asked["model"]]
        where = cut(video)
        if isinstance(found, FeaturePredictor):
            answer = found.video(video)
        else:
            answer = {"top": asdict(found.video(video))["top"], "features": measured(video)}
        return {"video": video.name, "start": where.start, "stop": where.stop, **answer}

    def look(self, asked: dict[str, Any], content: bytes) -> dict[str, list[dict[str, Any]]]:
        """What is seen in JPEGs, the newest last, of so many bytes each."""
        from raylab.data.footage import fit

        found = self.models["actions"][asked["model"]]
        squares, at, known = [], 0, {}
        for place, size in asked["pictures"]:
            if place not in known:
                known[place] = fit(_decode(content[at : at + size]), found.experiment.data.side)
                at += size
            squares.append(known[place])
        top = found.answer(torch.cat(squares))
        return {head: [asdict(guess) for guess in guesses] for head, guesses in top.items()}

    def _checked(self, asked: dict[str, Any]) -> Path:
        video = Path(asked["video"])
        check(video, self.limits)
        return video


def load(tab: str, checkpoint: Checkpoint, device: str | None) -> Model:
    """The model of a checkpoint, as its tab needs it.

    Raises:
        RaylabError: it is of another kind.
    """
    if tab == "keyframes":
        return KeyframePredictor(checkpoint, device)
    if FeaturePredictor.fits(checkpoint):
        if tab == "actions":
            raise RaylabError(
                f"{checkpoint.path}: {checkpoint.experiment.model.name} judges whole files, and names no actions: "
                "give it as --labels"
            )
        return FeaturePredictor(checkpoint)
    if tab == "labels" and len(checkpoint.labels) > 1:
        raise RaylabError(f"{checkpoint.path}: tells {' and '.join(checkpoint.labels)}: give it as --actions")
    return Predictor(checkpoint, device)


def _decode(jpeg: bytes) -> torch.Tensor:
    """uint8 (1, 3, H, W) of a webcam's picture."""
    import simplejpeg

    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
        if height * width > JPEG_PIXELS:
            raise RaylabError(f"webcam: pictures of {width} × {height} pixels are too large")
        return torch.from_numpy(simplejpeg.decode_jpeg(jpeg)).permute(2, 0, 1)[None]
    except ValueError as error:
        raise RaylabError(f"webcam: not a picture ({error})") from None


def answer(models: Models, asked: dict[str, Any], content: bytes) -> dict[str, Any]:
    """What there is to say to one request, or what is wrong with it."""
    try:
        return {"result": models.answers[asked["do"]](asked, content)}
    except Exception as error:  # of whatever kind: videos are of all kinds, too
        reason = str(error) if isinstance(error, RaylabError) else f"{asked.get('video')}: {_said(error)}"
        if folder := asked.get("video", "").rpartition("/")[0]:
            reason = reason.removeprefix(f"clip {asked['video']}: ").replace(f"{folder}/", "")
        return {"error": reason}


def _said(error: Exception) -> str:
    return f"could not be looked at ({type(error).__name__}: {error}): try another video, or a copy of this one"


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Load what the first request names, and answer all others until there are no more."""
    models: Models | None = None
    while len(head := requests.read(HEAD.size)) == HEAD.size:
        text, content = lengths(head)
        asked, behind = json.loads(requests.read(text)), requests.read(content)
        if models is None:
            reply: dict[str, Any] = {}
            try:
                torch.set_num_threads(asked["threads"])
                models = Models(asked["checkpoints"], asked["device"], Limits(**asked["limits"]))
                reply = {"result": models.parameters()}
            except RaylabError as error:
                reply = {"error": str(error)}
        else:
            reply = answer(models, asked, behind)
        replies.write(pack(reply))
        replies.flush()


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no reply
    with suppress(BrokenPipeError, KeyboardInterrupt):
        serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
