"""What workers that train one model exchange: decisions, and gradients while the rest are still being computed.

`DistributedDataParallel` leaves no way back: a worker whose memory does not suffice in the middle of backward would
leave the others waiting for ever for what it has not sent. Here the order of what is sent is fixed from the start, so
such a worker sends the rest as it is; then all hear that it failed, and nobody uses any of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET = 25 * 2**20  # bytes sent at once, as DistributedDataParallel does


class Exchange:
    """Between the `world_size` processes of the default group; every call is made by all of them, in one order."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self.host: dist.ProcessGroup | None = None
        if world_size > 1 and dist.get_backend() != "gloo":
            # Decisions pass between processes, not between devices: to read one from a GPU would be to wait for it.
            self.host = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))  # type: ignore[no-untyped-call]
        self._gradients: GradientMean | None = None

    def most(self, number: int) -> int:
        """The largest of all workers' numbers."""
        if self.world_size == 1:
            return number
        numbers = torch.tensor(number)
        dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self.host)
        return int(numbers)

    @torch.no_grad()
    def copy_first(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by that of rank 0."""
        if self.world_size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.flatten() for tensor in bucket])
            dist.broadcast(flat, src=0)
            for tensor, part in _parts(bucket, flat):
                tensor.copy_(part)

    def gradients(self, module: nn.Module) -> GradientMean:
        """The exchange of the gradients of what is trained of a module; the last one that was asked for ends."""
        if self._gradients:
            self._gradients.close()
        self._gradients = GradientMean(module, self.world_size)
        return self._gradients


class GradientMean:
    """The mean over all workers of each gradient.

    Gradients are sent in buckets, in the reverse order of their parameters, which is about the order in which backward
    finds them: each as soon as it and all before it are complete. One step is

        with mean.sending(): loss.backward()    # the last backward of the step; those before it need nothing
        mean.finish(sound)                      # on every worker, whether or not it has come that far
        mean.write()                            # only where all were sound

    Args:
        module: its parameters that require gradients are sent.
        world_size: where it is 1, every call does nothing.
    """

    def __init__(self, module: nn.Module, world_size: int) -> None:
        self.world_size = world_size
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.buckets = [Bucket(bucket) for bucket in _buckets(reversed(trained))] if world_size > 1 else []
        self.sent: list[dist.Work] = []
        self._live = False
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._ready, bucket))  # type: ignore[no-untyped-call]
            for bucket in self.buckets
            for parameter in bucket.parameters
        ]

    @contextmanager
    def sending(self, live: bool = True) -> Iterator[None]:
        """Inside, gradients that are found are whole, and are sent."""
        self._live = live
        try:
            yield
        finally:
            self._live = False

    def finish(self, sound: bool) -> None:
        """Send what is left, and wait for all. What a worker sends that is not `sound` is not to be used by any."""
        for bucket in self.buckets[len(self.sent) :]:
            self._send(bucket, sound)
        for work in self.sent:
            work.wait()
        self.sent.clear()
        for bucket in self.buckets:
            bucket.missing = len(bucket.parameters)

    @torch.no_grad()
    def write(self) -> None:
        """Replace each gradient that there is by the mean."""
        for bucket in self.buckets:
            for parameter, part in _parts(bucket.parameters, bucket.flat):
                if parameter.grad is not None:
                    parameter.grad.copy_(part)

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()

    def _ready(self, bucket: Bucket, parameter: Tensor) -> None:
        if not self._live:
            return
        bucket.missing -= 1
        while len(self.sent) < len(self.buckets) and not self.buckets[len(self.sent)].missing:
            self._send(self.buckets[len(self.sent)], fill=True)

    @torch.no_grad()
    def _send(self, bucket: Bucket, fill: bool) -> None:
        if fill:
            bucket.fill(self.world_size)
        self.sent.append(dist.all_reduce(bucket.flat, async_op=True))


class Bucket:
    """Gradients that are sent together. What they are sent in is kept: no step may lack memory for it."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = parameters
        self.missing = len(parameters)
        self.flat = torch.cat([torch.zeros_like(parameter).flatten() for parameter in parameters])

    def fill(self, world_size: int) -> None:
        """Take this worker's gradients; 0 for those it has none of."""
        for parameter, part in _parts(self.parameters, self.flat):
            part.zero_() if parameter.grad is None else part.copy_(parameter.grad)
        self.flat.div_(world_size)


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and (tensor.dtype != bucket[0].dtype or sum(other.nbytes for other in bucket) >= BUCKET):
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _parts(tensors: list[Tensor], flat: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each tensor with its part of the flat one, in its shape."""
    for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        yield tensor, part.view_as(tensor)
