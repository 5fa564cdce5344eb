"""What classifiers of handcrafted features say of every clip of a split."""

from __future__ import annotations

import torch

from raylab.config import Experiment
from raylab.data.clips import Dataset
from raylab.errors import RaylabError
from raylab.evaluation.predictions import Predictions, bound
from raylab.handcrafted.clips import NAMES, describe
from raylab.models.feature_classifier import FeatureClassifier


@torch.no_grad()
def predict_features(
    model: FeatureClassifier, experiment: Experiment, dataset: Dataset, split: str, share: tuple[int, int] = (0, 1)
) -> list[tuple[int, Predictions]]:
    """As `predictions.predict`: all of it on the first rank, since it is quick.

    Raises:
        RaylabError: a video cannot be read, or its features are not those that the model was fitted to.
    """
    if share[0]:
        return []
    if model.features != tuple(NAMES):
        raise RaylabError(
            f"{experiment.model.name}: was fitted to other handcrafted features than this raylab measures: fit it again"
        )
    clips = describe(dataset, split, experiment.data)
    logits = model(torch.from_numpy(clips.values))
    return [(0, Predictions(clips.ids, {head: bound(z.double().log_softmax(1).numpy()) for head, z in logits.items()}))]
