"""One of two processes that train together, over and over: now and then memory does not suffice for one of them.

python train_short_of_memory.py RANK FOLDER SCENARIOS

FOLDER holds the run `whole`, and gets one for each scenario; SCENARIOS is JSON, `[[rank, step, part, clips], …]`: from
that optimiser step on, on that rank, a pass of more than so many clips fails in that part of it.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from raylab.data.datasets import load_dataset
from raylab.storage import Folder
from raylab.training.loop import Trainer, Worker
from raylab.training.runfolder import RunFolder

torch.set_num_threads(1)


def fail(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


class ShortOfMemory(Trainer):
    """Its temporal model fails as on a GPU: in forward, or in backward, when the heads have their gradients."""

    def __init__(self, experiment, dataset, run, worker, rank, step, part, clips):
        super().__init__(experiment, dataset, run, worker)

        def short(module, inputs, output):
            due = self.worker.rank == rank and self.state.progress.step >= step and module.training
            if due and len(inputs[0]) > clips:
                if part == "forward":
                    fail()
                output.register_hook(fail)

        self.state.task.model.temporal.register_forward_hook(short)


def losses(run, experiment, dataset, *short):
    worker = Worker.current(torch.device("cpu"))
    trainer = (ShortOfMemory if short else Trainer)(experiment, dataset, run, worker, *short)
    rows = []
    while not trainer.done:
        trainer.train_epoch()
        rows.append(trainer.finish_epoch())
    found = {split: [row[f"{split}/loss"] for row in rows] for split in ("train", "val")}
    return {**found, "micro_batch": trainer.state.progress.micro_batch}


if __name__ == "__main__":
    rank, folder, scenarios = int(sys.argv[1]), Path(sys.argv[2]), [(), *json.loads(sys.argv[3])]
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    experiment = RunFolder(Folder.open(folder / "whole")).experiment
    dataset, found = load_dataset(experiment.data), []
    for number, scenario in enumerate(scenarios):
        os.environ["RAYLAB_CACHE"] = str(folder / f"cache{number}")  # none knows what the others have found
        run = RunFolder(Folder.open(folder / (f"short{number}" if scenario else "whole")))
        if dist.get_rank() == 0:
            run.create(experiment)
        dist.barrier()
        found.append(losses(run, experiment, dataset, *scenario))
    if dist.get_rank() == 0:
        (folder / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()
