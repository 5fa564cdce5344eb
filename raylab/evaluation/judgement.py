"""What models were found to be worth, as figures and as JSON types."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raylab.evaluation.efficiency import Efficiency
    from raylab.evaluation.predictions import Predictions
    from raylab.evaluation.scores import Scores


@dataclass(frozen=True)
class Judgement:
    """What one model, or an ensemble of several, was found to be worth.

    Attributes:
        name: of its run, or `ensemble`.
        about: what was judged: checkpoint, epoch, settings.
        predictions: split → what it says of every clip.
        scores: split → figures; none for a split without labels.
        history: the metrics measured when the checkpoint was written; empty where none were, and for an ensemble.
        efficiency: what it costs, and what the models cost that it learnt from; empty where that was not measured.
    """

    name: str
    about: dict[str, Any]
    predictions: dict[str, Predictions]
    scores: dict[str, Scores]
    history: dict[str, float]
    efficiency: list[Efficiency] = field(default_factory=list)

    @property
    def figure(self) -> str:
        """What it is judged by first: `action_top1`, or with one head the top-1 accuracy of that."""
        heads = list(next(iter(self.predictions.values())).log_probabilities)
        return "action_top1" if len(heads) > 1 else f"{heads[0]}_top1"

    def gap(self) -> tuple[str, float]:
        """How the overfitting gap was measured, and the gap: training less validation accuracy, of `figure`."""
        if {"train", "val"} <= self.scores.keys():
            train, val = (self.scores[split].accuracy[self.figure] for split in ("train", "val"))
            return "same views", train - val
        known = [self.history[key] for key in (f"gap/{self.figure}", "gap/accuracy") if key in self.history]
        return "while training", known[0] if known else math.nan

    def losses(self) -> dict[str, float]:
        """The validation losses measured while training: `total` → their weighted sum, and the name of each part."""
        return {
            "total" if key == "val/loss" else key.removeprefix("val/").removesuffix("_loss"): value
            for key, value in self.history.items()
            if key == "val/loss" or (key.startswith("val/") and key.endswith("_loss"))
        }


def record(judged: Sequence[Judgement]) -> list[dict[str, Any]]:
    """Every figure at full precision, as JSON types: nan, which JSON has not, is null."""
    found = []
    for judgement in judged:
        way, gap = judgement.gap()
        splits = {
            split: {
                "clips": scores.clips,
                "left_out": scores.left_out,
                "figures": scores.figures(),
                "classes": scores.classes,
            }
            for split, scores in judgement.scores.items()
        }
        found.append(
            {
                "name": judgement.name,
                **judgement.about,
                "splits": splits,
                "gap": {judgement.figure: gap, "measured": way},
                "losses": judgement.losses(),
                "efficiency": [asdict(row) for row in judgement.efficiency],
            }
        )
    return [_without_nan(row) for row in found]


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return None if isinstance(value, float) and math.isnan(value) else value
