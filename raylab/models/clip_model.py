"""A clip classifier: encoder × temporal model × heads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:  # what one model needs, others need not wait for
    from raylab.models.freezing import Freezable
    from raylab.models.temporal import TemporalModel


def classifier(width: int, classes: int) -> nn.Module:
    """A linear classifier; of two classes one with a single logit."""
    return OneLogit(width) if classes == 2 else nn.Linear(width, classes)


class OneLogit(nn.Linear):
    """Linear(width, 1): the logit z of the second of two classes, given as the pair (0, z).

    Softmax of the pair is (1 − σ(z), σ(z)) and its cross-entropy the binary one, so all that takes logits of classes
    takes these.
    """

    def __init__(self, width: int) -> None:
        super().__init__(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        """Float (B, width) → float (B, 2)."""
        logit = super().forward(features)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


class ClipModel(nn.Module):
    """Classify a clip by its features over time.

    Args:
        encoder: pixels → features of each frame, of each stretch of frames, or of the clip; with `mean` and `std`.
        temporal: these features → one vector.
        heads: head name → number of classes; each gets a classifier.
        dropout: on the vector, before the classifiers.
        classify: width, classes → classifier.

    Attributes:
        mean, std: per RGB channel, for pixels in [0, 1]; the caller normalises with them.
    """

    def __init__(
        self,
        encoder: Freezable,
        temporal: TemporalModel,
        heads: Mapping[str, int],
        dropout: float = 0.0,
        classify: Callable[[int, int], nn.Module] = nn.Linear,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.temporal = temporal
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({head: classify(temporal.width, classes) for head, classes in heads.items()})
        self.mean, self.std = encoder.mean, encoder.std

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """Normalised float (B, T, 3, H, W) → head → logits (B, classes)."""
        clip = self.dropout(self.temporal(self.encoder(video)))
        return {head: classify(clip) for head, classify in self.heads.items()}
