"""Fixing a part of a network."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from raylab.config import Stage
from raylab.errors import RaylabError


class Freezable(nn.Module, ABC):
    """An encoder of clips whose stem and first blocks can be fixed, or all of it.

    Args:
        name: what messages call it.

    Attributes:
        width: C, the number of features.
        mean, std: per RGB channel, for pixels in [0, 1]; the caller normalises with them.
    """

    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self._groups: list[list[Parameter]] = []
        self._frozen: list[nn.Module] = []
        self._built = 0

    @abstractmethod
    def encode(self, video: Tensor) -> Tensor:
        """Normalised float (B, T, channels, H, W) → features, float (B, N, C)."""

    def forward(self, video: Tensor) -> Tensor:
        """As `encode`; features, float (B, N, C), that were computed before pass through as they are."""
        return video if video.ndim == 3 else self.encode(video)

    def divide(self, groups: Iterable[Iterable[Parameter]]) -> None:
        """Say what the stem is and what each block, in order; nothing where the network is not divided."""
        self._groups = [list(group) for group in groups]

    @property
    def blocks(self) -> int:
        """How many blocks `freeze` can count."""
        return max(len(self._groups) - 1, 0)

    @property
    def fixed(self) -> bool:
        """Whether none of it is trained."""
        return _is_fixed(self)

    def freeze(self, blocks: int) -> None:
        """Fix the stem and the first `blocks` blocks, and train the rest; 0 trains everything.

        A fixed part gets no gradient and stays in evaluation mode whatever `train` is told: batch-norm statistics
        do not move and dropout is off. As the fixed parts come first, no activation is kept for them.
        For a ResNet, 2 blocks are the stem, `layer1` and `layer2`.

        Raises:
            RaylabError: there are fewer blocks.
        """
        self._check(blocks, "model.frozen_blocks")
        self._built = blocks
        self._fix(self._groups[: blocks + 1 if blocks else 0])

    def enter(self, stage: Stage, path: str) -> None:
        """Fix what a stage of training says: all of it, all but its last blocks, or what `freeze` was last told.

        Args:
            stage: `freeze` and `unfreeze_blocks` are used.
            path: what messages call it.

        Raises:
            RaylabError: there are fewer blocks.
        """
        if stage.freeze:
            self._fix([list(self.parameters())])
        elif stage.unfreeze_blocks:
            self._check(stage.unfreeze_blocks, f"{path}.unfreeze_blocks")
            self._fix(self._groups[: -stage.unfreeze_blocks])
        else:
            self.freeze(self._built)

    def train(self, mode: bool = True) -> Freezable:
        super().train(mode)
        for module in self._frozen:
            if module is not self:
                module.eval()
        return self

    def _check(self, blocks: int, setting: str) -> None:
        if blocks > self.blocks:
            known = f"has {self.blocks} blocks" if self.blocks else "is not divided into blocks by timm"
            raise RaylabError(f"{setting} = {blocks}: {self.name} {known}; set {setting}={self.blocks} or less")

    def _fix(self, groups: Iterable[Iterable[Parameter]]) -> None:
        self.requires_grad_(True)
        for group in groups:
            for parameter in group:
                parameter.requires_grad_(False)
        self._frozen = [module for module in self.modules() if _is_fixed(module)]
        self.train(self.training)


def enter(model: nn.Module, stage: Stage, path: str) -> None:
    """Fix in every encoder of a model what a stage of training says.

    Args:
        model: to be trained.
        stage: `freeze` and `unfreeze_blocks` are used.
        path: what messages call it.

    Raises:
        RaylabError: the model has no encoder that can be fixed, or one with fewer blocks.
    """
    encoders = [module for module in model.modules() if isinstance(module, Freezable)]
    asked = {"freeze": stage.freeze, "unfreeze_blocks": stage.unfreeze_blocks}
    for setting, value in asked.items():
        if value and not encoders:
            raise RaylabError(
                f"{path}.{setting} = {value}: {type(model).__name__} has no encoder that can be fixed apart: "
                f"set {path}.{setting}=null"
            )
    for encoder in encoders:
        encoder.enter(stage, path)


def digest(module: nn.Module, about: Sequence[Any]) -> str:
    """32 hex digits that change with any weight of a network, and with what else is said about it (JSON)."""
    found = blake2b(json.dumps(about).encode(), digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        found.update(f"{name} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _is_fixed(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
