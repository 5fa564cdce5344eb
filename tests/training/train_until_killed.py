"""Trains the experiment in a run folder, and kills itself with SIGKILL while it writes a given checkpoint.

    python train_until_killed.py RUN_FOLDER CHECKPOINT (before|after)

`before`: all files of that checkpoint are written, but it has not got its name yet. `after`: it has.
CHECKPOINT counts those written by this process, from 1; 0 never kills. With RANK, WORLD_SIZE, MASTER_ADDR and
MASTER_PORT set it is one of several processes that train together, of which the first writes, and dies.
"""

import os
import signal
import sys

import torch
import torch.distributed as dist

from raylab.data.datasets import load_dataset
from raylab.storage import Folder
from raylab.training.loop import Worker, train
from raylab.training.runfolder import RunFolder

folder, fatal, moment = sys.argv[1], int(sys.argv[2]), sys.argv[3]


class Fatal(RunFolder):
    written = 0

    def write_checkpoint(self, write, epoch, step, metrics):
        Fatal.written += 1

        def write_and_die(path):
            write(path)
            if moment == "before" and Fatal.written == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

        super().write_checkpoint(write_and_die, epoch, step, metrics)
        if moment == "after" and Fatal.written == fatal:
            os.kill(os.getpid(), signal.SIGKILL)


torch.set_num_threads(1)
if "WORLD_SIZE" in os.environ:
    dist.init_process_group("gloo")
run = Fatal(Folder.open(folder))
experiment = run.experiment
train(experiment, load_dataset(experiment.data), run, Worker.current(torch.device("cpu")), lambda row: None)
if dist.is_initialized():
    dist.destroy_process_group()
