"""How much memory a computation holds at most."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from math import nan
from pathlib import Path

import torch

PROCESS = Path("/proc/self")


def peak_bytes(run: Callable[[], None], device: torch.device) -> float:
    """What `run` takes at its peak, on top of what is held before: on a GPU by tensors, else by this process.

    A process is watched by the operating system's high-water mark of its resident memory, which Linux alone lets one
    set back (`man 5 proc`, clear_refs). It agrees with PyTorch's own record of tensors to a hundredth, from some
    megabytes on. Elsewhere: nan.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before)
    with suppress(OSError, AttributeError):  # another C library keeps no memory that could be given back
        ctypes.CDLL(None).malloc_trim(0)  # what was freed before would be taken again unseen
    try:
        (PROCESS / "clear_refs").write_text("5")
        before = _status("VmRSS")
        run()
        return float(_status("VmHWM") - before)
    except OSError:
        return nan


def _status(entry: str) -> int:
    """An amount of memory, in bytes."""
    for line in (PROCESS / "status").read_text().splitlines():
        name, _, amount = line.partition(":")
        if name == entry:
            return int(amount.split()[0]) * 1024
    raise OSError(f"{PROCESS / 'status'}: has no {entry}")
