"""One of several processes that train together: saves the gradients of the first step (rank 0) and stops.

RANK=… WORLD_SIZE=… MASTER_ADDR=… MASTER_PORT=… python first_gradients.py RUN_FOLDER OUTPUT
"""

import sys

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from raylab.data.datasets import load_dataset
from raylab.storage import Folder
from raylab.training.loop import Trainer, Worker
from raylab.training.runfolder import RunFolder

torch.set_num_threads(1)
dist.init_process_group("gloo")
run = RunFolder(Folder.open(sys.argv[1]))
trainer = Trainer(run.experiment, load_dataset(run.experiment.data), run, Worker.current(torch.device("cpu")))


class Done(Exception):
    pass


def step():
    if dist.get_rank() == 0:
        named = trainer.state.task.model.named_parameters()
        save_file({name: p.grad.clone() for name, p in named if p.requires_grad}, sys.argv[2])
    raise Done


trainer.step = step
try:
    trainer.train_epoch()
except Done:
    dist.barrier()
    dist.destroy_process_group()
