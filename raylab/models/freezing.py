"""Fixing the first part of a network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import Parameter

from raylab.errors import RaylabError


class Freezable(nn.Module, ABC):
    """An encoder of clips whose stem and first blocks can be fixed.

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

    def freeze(self, blocks: int) -> None:
        """Fix the stem and the first `blocks` blocks, and train the rest; 0 trains everything.

        A fixed part gets no gradient and stays in evaluation mode whatever `train` is told: batch-norm statistics
        do not move and dropout is off. As the fixed parts come first, no activation is kept for them.
        For a ResNet, 2 blocks are the stem, `layer1` and `layer2`.

        Raises:
            RaylabError: there are fewer blocks.
        """
        if blocks > self.blocks:
            known = f"has {self.blocks} blocks" if self.blocks else "is not divided into blocks by timm"
            raise RaylabError(
                f"model.frozen_blocks = {blocks}: {self.name} {known}; set model.frozen_blocks={self.blocks} or less"
            )
        self.requires_grad_(True)
        for group in self._groups[: blocks + 1 if blocks else 0]:
            for parameter in group:
                parameter.requires_grad_(False)
        self._frozen = [module for module in self.modules() if _is_fixed(module)]
        self.train(self.training)

    def train(self, mode: bool = True) -> Freezable:
        super().train(mode)
        for module in self._frozen:
            if module is not self:
                module.eval()
        return self


def _is_fixed(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
