"""What a run takes of the machine."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory(device: torch.device) -> int:
    """The most memory this process has held since it began, in bytes: on a GPU in tensors, else resident in all.

    The latter includes what Python, PyTorch and their libraries take by themselves, some hundred MB.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
