"""How fast the workers of a cluster sum a buffer, as they do with gradients in every training step."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raylab.errors import RaylabError

MIB = 2**20
SIZES = {"nccl": 64 * MIB, "gloo": 8 * MIB}
"""Bytes summed at once; DDP's buckets are of 25 MiB."""
START = 120.0
"""Seconds within which all workers must be there, and meet."""


@dataclass(frozen=True)
class Speed:
    """Of an all-reduce.

    Attributes:
        workers, nodes: how many took part.
        backend: `nccl` or `gloo`.
        size: bytes summed at once.
        seconds: that took, on average.
    """

    workers: int
    nodes: int
    backend: str
    size: int
    seconds: float

    @property
    def bandwidth(self) -> float:
        """Bytes a second that each worker sends, whatever their number: NCCL's bus bandwidth."""
        return 2 * (self.workers - 1) / self.workers * self.size / self.seconds


def measure(seconds: float) -> Speed:
    """Sum a buffer again and again between workers on every node: one for each GPU, else two in all, or one a node.

    Args:
        seconds: how long, about.

    Raises:
        RaylabError: the workers do not start in time, do not reach one another, or come to a wrong sum.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    shares = {node["NodeID"]: int(node["Resources"].get("GPU", 0)) for node in nodes}
    gpus = 1 if any(shares.values()) else 0
    if not gpus:
        shares = dict.fromkeys(shares, 2 if len(nodes) == 1 else 1)
    workers = [
        Worker.options(  # type: ignore[attr-defined]
            num_cpus=0, num_gpus=gpus, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote()
        for node, share in shares.items()
        for _ in range(share)
    ]
    try:
        places = _gather([worker.place.remote() for worker in workers], "start: all GPUs may be in use")
        backend = "nccl" if all(cuda for *_, cuda in places) else "gloo"
        host, port, _ = places[0]
        meeting = f"tcp://{host}:{port}"
        calls = [
            worker.reduce.remote(rank, len(workers), meeting, backend, seconds) for rank, worker in enumerate(workers)
        ]
        elapsed = max(_gather(calls, "reach one another", seconds))
    finally:
        for worker in workers:
            ray.kill(worker)
    return Speed(len(workers), sum(map(bool, shares.values())), backend, SIZES[backend], elapsed)


def _gather(calls: list[Any], what: str, seconds: float = 0) -> list[Any]:
    try:
        return ray.get(calls, timeout=START + 2 * seconds)
    except GetTimeoutError:
        raise RaylabError(f"{len(calls)} workers did not {what} (within {START:.0f} s)") from None


@ray.remote(max_restarts=0)
class Worker:
    """One process that takes part."""

    def place(self) -> tuple[str, int, bool]:
        """Its address, a free port there, and whether it has a GPU to compute on."""
        host = ray.util.get_node_ip_address()
        with socket.create_server((host, 0)) as server:
            return host, server.getsockname()[1], torch.cuda.is_available()

    def reduce(self, rank: int, workers: int, meeting: str, backend: str, seconds: float) -> float:
        """Seconds that one all-reduce takes."""
        device = torch.device("cuda", 0) if backend == "nccl" else torch.device("cpu")
        limit = timedelta(seconds=START)
        dist.init_process_group(backend, init_method=meeting, rank=rank, world_size=workers, timeout=limit)
        try:
            buffer = torch.empty(SIZES[backend] // 4, device=device)
            _sum(buffer, rank, 3)  # connects, and is slow
            took = torch.tensor([_sum(buffer, rank, 3)], device=device)
            dist.all_reduce(took, dist.ReduceOp.MAX)  # so that all come to the same number of rounds
            rounds = max(3, round(seconds / took.item()))
            took[0] = _sum(buffer, rank, rounds)
            wrong = buffer != workers * (workers + 1) / 2
            if wrong.any():
                raise RaylabError(f"{backend}: {int(wrong.sum())} of {len(buffer)} sums are wrong")
            dist.all_reduce(took, dist.ReduceOp.MAX)
            return took.item()
        finally:
            dist.destroy_process_group()


def _sum(buffer: torch.Tensor, rank: int, rounds: int) -> float:
    """Sum over the workers, each time anew; seconds a round."""
    if buffer.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(rounds):
        buffer.fill_(rank + 1)
        dist.all_reduce(buffer)
    if buffer.is_cuda:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / rounds
