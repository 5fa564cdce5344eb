"""R(2+1)D: every 3D convolution of a ResNet as one over space and one over time (Tran et al., CVPR 2018)."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor

from raylab.models.kinetics import KineticsEncoder

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # it compiles functions in a deprecated way when it is imported
    from pytorchvideo.models.r2plus1d import create_r2plus1d


class R2Plus1DEncoder(KineticsEncoder):
    """pytorchvideo's R(2+1)D of depth 50.

    Args:
        weights: as for `KineticsEncoder`.
        stem_width: channels of the stem; the last stage has 32 times as many.
    """

    def __init__(self, weights: Path | None = None, stem_width: int = 64) -> None:
        stages = create_r2plus1d(model_depth=50, stem_dim_out=stem_width).blocks[:-1]
        super().__init__("r2plus1d_r50", stages, 32 * stem_width, weights)

    def encode(self, video: Tensor) -> Tensor:
        """Normalised float (B, T, 3, H, W) → features averaged over space, float (B, ceil(T / 4), C)."""
        x = video.transpose(1, 2)
        for stage in self.stages:
            x = stage(x)
        return x.mean((3, 4)).transpose(1, 2)
