"""A clip classifier: encoder × temporal model × heads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn

if TYPE_CHECKING:  # what one model needs, others need not wait for
    from raylab.models.encoders import FrameEncoder
    from raylab.models.r2plus1d import R2Plus1DEncoder
    from raylab.models.temporal import TemporalModel


class ClipModel(nn.Module):
    """Classify a clip by its features over time.

    Args:
        encoder: pixels → features of each frame, or of each stretch of frames.
        temporal: these features → one vector.
        heads: head name → number of classes; each gets a linear classifier.
        dropout: on the vector, before the classifiers.

    Attributes:
        mean, std: per RGB channel, for pixels in [0, 1]; the caller normalises with them.
    """

    def __init__(
        self,
        encoder: FrameEncoder | R2Plus1DEncoder,
        temporal: TemporalModel,
        heads: Mapping[str, int],
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.temporal = temporal
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({head: nn.Linear(temporal.width, classes) for head, classes in heads.items()})
        self.mean, self.std = encoder.mean, encoder.std

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """Normalised float (B, T, 3, H, W) → head → logits (B, classes)."""
        clip = self.dropout(self.temporal(self.encoder(video)))
        return {head: classify(clip) for head, classify in self.heads.items()}
