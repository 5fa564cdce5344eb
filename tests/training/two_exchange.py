"""One of two processes: what raylab's exchange of gradients and DistributedDataParallel make of the same model.

python two_exchange.py RANK FOLDER
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raylab.training import exchange

torch.set_num_threads(1)
exchange.BUCKET = 4 * 32 * 32  # a bucket for each layer


class Model(nn.Sequential):
    def __init__(self):
        torch.manual_seed(0)
        super().__init__(nn.Conv2d(3, 32, 3), nn.Flatten(), nn.Linear(128, 32), nn.ReLU(), nn.Linear(32, 32))
        self.unused = nn.Parameter(torch.ones(2))
        self.to(memory_format=torch.channels_last)


def gradients(model):
    return [parameter.grad.clone() for name, parameter in model.named_parameters() if name != "unused"]


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    batches = torch.randn(2, 2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(1))[rank]
    found = {}

    model = Model()
    between = exchange.Exchange(2)
    mean = between.gradients(model)
    sent = []
    model[0].weight.register_hook(lambda _: sent.append(len(mean.sent)))

    def step(fails_at=None):
        """Gradients of two batches, and whether both workers came to their end."""
        model.zero_grad()
        mean_fails = rank == 1 and fails_at
        handle = model[2].weight.register_hook(lambda _: 1 / 0) if mean_fails == "backward" else None
        try:
            model(batches[0]).square().mean().backward()
            if mean_fails == "forward":
                1 / 0  # noqa: B018
            with mean.sending():
                model(batches[1]).square().mean().backward()
            sound = True
        except ZeroDivisionError:
            sound = False
        if handle:
            handle.remove()
        mean.finish(sound)
        if between.most(not sound):
            return None
        mean.write()
        return gradients(model)

    first = step()
    found["buckets"], found["sent early"] = len(mean.buckets), sent[-1]
    found["unsound"] = [step("forward"), step("backward")]
    again = step()
    found["unused"] = model.unused.grad is None

    peer = Model()
    peer.unused.requires_grad = False
    parallel = DistributedDataParallel(peer)
    with parallel.no_sync():
        parallel(batches[0]).square().mean().backward()
    parallel(batches[1]).square().mean().backward()
    found["as DDP"] = [
        all(map(torch.equal, ours, theirs)) for ours, theirs in ((first, gradients(peer)), (again, gradients(peer)))
    ]

    model[4].requires_grad_(False)
    later = between.gradients(model)
    before = len(mean.sent)
    with later.sending():
        model(batches[0]).square().mean().backward()
    later.finish(True)
    found["of a stage"] = [len(later.buckets), len(mean.sent) - before]
    (folder / f"found{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()
