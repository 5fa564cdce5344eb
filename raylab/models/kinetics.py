"""Networks of clips in the layout of pytorchvideo's model zoo, whose weights were trained on Kinetics-400."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from torch import nn

from raylab.errors import RaylabError
from raylab.models.freezing import Freezable
from raylab.models.weights import read_weights

log = logging.getLogger(__name__)

_CLASSIFIER = re.compile(r"blocks\.\d+\.proj\.")


class KineticsEncoder(Freezable):
    """A network of pytorchvideo without its classifier: an encoder of clips.

    Args:
        name: what pytorchvideo calls it.
        stages: its `blocks`.
        width: C, the number of features.
        weights: a file in the layout of the model zoo, whose classifier is left out; None for random weights.

    Blocks, for `freeze`, are the stages after the first, the stem.

    Raises:
        RaylabError: the file does not hold its weights.
    """

    def __init__(self, name: str, stages: nn.ModuleList, width: int, weights: Path | None = None) -> None:
        super().__init__(name)
        self.stages, self.width = stages, width
        self.mean, self.std = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
        parts = [list(stage.parameters()) for stage in stages]
        self.divide(part for part in parts if part)
        if weights:
            self._load(weights)

    def _load(self, path: Path) -> None:
        state = read_weights(path)
        for key in [key for key in state if _CLASSIFIER.match(key)]:
            value = state.pop(key)
            if key.endswith(".weight"):
                log.warning("%s: its classifier of %d classes is left out", path, len(value))
        try:
            self.stages.load_state_dict({key.removeprefix("blocks."): value for key, value in state.items()})
        except RuntimeError as error:
            reasons = "\n  ".join(line.strip()[:300] for line in str(error).splitlines()[:8])
            raise RaylabError(f"{path}: not the weights of pytorchvideo's {self.name}\n  {reasons}") from None
