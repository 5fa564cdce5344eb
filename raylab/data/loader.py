"""The order of batches, and the loader that fills them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from raylab.config import DataConfig
from raylab.data.dataset import ClipDataset, Sample
from raylab.errors import RaylabError


class TrainBatches(Sampler[list[int]]):
    """One rank's training batches: a pure function of (seed, epoch, position).

    What it yields are the sample numbers of `ClipDataset`. Each epoch is a permutation of all clips. Global batch k is
    its k-th stretch of `world_size * batch_size`, and the ranks take turns in it: two workers of batch 4 see together
    what one of batch 8 sees. What is left at the end of an epoch, less than one global batch, is dropped.

    Args:
        clips: size of the data set.
        batch_size: clips a rank puts through the model at once.
        rank: of this worker, from 0.
        world_size: number of workers.
        seed: the experiment's seed.
        draw: epoch → the number of the random draw its clips are sampled with, which sample numbers tell.

    Raises:
        RaylabError: there are fewer clips than one global batch.
    """

    def __init__(
        self,
        clips: int,
        batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        draw: Callable[[int], int] = lambda epoch: epoch,
    ) -> None:
        if clips < batch_size * world_size:
            raise RaylabError(
                f"the training set has {clips} clips, less than the {batch_size * world_size} of one step "
                f"(data.batch_size {batch_size} × resources.workers {world_size}): lower either"
            )
        self.clips = clips
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.seed = seed
        self.draw = draw
        self.set_position(epoch=0)

    def set_position(self, epoch: int, batch: int = 0) -> None:
        """Where the next iteration starts: at batch number `batch` of an epoch."""
        self.epoch = epoch
        self.batch = batch

    def __len__(self) -> int:
        """Batches in a whole epoch, wherever the next iteration starts."""
        return self.clips // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.clips)
        step = self.batch_size * self.world_size
        starts = range(self.batch * step, len(self) * step, step)
        numbers = order + self.draw(self.epoch) * self.clips
        return (numbers[start + self.rank : start + step : self.world_size].tolist() for start in starts)


class EvalBatches(Sampler[list[int]]):
    """One rank's evaluation batches: every clip exactly once over all ranks, none repeated to fill up.

    Ranks take turns batch by batch, so a clip stands in the same batch, and its logits have the same bits, for any
    number of workers. A rank has none when there are fewer batches than ranks.

    Args:
        clips: size of the data set.
        batch_size: clips a rank puts through the model at once.
        rank: of this worker, from 0.
        world_size: number of workers.
    """

    def __init__(self, clips: int, batch_size: int, rank: int, world_size: int) -> None:
        self.clips = clips
        self.batch_size = batch_size
        self.starts = range(rank * batch_size, clips, world_size * batch_size)

    def __len__(self) -> int:
        return len(self.starts)

    def __iter__(self) -> Iterator[list[int]]:
        return (list(range(start, min(start + self.batch_size, self.clips))) for start in self.starts)


def make_loader(dataset: ClipDataset, batches: Sampler[list[int]], config: DataConfig, pin: bool) -> DataLoader[Sample]:
    """A loader of `Batch`es, in the order of `batches`.

    The order is drawn in this process: `TrainBatches.set_position` before an iteration holds for loader processes
    that are already running. Iterating leaves torch's global generators as they are.

    Args:
        dataset: what to load.
        batches: the indices of each batch.
        config: `loader_workers` is used; 0 decodes in this process.
        pin: copy batches into page-locked memory, for a GPU.
    """
    context = None
    if config.loader_workers:
        # Not fork: threads of CUDA, Ray and gRPC would leave locked locks behind. The server imports once for all.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=config.loader_workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        persistent_workers=config.loader_workers > 0,
        multiprocessing_context=context,
        worker_init_fn=_end_with_parent,
        generator=torch.Generator(),  # or each iteration would draw a seed from the global one
    )


def _as_it_is(batch: Any) -> Any:  # typed as PyTorch does: a list of samples
    return batch


def _end_with_parent(worker: int) -> None:
    """End this loader process when the process that trains is gone, even killed.

    PyTorch watches the operating system's parent, which is the fork server, and that lives as long as its children.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101 - loader processes have one

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()
