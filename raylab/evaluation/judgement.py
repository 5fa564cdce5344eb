"""What models were found to be worth, as figures and as JSON types."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from rich.table import Table

    from raylab.evaluation.efficiency import Efficiency
    from raylab.evaluation.predictions import Predictions


class Scores(ABC):
    """Figures of one model on one split.

    Attributes:
        clips: how many were judged.
        left_out: how many were not: a clip store could not read them.
        percent: whether figures are parts of a whole, shown in per cent.
        less: figures of which less is better.
    """

    clips: int
    left_out: int
    percent: ClassVar[bool] = True
    less: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def figures(self) -> dict[str, float]:
        """By name; nan where nothing counts."""

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """What the figures are made of, as JSON types: a name → rows."""

    @abstractmethod
    def tables(self) -> list[Table]:
        """The same for the terminal."""

    @property
    def extent(self) -> str:
        """What was judged, in words."""
        return f"{self.clips:,} clips"


@dataclass(frozen=True)
class Judgement:
    """What one model was found to be worth, or an ensemble of several, or what stands beside models for comparison.

    Attributes:
        name: of its run, or `ensemble`.
        figure: what it is judged by first, e.g. `action_top1`.
        about: what was judged: checkpoint, epoch, settings.
        predictions: split → what it says of every clip.
        scores: split → figures; none for a split without labels.
        history: the metrics measured when the checkpoint was written; empty where none were, and for an ensemble.
        efficiency: what it costs, and what the models cost that it learnt from; empty where that was not measured.
    """

    name: str
    figure: str
    about: dict[str, Any]
    predictions: dict[str, Predictions]
    scores: dict[str, Scores]
    history: dict[str, float] = field(default_factory=dict)
    efficiency: list[Efficiency] = field(default_factory=list)

    def gap(self) -> tuple[str, float]:
        """How the overfitting gap was measured, and the gap: `figure` in training less that in validation."""
        if {"train", "val"} <= self.scores.keys():
            train, val = (self.scores[split].figures()[self.figure] for split in ("train", "val"))
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
                **scores.parts(),
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
