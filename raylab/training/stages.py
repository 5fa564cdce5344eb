"""Stages of a run: which one an epoch is in, and whether a model can go through all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from raylab.config import Stage
from raylab.models.freezing import enter


@dataclass(frozen=True)
class Running:
    """One stage at its place in a run.

    Attributes:
        settings: of the stage.
        number: among all, from 0.
        start: epochs before it.
    """

    settings: Stage
    number: int
    start: int

    @property
    def stop(self) -> int:
        """Epochs of the run at its end."""
        return self.start + self.settings.epochs

    @property
    def path(self) -> str:
        """What messages call it."""
        return f"train.stages.{self.number}"


def stage_at(stages: Sequence[Stage], epoch: int) -> Running:
    """The stage that training is in after so many epochs: at a boundary the one to come, at the end the last."""
    start = 0
    for number, stage in enumerate(stages):
        running = Running(stage, number, start)
        start = running.stop
        if epoch < start:
            break
    return running


def check_stages(model: nn.Module, stages: Sequence[Stage]) -> None:
    """Refuse stages that a model cannot go through.

    Raises:
        RaylabError: as `enter`.
    """
    for number, stage in enumerate(stages):
        enter(model, stage, Running(stage, number, 0).path)
