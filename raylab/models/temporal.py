"""Temporal models: the features of a clip's frames, float (B, T, C), become one vector, float (B, D)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from raylab.errors import RaylabError


class TemporalModel(nn.Module, ABC):
    """Base of the temporal models; every one takes any number of frames.

    Attributes:
        width: D, the size of the vector that comes out.
    """

    width: int

    @abstractmethod
    def forward(self, features: Tensor) -> Tensor:
        """Float (B, T, C) → float (B, D)."""


class AveragePool(TemporalModel):
    """The mean over frames: blind to their order."""

    def __init__(self, width_in: int) -> None:
        super().__init__()
        self.width = width_in

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(1)


class TemporalLSTM(TemporalModel):
    """The last state of an LSTM (Hochreiter & Schmidhuber, 1997) that reads the frames in order.

    Args:
        width_in: C, the width of the frames' features.
        hidden: width of every layer's state.
        layers: number of stacked layers.
        dropout: between layers.
    """

    def __init__(self, width_in: int, hidden: int = 512, layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.width = hidden
        self.lstm = nn.LSTM(width_in, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)

    def forward(self, features: Tensor) -> Tensor:
        _, (state, _) = self.lstm(features)
        last: Tensor = state[-1]
        return last


class TemporalGRU(TemporalModel):
    """The last state of a GRU (Cho et al., EMNLP 2014) that reads the frames in order.

    Arguments are those of `TemporalLSTM`.
    """

    def __init__(self, width_in: int, hidden: int = 256, layers: int = 2, dropout: float = 0.0) -> None:
        super().__init__()
        self.width = hidden
        self.gru = nn.GRU(width_in, hidden, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)

    def forward(self, features: Tensor) -> Tensor:
        _, state = self.gru(features)
        last: Tensor = state[-1]
        return last


class TemporalTransformer(TemporalModel):
    """A pre-norm Transformer encoder over the frames, averaged over time.

    Features are normalised and projected to `width`; sinusoidal positions (Vaswani et al., 2017) tell the frames
    apart and need no longest clip. Dropout acts on the projected features, the attention weights, the attention's
    output and the feed-forward layers; whole residual branches are dropped per clip (stochastic depth, Huang et
    al., 2016) at a rate that rises linearly from 0 in the first layer to `drop_path` in the last.

    Args:
        width_in: C, the width of the frames' features.
        width: D, the width of the Transformer.
        layers: number of encoder layers.
        heads: attention heads of each layer.
        dim_feedforward: hidden width of the feed-forward layers.
        dropout: probability of dropping an element.
        drop_path: probability of dropping a residual branch of the last layer.

    Raises:
        RaylabError: `width` is odd or not divisible by `heads`.
    """

    def __init__(
        self,
        width_in: int,
        width: int = 512,
        layers: int = 6,
        heads: int = 8,
        dim_feedforward: int = 2048,
        dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        check_width(width, heads)
        self.width = width
        self.embed = nn.Sequential(nn.LayerNorm(width_in), nn.Linear(width_in, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.Sequential(
            *(
                encoder_layer(width, heads, dim_feedforward, dropout, drop_path * layer / max(layers - 1, 1))
                for layer in range(layers)
            )
        )
        self.norm = nn.LayerNorm(width)
        self.apply(init_as_vit)

    def forward(self, features: Tensor) -> Tensor:
        tokens = self.embed(features)
        tokens = tokens + sinusoids(tokens.shape[1], self.width, tokens.device).to(tokens.dtype)
        encoded: Tensor = self.norm(self.blocks(self.dropout(tokens)))
        return encoded.mean(1)


def sinusoids(frames: int, width: int, device: torch.device | None = None) -> Tensor:
    """Position vectors, float32 (frames, width): sines in the first half, cosines in the second.

    Wavelengths rise geometrically from 2π to 10000 · 2π frames (Vaswani et al., 2017). `width` is even.
    """
    rates = torch.exp(torch.arange(0, width, 2, device=device) * (-math.log(10000.0) / width))
    angles = torch.arange(frames, device=device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def encoder_layer(width: int, heads: int, dim_feedforward: int, dropout: float, drop_path: float) -> Block:
    """One pre-norm Transformer layer; arguments as for `TemporalTransformer`."""
    return Block(
        width,
        heads,
        mlp_ratio=(dim_feedforward + 0.5) / width,  # timm truncates ratio × width to an integer
        qkv_bias=True,
        proj_drop=dropout,
        attn_drop=dropout,
        drop_path=drop_path,
    )


def check_width(width: int, heads: int) -> None:
    """Refuse a width that attention heads, or sines and cosines, do not divide.

    Raises:
        RaylabError: names the setting and what it must be a multiple of.
    """
    step = math.lcm(2, heads)
    if width % step:
        raise RaylabError(
            f"model.temporal_width = {width}: a Transformer with {heads} heads needs a multiple of {step}"
        )


def init_as_vit(module: nn.Module) -> None:
    """Weights as in ViT: with PyTorch's own, projected features would drown in the positions."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
