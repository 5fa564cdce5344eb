"""The handcrafted features of a video, beside those of the videos that a model has learned from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from raylab.data.datasets import load_dataset
from raylab.errors import RaylabError
from raylab.handcrafted.cache import FeatureCache, default_folder
from raylab.handcrafted.clips import NAMES
from raylab.handcrafted.extract import HandcraftedSettings, extract
from raylab.handcrafted.measures import FEATURES
from raylab.models.feature_classifier import FeatureClassifier
from raylab.models.registry import find_model
from raylab.results import Checkpoint
from raylab.tasks.classification import DETECTED

MOST = 200  # videos of a class that are looked up: enough for a mean


class FeaturePredictor:
    """A classifier of handcrafted features, ready to answer.

    Args:
        checkpoint: of a model for which `fits` is true.

    Raises:
        RaylabError: it is damaged, or was fitted to other features.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        model = checkpoint.load_model()
        assert isinstance(model, FeatureClassifier)  # noqa: S101 - what `fits` says
        if model.features != tuple(NAMES):
            raise RaylabError(f"{checkpoint.path}: was fitted to other handcrafted features: fit it again")
        self.checkpoint, self.model = checkpoint, model
        self.settings = _settings(checkpoint)

    @staticmethod
    def fits(checkpoint: Checkpoint) -> bool:
        return find_model(checkpoint.experiment.model.name).handcrafted

    def video(self, path: Path) -> dict[str, Any]:
        """`top`, as of `raylab.Predictor`, and `features`, as of `measured`.

        Of two classes each feature has a `pull` too: what it adds to the distance from the boundary, above 0 if it
        speaks for `towards`, the class to be detected or else the second.
        """
        values = extract(path, self.settings)
        with torch.no_grad():
            ((head, logits),) = self.model(torch.from_numpy(values[None])).items()
        names, shares = self.checkpoint.labels[head], logits[0].softmax(0).tolist()
        guesses: list[dict[str, Any]] = [
            {"name": name, "probability": share} for name, share in zip(names, shares, strict=True)
        ]
        features = _rows(values)
        found: dict[str, Any] = {
            "top": {head: sorted(guesses, key=lambda guess: -guess["probability"])},
            "features": features,
        }
        if len(names) == 2:
            scaler, last = self.model.pipeline[0], self.model.pipeline[-1]
            sign = -1 if names[0] == DETECTED else 1
            for feature, pull in zip(features, last.coef_[0] * scaler.transform(values[None])[0], strict=True):
                feature["pull"] = sign * float(pull)
            found["towards"] = names[(sign + 1) // 2]
        return found


def measured(path: Path) -> list[dict[str, Any]]:
    """Every handcrafted feature of a video: name, group, unit, meaning, value; none of pictures too small for them."""
    try:
        return _rows(extract(path, HandcraftedSettings()))
    except RaylabError:
        return []


def reference(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    """Mean and standard deviation of each feature over the training videos of each class, where these are at hand.

    That is, where their features are in the cache; else, of a classifier of handcrafted features, over all that it was
    fitted to, which it remembers. Never computes features.

    Returns:
        Class name, or "training videos" → `mean` and `sd`, a number for each of `FEATURES`, and `videos`, how many.
    """
    found = _cached(checkpoint)
    if found or not FeaturePredictor.fits(checkpoint):
        return found
    scaler = FeaturePredictor(checkpoint).model.pipeline[0]
    videos = int(np.max(scaler.n_samples_seen_))
    return {"training videos": {"mean": scaler.mean_.tolist(), "sd": scaler.scale_.tolist(), "videos": videos}}


def _cached(checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
    ((head, names),) = checkpoint.labels.items()
    try:
        dataset = load_dataset(checkpoint.experiment.data, ("train",))
    except (RaylabError, OSError):  # the machine that trained had it, this one need not
        return {}
    cache = FeatureCache(default_folder(), _settings(checkpoint))
    found = {}
    for number, name in enumerate(names):
        clips = [clip for clip in dataset.splits["train"].clips if clip.labels.get(head) == number]
        sources = [dataset.sources[clip.video] for clip in clips if clip.video in dataset.sources]
        vectors = [_look_up(cache, path) for path in sources[:: max(1, len(sources) // MOST)]]
        values = np.array([vector for vector in vectors if vector is not None])
        if len(values) < 2:
            return {}
        found[name] = {"mean": values.mean(0).tolist(), "sd": values.std(0).tolist(), "videos": len(values)}
    return found


def _look_up(cache: FeatureCache, path: Path) -> NDArray[np.float64] | None:
    try:
        return cache.read(cache.key(path)) if path.is_file() else None
    except RaylabError:
        return None


def _settings(checkpoint: Checkpoint) -> HandcraftedSettings:
    """What features are computed with: as the model was fitted, or as is usual."""
    if FeaturePredictor.fits(checkpoint):
        return HandcraftedSettings(frames=checkpoint.experiment.data.frames)
    return HandcraftedSettings()


def _rows(values: NDArray[np.float64]) -> list[dict[str, Any]]:
    return [
        {"name": f.name, "group": f.group, "unit": f.unit, "meaning": f.meaning, "value": value}
        for f, value in zip(FEATURES, values.tolist(), strict=True)
    ]
