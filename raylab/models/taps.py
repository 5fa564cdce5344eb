"""What a VideoMAE says on the way to its answer: hidden states and attention maps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from transformers import VideoMAEConfig

from raylab.errors import RaylabError
from raylab.models.videomae import VideoMAE


class Taps:
    """Records what chosen layers of a network say as a clip passes through.

    Attention maps need the whole matrix of every head, which the fast kernels never make: only the layers whose maps
    are wanted are computed without them.

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
                own._attn_implementation = "eager"
                layer.attention.attention.config = own
                hook = self._recorder(self.attention, number, lambda output: output[1].mean(1))
                layer.attention.attention.register_forward_hook(hook)

    @staticmethod
    def _recorder(record: dict[int, Tensor], number: int, part: Any) -> Any:
        def hook(module: Any, arguments: Any, output: Any) -> None:
            record[number] = part(output)

        return hook

    def take(self) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Layer → hidden states (B, N, D), and layer → attention (B, N, N), the mean over heads, of the last clips."""
        taken = dict(self.hidden), dict(self.attention)
        self.hidden.clear()
        self.attention.clear()
        return taken
