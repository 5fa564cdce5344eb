"""What workers that train one model exchange: decisions, and gradients once each has all of its own.

`DistributedDataParallel` sends gradients off while the rest are still being computed. A worker whose memory does not
suffice for that rest would leave the others waiting for ever; here nothing is sent before all have said that they are
well. What is given up is that sending and computing overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET = 25 * 2**20  # bytes sent at once, as DistributedDataParallel does


class Exchange:
    """Between the `world_size` processes of the default group; every call is made by all of them, in one order."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.host: dist.ProcessGroup | None = None
        if world_size > 1 and dist.get_backend() != "gloo":
            # Decisions pass between processes, not between devices: to read one from a GPU would be to wait for it.
            self.host = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))  # type: ignore[no-untyped-call]

    def most(self, number: int) -> int:
        """The largest of all workers' numbers."""
        if self.world_size == 1:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.host)
        return int(numbers)

    @torch.no_grad()
    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over all workers, which have as many, of the same shapes and dtypes."""
        if self.world_size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket]).div_(self.world_size)
            dist.all_reduce(flat)
            _fill(bucket, flat)

    @torch.no_grad()
    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by that of rank 0."""
        if self.world_size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.broadcast(flat, src=0)
            _fill(bucket, flat)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or sum(other.nbytes for other in bucket) >= BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _fill(bucket: list[Tensor], flat: Tensor) -> None:
    for tensor, part in zip(bucket, torch.split(flat, [tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(part.view_as(tensor))
