"""The zoo of the EPIC-KITCHENS-100 system: one clip in, a verb and a noun out.

A model is an encoder, a temporal model over its features, and one linear classifier for each head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from raylab.config import ModelConfig
from raylab.models.registry import register

if TYPE_CHECKING:
    from torch import nn

    from raylab.models.clip_model import ClipModel
    from raylab.models.temporal import TemporalModel

_SOURCE = "EPIC-KITCHENS-100 action recognition, "
_RAFT = "https://download.pytorch.org/models/raft_small_C_T_V2-01064c6d.pth"
_FRAMES = ("pretrained", "dropout", "frozen_blocks")
_LSTM = (*_FRAMES, "temporal_layers", "temporal_width")
_TRANSFORMER = (*_LSTM, "dim_feedforward", "drop_path")
_TINY = {"encoder": "test_resnet"}
_TINY_LSTM = {**_TINY, "temporal_layers": 1, "temporal_width": 128}
_TINY_TRANSFORMER = {**_TINY, "temporal_layers": 1, "temporal_width": 128, "dim_feedforward": 256}
_EFFICIENTNET = {"encoder": "test_efficientnet"}


@register(
    task="action",
    encoder="resnet18",
    settings=_FRAMES,
    tiny=_TINY,
    frames=8,
    batch_size=32,
    documented_parameters=11,
    documented_epochs=30,
    source=_SOURCE + "simple baseline",
)
def resnet18_avg(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """ResNet-18 on every frame, all layers trained; features averaged over time, so the order of frames is not seen."""
    return _compose(config, heads, _average)


@register(
    task="action",
    encoder="resnet18",
    parts={"flow_weights": _RAFT},
    settings=(*_FRAMES, "flow_weights"),
    tiny=_TINY,
    frames=8,
    batch_size=32,
    source=_SOURCE + "simple baseline, its two-stream extension",
)
def resnet18_two_stream(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """`resnet18_avg` twice, on frames and on the optical flow between them (RAFT, not trained); their logits' mean."""
    from raylab.models.two_stream import OpticalFlow, TwoStreamModel
    from raylab.models.weights import fetch_published_weights

    appearance = _compose(config, heads, _average)
    motion = _compose(config, heads, _average, channels=2)
    weights = fetch_published_weights(_RAFT, config.flow_weights, "model.flow_weights")
    return TwoStreamModel(appearance, motion, OpticalFlow(weights, appearance.mean, appearance.std))


@register(
    task="action",
    encoder="resnet50",
    settings=_FRAMES,
    tiny=_TINY,
    documented_parameters=25,
    documented_epochs=25,
    source=_SOURCE + "phase 1",
)
def resnet50_avg(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """ResNet-50 on every frame; features averaged over time, so the order of frames is not seen."""
    return _compose(config, heads, _average)


@register(
    task="action",
    encoder="resnet50",
    settings=_LSTM,
    tiny=_TINY_LSTM,
    documented_parameters=27,
    documented_epochs=25,
    source=_SOURCE + "phase 1",
)
def resnet50_lstm(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """ResNet-50 on every frame, then a 2-layer LSTM, 512 wide, whose last state is classified."""
    return _compose(config, heads, _lstm)


@register(
    task="action",
    encoder="resnet50",
    settings=_TRANSFORMER,
    tiny=_TINY_TRANSFORMER,
    documented_parameters=30,
    documented_epochs=35,
    source=_SOURCE + "phase 1",
)
def resnet50_transformer(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """ResNet-50 on every frame, then a 6-layer Transformer, 512 wide with 8 heads, averaged over time."""
    return _compose(config, heads, _transformer)


@register(
    task="action",
    weights="https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/R2PLUS1D_16x4_R50.pyth",
    settings=_FRAMES,
    documented_parameters=28,
    documented_epochs=20,
    source=_SOURCE + "phase 1",
)
def r2plus1d_r50(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """R(2+1)D of depth 50: 3D convolutions that see motion themselves, averaged over time; Kinetics-400 weights."""
    from raylab.models.clip_model import ClipModel
    from raylab.models.r2plus1d import R2Plus1DEncoder
    from raylab.models.weights import resolve_weights

    encoder = R2Plus1DEncoder(resolve_weights(config), stem_width=8 if config.scale == "tiny" else 64)
    encoder.freeze(config.frozen_blocks or 0)
    return ClipModel(encoder, _average(encoder.width, config), heads, config.dropout)


@register(
    task="action",
    encoder="efficientnet_b3",
    settings=_LSTM,
    tiny={**_TINY_LSTM, **_EFFICIENTNET},
    documented_parameters=22,
    documented_epochs=20,
    source=_SOURCE + "phase 1",
)
def efficientnet_b3_lstm(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """EfficientNet-B3 on every frame, then a 2-layer LSTM, 512 wide, whose last state is classified."""
    return _compose(config, heads, _lstm)


@register(
    task="action",
    encoder="efficientnet_b3",
    settings=_TRANSFORMER,
    tiny={**_TINY_TRANSFORMER, **_EFFICIENTNET},
    documented_parameters=24,
    documented_epochs=20,
    source=_SOURCE + "phase 1",
)
def efficientnet_b3_transformer(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """EfficientNet-B3 on every frame, then a 6-layer Transformer, 512 wide with 8 heads, averaged over time."""
    return _compose(config, heads, _transformer)


@register(
    task="action",
    encoder="resnet50",
    settings=_TRANSFORMER,
    tiny=_TINY_TRANSFORMER,
    source=_SOURCE + "phase 2",
)
def resnet50_transformer_regularized(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """`resnet50_transformer` with the stem and the first 2 encoder blocks frozen.

    Published with dropout 0.3-0.5 throughout and drop path 0.1: `model.dropout` and `model.drop_path`.
    """
    return _compose(config, heads, _transformer, frozen_blocks=2)


@register(
    task="action",
    encoder="resnet50",
    settings=_TRANSFORMER,
    tiny=_TINY_TRANSFORMER,
    documented_parameters=26,
    source=_SOURCE + "phase 3",
)
def cross_attention(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """ResNet-50, stem and 2 blocks frozen; windows of 4, 8 and 16 frames; verb and noun attend to each other.

    256 wide, feed-forward layers 512. `model.temporal_layers` counts the rounds of cross-attention: one.
    """
    from raylab.models.cross_attention import CrossAttentionModel
    from raylab.models.encoders import build_encoder

    return CrossAttentionModel(
        build_encoder(config, frozen_blocks=2),
        heads,
        width=config.temporal_width or 256,
        rounds=config.temporal_layers or 1,
        dim_feedforward=config.dim_feedforward or 512,
        dropout=config.dropout,
        drop_path=config.drop_path,
    )


def _compose(
    config: ModelConfig,
    heads: Mapping[str, int],
    temporal: Callable[[int, ModelConfig], TemporalModel],
    frozen_blocks: int = 0,
    channels: int = 3,
) -> ClipModel:
    from raylab.models.clip_model import ClipModel
    from raylab.models.encoders import build_encoder

    encoder = build_encoder(config, frozen_blocks, channels)
    return ClipModel(encoder, temporal(encoder.width, config), heads, config.dropout)


def _average(width: int, config: ModelConfig) -> TemporalModel:
    from raylab.models.temporal import AveragePool

    return AveragePool(width)


def _lstm(width: int, config: ModelConfig) -> TemporalModel:
    from raylab.models.temporal import TemporalLSTM

    return TemporalLSTM(
        width,
        hidden=config.temporal_width or 512,
        layers=config.temporal_layers or 2,
        dropout=config.dropout,
    )


def _transformer(width: int, config: ModelConfig) -> TemporalModel:
    from raylab.models.temporal import TemporalTransformer

    return TemporalTransformer(
        width,
        width=config.temporal_width or 512,
        layers=config.temporal_layers or 6,
        heads=8,
        dim_feedforward=config.dim_feedforward or 2048,
        dropout=config.dropout,
        drop_path=config.drop_path,
    )
