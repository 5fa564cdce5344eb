"""Verb and noun branches that attend to each other, over several temporal scales.

EPIC-KITCHENS-100 action recognition, phase 3, documents the parts: shared encoder, windows of 4, 8 and 16 frames, two
branches, attention from each to the other, two classifiers. How they are joined is chosen here: pre-norm throughout, as
in `TemporalTransformer`, so that the parts differ in what they attend to and in nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from raylab.errors import RaylabError
from raylab.models.encoders import FrameEncoder
from raylab.models.temporal import check_width, encoder_layer, init_as_vit, sinusoids

WINDOWS = (4, 8, 16)
ATTENTION_HEADS = 8


class CrossAttentionModel(nn.Module):
    """Classify a clip by two heads that inform each other.

    Args:
        encoder: pixels → features of each frame, shared by both heads.
        heads: two head names → numbers of classes.
        width: D, of both branches.
        rounds: how many times the branches attend to each other.
        dim_feedforward: hidden width of the feed-forward layers.
        dropout: on embedded features, attention, feed-forward layers, and before the classifiers.
        drop_path: probability of dropping a residual branch of the cross-attention, and of the windows.

    Attributes:
        mean, std: per RGB channel, for pixels in [0, 1]; the caller normalises with them.

    Raises:
        RaylabError: there are not two heads, or `width` does not divide.
    """

    def __init__(
        self,
        encoder: FrameEncoder,
        heads: Mapping[str, int],
        width: int = 256,
        rounds: int = 1,
        dim_feedforward: int = 512,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if len(heads) != 2:
            raise RaylabError(
                f"model.name = cross_attention: attends between two heads, but the data has "
                f"{len(heads)} ({', '.join(heads) or 'none'}): choose another model"
            )
        check_width(width, ATTENTION_HEADS)
        self.encoder = encoder
        self.scales = MultiScale(encoder.width, width, dim_feedforward, dropout, drop_path)
        self.branches = nn.ModuleDict(
            {head: nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for head in heads}
        )
        self.rounds = nn.ModuleList(Crossing(heads, width, dim_feedforward, dropout, drop_path) for _ in range(rounds))
        self.norms = nn.ModuleDict({head: nn.LayerNorm(width) for head in heads})
        self.dropout = nn.Dropout(dropout)
        self.heads = nn.ModuleDict({head: nn.Linear(width, classes) for head, classes in heads.items()})
        self.mean, self.std = encoder.mean, encoder.std
        for part in (self.scales, self.branches, self.rounds):
            part.apply(init_as_vit)

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """Normalised float (B, T, 3, H, W) → head → logits (B, classes)."""
        frames = self.scales(self.encoder(video))
        branch = {head: layer(frames) for head, layer in self.branches.items()}
        for crossing in self.rounds:
            branch = crossing(branch)
        return {
            head: classify(self.dropout(self.norms[head](branch[head]).mean(1)))
            for head, classify in self.heads.items()
        }


class MultiScale(nn.Module):
    """Frames that have attended to their neighbours within windows of 4, 8 and 16, the three joined.

    Windows of one scale follow each other without overlap, and the last may be shorter; a window of 16 is the whole of
    a documented clip. Arguments are those of `CrossAttentionModel`.
    """

    def __init__(self, width_in: int, width: int, dim_feedforward: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Sequential(nn.LayerNorm(width_in), nn.Linear(width_in, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            encoder_layer(width, ATTENTION_HEADS, dim_feedforward, dropout, drop_path) for _ in WINDOWS
        )
        self.join = nn.Linear(len(WINDOWS) * width, width)

    def forward(self, features: Tensor) -> Tensor:
        """Float (B, T, C) → float (B, T, D)."""
        tokens = self.embed(features)
        tokens = tokens + sinusoids(tokens.shape[1], self.width, tokens.device).to(tokens.dtype)
        tokens = self.dropout(tokens)
        scales = [
            torch.cat([block(frames) for frames in tokens.split(window, dim=1)], dim=1)
            for window, block in zip(WINDOWS, self.blocks, strict=True)
        ]
        joined: Tensor = tokens + self.join(torch.cat(scales, dim=2))
        return joined


class Crossing(nn.ModuleDict):
    """One round: each branch attends to the other, as that was before the round."""

    def __init__(
        self, heads: Iterable[str], width: int, dim_feedforward: int, dropout: float, drop_path: float
    ) -> None:
        super().__init__({head: CrossAttention(width, dim_feedforward, dropout, drop_path) for head in heads})

    def forward(self, branch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Head → float (B, T, D), before and after."""
        first, second = branch
        other = {first: second, second: first}
        return {head: attend(branch[head], branch[other[head]]) for head, attend in self.items()}


class CrossAttention(nn.Module):
    """A pre-norm Transformer layer whose queries come from one branch, keys and values from the other."""

    def __init__(self, width: int, dim_feedforward: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.norm_own, self.norm_other, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.attention = nn.MultiheadAttention(width, ATTENTION_HEADS, dropout=dropout, batch_first=True)
        self.mlp = Mlp(width, dim_feedforward, drop=dropout)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """Float (B, T, D) of both branches → float (B, T, D)."""
        seen = self.norm_other(other)
        attended, _ = self.attention(self.norm_own(own), seen, seen, need_weights=False)
        own = own + self.drop_path(self.dropout(attended))
        result: Tensor = own + self.drop_path(self.mlp(self.norm_mlp(own)))
        return result
