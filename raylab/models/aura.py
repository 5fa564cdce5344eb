"""The zoo of AURA: real or generated video, one clip in, one class out.

Of two classes the classifier has one logit, as documented: `OneLogit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from raylab.config import ModelConfig
from raylab.models.registry import register

if TYPE_CHECKING:
    from torch import nn

    from raylab.models.freezing import Freezable
    from raylab.models.temporal import TemporalModel

_SOURCE = "AURA: seven models, real or generated video"
_KINETICS = "https://dl.fbaipublicfiles.com/pytorchvideo/model_zoo/kinetics/"
_CLIPS = ("pretrained", "dropout", "frozen_blocks")
_GRU = (*_CLIPS, "temporal_layers", "temporal_width")
_TRANSFORMER = (*_CLIPS, "temporal_layers", "dim_feedforward", "drop_path")


@register(task="classification", settings=_CLIPS, batch_size=16, source=_SOURCE)
def naive_cnn(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """Four blocks of 2D convolution, 32 to 256 wide, on every frame, averaged over places and frames; from nothing.

    Neither widths nor depth were published, and there are no weights: `model.pretrained` true or false is all one.
    """
    from raylab.models.naive_cnn import NaiveCNN
    from raylab.models.weights import resolve_weights

    resolve_weights(config)  # refuses a file
    return _average(config, heads, NaiveCNN((8, 16, 32, 64) if config.scale == "tiny" else (32, 64, 128, 256)))


@register(
    task="classification",
    encoder="vit_base_patch16_224",
    settings=_GRU,
    tiny={"encoder": "test_vit", "temporal_width": 32},
    batch_size=4,
    accumulate=4,
    source=_SOURCE,
)
def vit_gru(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """ViT-B/16 on every frame, its [CLS] token of 768, then a 2-layer GRU, 256 wide, whose last state is classified."""
    from raylab.models.encoders import build_encoder
    from raylab.models.temporal import TemporalGRU

    encoder = build_encoder(config, any_size=True)
    hidden, layers = config.temporal_width or 256, config.temporal_layers or 2
    return _classify(config, heads, encoder, TemporalGRU(encoder.width, hidden, layers, config.dropout))


@register(
    task="classification",
    encoder="vit_base_patch16_224",
    settings=_TRANSFORMER,
    tiny={"encoder": "test_vit", "dim_feedforward": 128},
    batch_size=2,
    accumulate=8,
    source=_SOURCE,
)
def vit_transformer(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """ViT-B/16 on every frame, its [CLS] token of 768, then a 2-layer Transformer, as wide, 8 heads; mean over frames.

    The feed-forward width was not published: 2048, PyTorch's own.
    """
    from raylab.models.encoders import build_encoder
    from raylab.models.temporal import TemporalTransformer

    encoder = build_encoder(config, any_size=True)
    temporal = TemporalTransformer(
        encoder.width,
        width=encoder.width,
        layers=config.temporal_layers or 2,
        heads=8,
        dim_feedforward=config.dim_feedforward or 2048,
        dropout=config.dropout,
        drop_path=config.drop_path,
    )
    return _classify(config, heads, encoder, temporal)


@register(
    task="classification",
    weights=_KINETICS + "SLOWFAST_8x8_R50.pyth",
    settings=_CLIPS,
    frames=64,
    batch_size=2,
    accumulate=8,
    documented_parameters=34.57,
    source=_SOURCE,
)
def slowfast(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """SlowFast of depth 50: the clip's frames (documented: 64, at 8 a second) and every 4th of them; Kinetics weights.

    The documented size counts a classifier of 400 classes.
    """
    from raylab.models.slowfast import SlowFastEncoder
    from raylab.models.weights import resolve_weights

    return _average(config, heads, SlowFastEncoder(resolve_weights(config), config.scale))


@register(
    task="classification",
    weights=_KINETICS + "X3D_M.pyth",
    settings=_CLIPS,
    batch_size=4,
    accumulate=4,
    documented_parameters=3.79,
    source=_SOURCE,
)
def x3d(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """X3D-M: few channels, depthwise 3D convolutions and squeeze-and-excitation; Kinetics-400 weights.

    The documented size counts a classifier of 400 classes.
    """
    from raylab.models.weights import resolve_weights
    from raylab.models.x3d import X3DEncoder

    return _average(config, heads, X3DEncoder(resolve_weights(config), config.scale))


def _average(config: ModelConfig, heads: Mapping[str, int], encoder: Freezable) -> nn.Module:
    from raylab.models.temporal import AveragePool

    encoder.freeze(config.frozen_blocks or 0)
    return _classify(config, heads, encoder, AveragePool(encoder.width))


def _classify(config: ModelConfig, heads: Mapping[str, int], encoder: Freezable, temporal: TemporalModel) -> nn.Module:
    from raylab.models.clip_model import ClipModel, classifier

    return ClipModel(encoder, temporal, heads, config.dropout, classifier)
