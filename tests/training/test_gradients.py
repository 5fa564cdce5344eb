"""Gradients exchanged over gloo by real worker processes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from raylab.storage import Folder
from raylab.training.runfolder import RunFolder


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def first_gradients(folder, experiment, workers):
    run = RunFolder(Folder.open(folder))
    run.create(experiment)
    output = folder.parent / f"{folder.name}.safetensors"
    program = Path(__file__).with_name("first_gradients.py")
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(workers)}
    processes = [
        subprocess.Popen([sys.executable, program, folder, output], env={**os.environ, **group, "RANK": str(rank)})
        for rank in range(workers)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0] * workers
    return load_file(output)


def test_two_workers_with_batch_4_give_the_gradients_of_one_with_batch_8(tmp_path, small_experiment):
    still = {"model.dropout": 0.0, "model.drop_path": 0.0, "model.frozen_blocks": 4}  # no batch-norm in train mode
    one = first_gradients(tmp_path / "one", small_experiment.override({**still, "data.batch_size": 8}), workers=1)
    two = first_gradients(tmp_path / "two", small_experiment.override({**still, "data.batch_size": 4}), workers=2)
    assert one.keys() == two.keys()
    for name in one:
        error = (one[name] - two[name]).norm() / one[name].norm()
        assert error < 1e-5, (name, float(error))
