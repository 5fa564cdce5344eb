import os

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def own_cache_and_cluster(tmp_path_factory):
    """Renderings go to a folder of this session; Ray never joins a cluster that happens to run here."""
    previous = {name: os.environ.get(name) for name in ("RAYLAB_CACHE", "RAY_ADDRESS")}
    os.environ["RAYLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["RAY_ADDRESS"] = "local"
    torch.set_num_threads(1)  # models this small only lose time to more
    yield
    for name, value in previous.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


@pytest.fixture(scope="session")
def small_experiment():
    """An experiment that trains in seconds on one core: 48 clips, four frames of 32 pixels, a tiny encoder."""
    from raylab.config import Experiment

    return Experiment().override(
        {
            "model.name": "resnet50_transformer_regularized",
            "model.encoder": "test_resnet",
            "model.pretrained": False,
            "model.temporal_layers": 1,
            "model.temporal_width": 64,
            "model.dim_feedforward": 64,
            "model.drop_path": 0.1,
            "data.dataset": "kitchen",
            "data.kitchen": "tiny",
            "data.frames": 4,
            "data.size": 32,
            "data.batch_size": 8,
            "data.hflip": 0.0,
            "data.loader_workers": 0,
            "train.epochs": 2,
            "train.precision": "fp32",
            "train.log_steps": 1,
        }
    )
