"""The zoo of tri-model distillation: students, one clip in, one class out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from raylab.config import ModelConfig
from raylab.errors import RaylabError
from raylab.models.registry import register

if TYPE_CHECKING:
    from torch import nn

_SOURCE = "Tri-model asymmetric distillation"
_SETTINGS = ("pretrained", "dropout", "student")

STRUCTURES: dict[str, dict[str, dict[str, Any]]] = {
    "full": {
        "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
        "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    },
    "tiny": {
        "base": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 256},
        "small": {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 1, "intermediate_size": 128},
    },
}
"""`model.scale` → size → fields of transformers' `VideoMAEConfig`."""
PATCH = {"full": 16, "tiny": 8}


@register(
    task="distillation",
    repository="MCG-NJU/videomae-base",
    settings=_SETTINGS,
    batch_size=4,
    documented_parameters=86,
    documented_epochs=10,
    source=_SOURCE,
)
def videomae_base(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """VideoMAE ViT-B of transformers, the teacher's own architecture: 2 × 16 × 16 tokens, 768 wide, 12 layers."""
    return _videomae(config, heads, "base", "MCG-NJU/videomae-base")


@register(
    task="distillation",
    repository="MCG-NJU/videomae-small-finetuned-ssv2",
    settings=_SETTINGS,
    batch_size=4,
    documented_parameters=22,
    documented_epochs=10,
    source=_SOURCE,
)
def videomae_small(config: ModelConfig, heads: Mapping[str, int]) -> nn.Module:
    """VideoMAE ViT-S of transformers: 2 × 16 × 16 tokens, 384 wide with 6 heads, 12 layers."""
    return _videomae(config, heads, "small", "MCG-NJU/videomae-small-finetuned-ssv2")


def _videomae(config: ModelConfig, heads: Mapping[str, int], size: str, repository: str) -> nn.Module:
    from raylab.models.videomae import load_network, network, network_like
    from raylab.models.weights import fetch_network

    if len(heads) != 1:
        raise RaylabError(
            f"model.name = {config.name}: has one classifier, but the data has {len(heads)} heads "
            f"({', '.join(heads)}): set data.dataset=labelled, or a model of the task action"
        )
    head, classes = next(iter(heads.items()))
    path = fetch_network(config, repository)
    if path:
        model = load_network(path, classes) if config.pretrained else network_like(path, classes)
    else:
        model = network(structure(size, config.scale), classes)
    model.set_dropout(config.dropout)
    model.head = head
    return model


def structure(size: str, scale: str) -> Any:
    """The `VideoMAEConfig` of a size, `base` or `small`, at a `model.scale`."""
    from transformers import VideoMAEConfig

    return VideoMAEConfig(**STRUCTURES[scale][size], patch_size=PATCH[scale], layer_norm_eps=1e-6)
