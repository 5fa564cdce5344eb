"""Two streams: what things look like, and how they move (Simonyan & Zisserman, NeurIPS 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.optical_flow import raft_small

from raylab.errors import RaylabError
from raylab.models.clip_model import ClipModel
from raylab.models.weights import read_weights

LARGEST = 20.0  # pixels; flow is clipped there and divided by it, as in TSN (Wang et al., ECCV 2016)
SMALLEST = 128  # RAFT's correlation pyramid needs frames of this height and width


class OpticalFlow(nn.Module):
    """Dense motion from each frame to the next, by RAFT (Teed & Deng, ECCV 2020), which is not trained.

    Args:
        weights: of torchvision's `raft_small`; None for random ones.
        mean, std: per RGB channel, with which the frames it gets were normalised.

    Raises:
        RaylabError: the file does not hold its weights.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path | None, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.raft = raft_small(weights=None)
        if weights:
            try:
                self.raft.load_state_dict(read_weights(weights))
            except RuntimeError as error:
                raise RaylabError(f"{weights}: not the weights of raft_small ({str(error).splitlines()[0]})") from None
        self.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> OpticalFlow:
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, video: Tensor) -> Tensor:
        """Normalised float (B, T, 3, H, W) → (B, T - 1, 2, H, W), x before y, in [-1, 1]; a lone frame stands still."""
        height, width = video.shape[-2:]
        if video.shape[1] == 1:
            return video.new_zeros(len(video), 1, 2, height, width)
        with _full_precision(video.device):
            pictures = 2 * (video.to(self.mean.dtype) * self.std + self.mean) - 1
            size = [max(SMALLEST, -(-side // 8) * 8) for side in (height, width)]
            frames = F.interpolate(pictures.flatten(0, 1), size, mode="bilinear").reshape(*video.shape[:3], *size)
            first, second = (part.flatten(0, 1).contiguous() for part in (frames[:, :-1], frames[:, 1:]))
            flow = F.interpolate(self.raft(first, second)[-1], (height, width), mode="bilinear")
        scale = flow.new_tensor([width / size[1], height / size[0]]).view(2, 1, 1)
        bounded = (flow * scale / LARGEST).clamp(-1, 1)
        return bounded.reshape(len(video), -1, *bounded.shape[1:]).to(video.dtype)


def _full_precision(device: torch.device) -> AbstractContextManager[None]:
    """Correlations overflow in half precision. Where nothing is computed, there is no autocast to leave."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class TwoStreamModel(nn.Module):
    """The mean of the logits of two models: one sees frames, the other the motion between them (late fusion).

    Args:
        appearance: sees the frames.
        motion: sees the flow, two channels.
        flow: frames → flow.

    Attributes:
        mean, std: per RGB channel, for pixels in [0, 1]; the caller normalises with them.
    """

    def __init__(self, appearance: ClipModel, motion: ClipModel, flow: OpticalFlow) -> None:
        super().__init__()
        self.appearance, self.motion, self.flow = appearance, motion, flow
        self.mean, self.std = appearance.mean, appearance.std

    def forward(self, video: Tensor) -> dict[str, Tensor]:
        """Normalised float (B, T, 3, H, W) → head → logits (B, classes)."""
        seen, moving = self.appearance(video), self.motion(self.flow(video))
        return {head: (logits + moving[head]) / 2 for head, logits in seen.items()}
