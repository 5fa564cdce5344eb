"""What one clip costs a model."""

from __future__ import annotations

from copy import deepcopy
from itertools import chain

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def multiply_adds(model: nn.Module, frames: int, size: int) -> int:
    """Multiply-adds of one clip, found without computing anything.

    As papers count them: matrix products and convolutions alone, a multiplication with its addition being one. They are
    counted in a copy without weights: it takes none of the fused paths that hide products from the counter.

    Args:
        model: in evaluation mode, on any device: float (B, T, 3, H, W) → anything.
        frames, size: of the clip, in frames and pixels.
    """
    state = {id(tensor): tensor.detach().to("meta") for tensor in chain(model.parameters(), model.buffers())}
    hollow = deepcopy(model, state)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        hollow(torch.empty(1, frames, 3, size, size))
    return counter.get_total_flops() // 2
