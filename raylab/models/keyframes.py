"""The zoo of keyframe detection: a video in, the importance of each of its frames out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from raylab.config import ModelConfig
from raylab.errors import RaylabError
from raylab.models.registry import register

if TYPE_CHECKING:
    from torch import nn

_SOURCE = "Keyframe detection on TVSum, "
_SETTINGS = (
    *("pretrained", "dropout", "frozen_blocks"),
    *("temporal_layers", "temporal_width", "dim_feedforward", "drop_path"),
)
_TINY = {"temporal_layers": 1, "temporal_width": 64, "dim_feedforward": 128}


@register(
    task="keyframes",
    encoder="efficientnet_b0",
    settings=_SETTINGS,
    tiny={**_TINY, "encoder": "test_efficientnet"},
    frames=60,
    batch_size=4,
    documented_parameters=7.8,
    documented_epochs=30,
    source=_SOURCE + "model 2",
)
def efficientnet_b0_dual_attention(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """EfficientNet-B0 on every frame, a 3-layer Transformer, 512 wide, local (±5 frames) and global attention, fused.

    Published with dropout 0.1. The structure counts about 17M parameters, not the published 7.8M.
    """
    return _dual_attention(config)


@register(
    task="keyframes",
    encoder="resnet50",
    settings=_SETTINGS,
    tiny={**_TINY, "encoder": "test_resnet"},
    frames=60,
    batch_size=4,
    documented_parameters=26.4,
    documented_epochs=30,
    source=_SOURCE + "model 1",
)
def resnet50_dual_attention(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """ResNet-50 on every frame, a 3-layer Transformer, 512 wide, local (±5 frames) and global attention, fused.

    Published with dropout 0.1. The structure counts about 37M parameters, not the published 26.4M.
    """
    return _dual_attention(config)


def _dual_attention(config: ModelConfig) -> nn.Module:
    """The model; `config.pretrained` may be a file of the encoder's weights, or of all, such as a checkpoint has."""
    from raylab.models.dual_attention import DualAttentionHead, ImportanceModel
    from raylab.models.encoders import build_encoder
    from raylab.models.weights import fill, read_whole

    whole = read_whole(config)
    encoder = build_encoder(config.model_copy(update={"pretrained": False}) if whole else config)
    head = DualAttentionHead(
        encoder.width,
        width=config.temporal_width or 512,
        layers=config.temporal_layers or 3,
        dim_feedforward=config.dim_feedforward or 2048,
        dropout=config.dropout,
        drop_path=config.drop_path,
    )
    model = ImportanceModel(encoder, head)
    if whole:
        try:
            fill(model, whole)
        except RuntimeError as error:
            raise RaylabError(
                f"{config.pretrained}: not the weights of {config.name} at model.scale={config.scale}: {error}"
            ) from None
    return model
