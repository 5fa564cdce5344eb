"""SlowFast: a pathway of few frames, many channels; another of many frames, few (Feichtenhofer et al., ICCV 2019)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raylab.models.kinetics import KineticsEncoder

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # it compiles functions in a deprecated way when it is imported
    from pytorchvideo.models.slowfast import create_slowfast

ALPHA = 4
"""Frames of the fast pathway to one of the slow, as the published weights have it."""
_BETA = 8  # channels of the slow pathway to one of the fast
_SCALES: dict[str, dict[str, Any]] = {
    "full": {"model_depth": 50, "stem_dim_outs": (64, 8)},
    "tiny": {"model_depth": 18, "stem_dim_outs": (16, 2)},
}


class SlowFastEncoder(KineticsEncoder):
    """pytorchvideo's SlowFast 8×8 of depth 50.

    It is given the fast pathway's frames; the slow pathway takes every `ALPHA`-th of them, from the first. Documented
    are 64 at 8 frames a second, thus 16 at 2 a second, of a clip of 8 seconds.

    Args:
        weights: as for `KineticsEncoder`.
        scale: `tiny` has one block a stage, and a quarter of the channels.
    """

    def __init__(self, weights: Path | None = None, scale: str = "full") -> None:
        network = create_slowfast(slowfast_channel_reduction_ratio=(_BETA,), **_SCALES[scale])
        *stages, _pool, head = network.blocks
        super().__init__("slowfast_r50", network.blocks[: len(stages)], head.proj.in_features, weights)

    def encode(self, video: Tensor) -> Tensor:
        """Normalised float (B, T, 3, H, W) → both pathways averaged over time and space, float (B, 1, C)."""
        fast = video.transpose(1, 2)
        pathways = [fast[:, :, ::ALPHA], fast]
        for stage in self.stages:
            pathways = stage(pathways)
        return torch.cat([pathway.mean((2, 3, 4)) for pathway in pathways], dim=1)[:, None]
