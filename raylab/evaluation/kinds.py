"""How the models of each task are judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from raylab.config import DataConfig
from raylab.data.clips import Dataset
from raylab.evaluation import importance, scores
from raylab.evaluation.judgement import Scores
from raylab.evaluation.predictions import Mean, Predictions, Say, mean_probability, say_classes


@dataclass(frozen=True)
class Kind:
    """One way of judging.

    Attributes:
        figure: the heads of a model → what it is judged by first.
        say: asks a model about a batch.
        mean: of what several models say.
        score: judges predictions of a split, read by these settings.
        views: whether clips can be seen in several views.
        references: what stands beside the models of a split, read by these settings, for comparison: name → figures;
            None where nothing does.
    """

    figure: Callable[[Iterable[str]], str]
    say: Say
    mean: Mean
    score: Callable[[Predictions, Dataset, str, DataConfig], Scores]
    views: bool = True
    references: Callable[[Dataset, str, DataConfig], dict[str, Scores]] | None = None


def _beside_keyframes(dataset: Dataset, split: str, config: DataConfig) -> dict[str, Scores]:
    difference = importance.score(importance.frame_differences(dataset, split, config), dataset, split, config)
    return {**importance.references(dataset, [split], config), "frame difference": difference}


CLASSES = Kind(
    figure=scores.first_figure,
    say=say_classes,
    mean=mean_probability,
    score=lambda predictions, dataset, split, _: scores.score(predictions, dataset, split),
)
IMPORTANCE = Kind(
    figure=lambda _: importance.FIGURE,
    say=importance.say_importance,
    mean=importance.mean_score,
    score=importance.score,
    views=False,
    references=_beside_keyframes,
)
KINDS = {"action": CLASSES, "distillation": CLASSES, "keyframes": IMPORTANCE, "classification": CLASSES}
