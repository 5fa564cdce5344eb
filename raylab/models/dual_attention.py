"""How important each frame is among its neighbours, and among all: dual temporal attention over frame features.

Keyframe detection documents the parts: projection, sinusoidal positions, Transformer encoder, local (±5 frames) and
global attention, concatenated and fused, a 2-layer MLP. How they are joined is chosen here: pre-norm with residuals,
as in `TemporalTransformer`.
"""

from __future__ import annotations

import torch
from timm.layers.attention import Attention
from torch import Tensor, nn

from raylab.models.encoders import FrameEncoder
from raylab.models.temporal import check_width, encoder_layer, init_as_vit, sinusoids

REACH = 5
ATTENTION_HEADS = 8


class ImportanceModel(nn.Module):
    """The importance of every frame of a video.

    A video may have any number of frames. Those of several of a batch are padded to one length, and a mask tells frames
    from padding, which neither the encoder nor any frame sees.

    Args:
        encoder: pixels → features of each frame.
        head: these → their importance.

    Attributes:
        mean, std: per RGB channel, for pixels in [0, 1]; the caller normalises with them.
    """

    def __init__(self, encoder: FrameEncoder, head: DualAttentionHead) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = head
        self.mean, self.std = encoder.mean, encoder.std

    def forward(self, video: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """Importance of each frame.

        Args:
            video: normalised float (B, T, 3, H, W); or the `features` of it, computed before.
            mask: bool (B, T), true for a frame, false for padding; None where all are frames.

        Returns:
            `importance` → float (B, T) in [0, 1], at least float32; 0 in padding.
        """
        return {"importance": self.importance(self.features(video, mask), mask)}

    def features(self, video: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalised float (B, T, 3, H, W) → float (B, T, C); 0 in padding, which no batch norm counts."""
        if mask is None or video.ndim == 3:
            features: Tensor = self.encoder(video)
            return features
        seen = self.encoder(video[mask][None])[0]
        return seen.new_zeros(*mask.shape, seen.shape[1]).masked_scatter(mask[..., None], seen)

    def importance(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features, float (B, T, C) → float (B, T) in [0, 1]; 0 in padding."""
        scores: Tensor = self.head(features, mask)
        return scores


class DualAttentionHead(nn.Module):
    """Features of frames → importance of each.

    Args:
        width_in: C, the width of the frames' features.
        width: D, of the Transformer.
        layers: number of its encoder layers.
        dim_feedforward: hidden width of its feed-forward layers.
        dropout: on projected features, attention, feed-forward layers, and within the MLP.
        drop_path: probability of dropping a residual branch of the last layer; it rises linearly from 0 in the first.

    Raises:
        RaylabError: `width` does not divide.
    """

    def __init__(
        self,
        width_in: int,
        width: int = 512,
        layers: int = 3,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_width(width, ATTENTION_HEADS)
        self.width = width
        self.embed = nn.Sequential(nn.LayerNorm(width_in), nn.Linear(width_in, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            encoder_layer(width, ATTENTION_HEADS, dim_feedforward, dropout, drop_path * layer / max(layers - 1, 1))
            for layer in range(layers)
        )
        self.dual = DualAttention(width, dropout)
        self.score = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, width // 2),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(width // 2, 1),
        )
        self.apply(init_as_vit)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Float (B, T, C), bool (B, T) → float (B, T) in [0, 1], at least float32; 0 in padding."""
        frames = features.shape[1]
        tokens = self.embed(features)
        tokens = self.dropout(tokens + sinusoids(frames, self.width, tokens.device).to(tokens.dtype))
        everywhere = visible(frames, mask, device=tokens.device)
        for block in self.blocks:
            tokens = block(tokens, attn_mask=everywhere)
        logits: Tensor = self.score(self.dual(tokens, mask)).squeeze(2)
        # Half precision would leave frames of a video tied.
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
        return scores if mask is None else scores * mask


class DualAttention(nn.Module):
    """Attention to the neighbours of each frame beside attention to all frames, the two fused.

    Args:
        width: D, of the tokens.
        dropout: on attention weights and what they give.
        reach: how many frames before and after it a frame's neighbours are.
    """

    def __init__(self, width: int, dropout: float = 0.0, reach: int = REACH) -> None:
        super().__init__()
        self.reach = reach
        self.norm = nn.LayerNorm(width)
        self.near, self.far = (
            Attention(width, ATTENTION_HEADS, qkv_bias=True, attn_drop=dropout, proj_drop=dropout) for _ in range(2)
        )
        self.fuse = nn.Linear(2 * width, width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Float (B, T, D), bool (B, T) → float (B, T, D)."""
        frames, own = tokens.shape[1], self.norm(tokens)
        near = self.near(own, attn_mask=visible(frames, mask, self.reach, tokens.device))
        far = self.far(own, attn_mask=visible(frames, mask, device=tokens.device))
        fused: Tensor = tokens + self.fuse(torch.cat([near, far], dim=2))
        return fused


def visible(
    frames: int, mask: Tensor | None = None, reach: int | None = None, device: torch.device | None = None
) -> Tensor | None:
    """Which frames (columns) each frame (row) attends to.

    Padding sees itself, so that no row is empty: the softmax of an empty row is not a number.

    Args:
        frames: T.
        mask: bool (B, T), true for a frame, false for padding.
        reach: no further than so many frames; None for any distance.

    Returns:
        Bool (T, T), or (B, 1, T, T) with a mask; None for all.
    """
    if mask is None and reach is None:
        return None
    at = torch.arange(frames, device=device)
    distance = (at[:, None] - at).abs()
    near = distance <= (frames if reach is None else reach)
    return near if mask is None else (near & mask[:, None, None, :]) | (distance == 0)
