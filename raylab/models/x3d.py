"""X3D: a 2D network expanded, axis by axis, to a small network of clips (Feichtenhofer, CVPR 2020)."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from raylab.models.kinetics import KineticsEncoder

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # it compiles functions in a deprecated way when it is imported
    from pytorchvideo.models.x3d import create_x3d

_SCALES: dict[str, dict[str, Any]] = {
    "full": {},
    "tiny": {"stem_dim_in": 8, "width_factor": 1.0, "depth_factor": 1.0, "head_dim_out": 128},
}


class X3DEncoder(KineticsEncoder):
    """pytorchvideo's X3D-M, its convolutions after the last stage included. Published for 16 frames of 224 pixels.

    Args:
        weights: as for `KineticsEncoder`.
        scale: `tiny` is a third as wide and half as deep.
    """

    def __init__(self, weights: Path | None = None, scale: str = "full") -> None:
        stages = create_x3d(input_clip_length=16, input_crop_size=224, **_SCALES[scale]).blocks
        head: Any = stages[-1]
        width = head.proj.in_features
        head.proj = head.dropout = head.activation = None
        head.pool.pool = nn.AdaptiveAvgPool3d(1)  # over all of the clip, whatever its frames and size
        super().__init__("x3d_m", stages, width, weights)

    def encode(self, video: Tensor) -> Tensor:
        """Normalised float (B, T, 3, H, W) → features averaged over time and space, float (B, 1, C)."""
        x = video.transpose(1, 2)
        for stage in self.stages:
            x = stage(x)
        return x[:, None]
