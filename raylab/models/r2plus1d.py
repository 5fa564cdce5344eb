"""R(2+1)D: every 3D convolution of a ResNet as one over space and one over time (Tran et al., CVPR 2018)."""

from __future__ import annotations

import warnings
from pathlib import Path

from torch import Tensor, nn

from raylab.errors import RaylabError
from raylab.models.freezing import Freezable
from raylab.models.weights import read_weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # it compiles functions in a deprecated way when it is imported
    from pytorchvideo.models.r2plus1d import create_r2plus1d


class R2Plus1DEncoder(Freezable):
    """pytorchvideo's R(2+1)D of depth 50, without its classifier: an encoder of clips.

    Args:
        weights: a file in the layout of pytorchvideo's model zoo; None for random weights.
        stem_width: channels of the stem; the last stage has 32 times as many.

    Attributes:
        width: C, the number of features.
        mean, std: per RGB channel, for pixels in [0, 1]: what the published weights were trained with.

    Raises:
        RaylabError: the file does not hold its weights.
    """

    def __init__(self, weights: Path | None = None, stem_width: int = 64) -> None:
        super().__init__("r2plus1d_r50")
        self.stages: nn.ModuleList = create_r2plus1d(model_depth=50, stem_dim_out=stem_width).blocks[:-1]
        self.width = 32 * stem_width
        self.mean, self.std = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
        self.divide(stage.parameters() for stage in self.stages)
        if weights:
            self._load(weights)

    def encode(self, video: Tensor) -> Tensor:
        """Normalised float (B, T, 3, H, W) → features averaged over space, float (B, ceil(T / 4), C)."""
        x = video.transpose(1, 2)
        for stage in self.stages:
            x = stage(x)
        return x.mean((3, 4)).transpose(1, 2)

    def _load(self, path: Path) -> None:
        classifier = f"blocks.{len(self.stages)}."
        state = {
            key.removeprefix("blocks."): value
            for key, value in read_weights(path).items()
            if not key.startswith(classifier)
        }
        try:
            self.stages.load_state_dict(state)
        except RuntimeError as error:
            reasons = "\n  ".join(line.strip()[:300] for line in str(error).splitlines()[:8])
            raise RaylabError(f"{path}: not the weights of pytorchvideo's r2plus1d_r50\n  {reasons}") from None
