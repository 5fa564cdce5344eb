"""What a VideoMAE says on the way to its answer: hidden states and attention maps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, VideoMAEConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from raylab.errors import RaylabError
from raylab.models.videomae import VideoMAE

QUERIES = 256
"""Of a clip with more tokens, the attention of so many is recorded, evenly spaced."""
_IMPLEMENTATION = "raylab_taps"


class Taps:
    """Records what chosen layers of a network say as a clip passes through.

    The fast attention kernels never make the maps. Layers go through them all the same; where maps are wanted, they are
    made besides, of `QUERIES` tokens: all of them would cost a quarter of the whole network, and gigabytes to keep.

    Args:
        model: the network.
        layers: -1 is the last, 1 the first.
        attention: whether to record attention maps, too.

    Raises:
        RaylabError: it has no such layer.
    """

    def __init__(self, model: VideoMAE, layers: Iterable[int], attention: bool) -> None:
        self.hidden: dict[int, Tensor] = {}
        self.attention: dict[int, Tensor] = {}
        for number in layers:
            if not 1 <= abs(number) <= model.depth:
                raise RaylabError(
                    f"distill.hidden_layers_to_align: layer {number} of a network that has {model.depth}: "
                    f"write -{model.depth} to -1, or 1 to {model.depth}"
                )
            layer: Any = model.videomae.encoder.layer[number if number < 0 else number - 1]
            layer.register_forward_hook(self._recorder(self.hidden, number, lambda output: output))
            if attention:
                own = VideoMAEConfig.from_dict(layer.attention.attention.config.to_dict())
                own._attn_implementation = _IMPLEMENTATION
                layer.attention.attention.config = own
                hook = self._recorder(self.attention, number, lambda output: output[1])
                layer.attention.attention.register_forward_hook(hook)

    @staticmethod
    def _recorder(record: dict[int, Tensor], number: int, part: Any) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            record[number] = part(output)

        return hook

    def take(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """What was recorded of the last clips.

        Returns:
            Layer → hidden states (B, N, D), and layer → attention (B, Q, N): of Q = min(N, `QUERIES`) tokens to all,
            the mean over heads.
        """
        taken = dict(self.hidden), dict(self.attention)
        self.hidden.clear()
        self.attention.clear()
        return taken


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: None, scaling: float, **settings: Any
) -> tuple[Tensor, Tensor]:
    """Attention by the fast kernel, and the maps of some queries; float (B, heads, N, width) each."""
    output, _ = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **settings)
    tokens = query.shape[2]
    if tokens > QUERIES:
        query = query[:, :, torch.arange(QUERIES, device=query.device) * tokens // QUERIES]
    return output, (query @ key.mT * scaling).softmax(-1).mean(1)


AttentionInterface.register(_IMPLEMENTATION, _attend)
