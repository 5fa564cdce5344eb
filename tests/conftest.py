import os
import sys

import pytest
import torch
from hypothesis import settings

ON_RAY = (  # share one cluster: to start one takes seconds
    "tests/cluster/",
    "tests/evaluation/test_evaluate.py",
    "tests/evaluation/test_keyframe_figures.py",
    "tests/handcrafted/test_extract_all.py",
    "tests/prepare/test_fidelity.py",
    "tests/prepare/test_killed.py",
    "tests/prepare/test_prepare.py",
    "tests/sweeps/test_cross_validation.py",
    "tests/sweeps/test_sweep.py",
    "tests/training/test_distributed.py",
    "tests/training/test_every_model.py",
)

# The same examples every time; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: not item.nodeid.startswith(ON_RAY))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Processes take whole files, for their fixtures' sake, and one takes all that need Ray: the longest, so first.

    Of the slow tests each takes long beside starting a cluster, so their files are for any process.
    """
    if config.option.markexpr == "slow":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneCluster(LoadFileScheduling):
        def _split_scope(self, nodeid):
            return "ray" if nodeid.startswith(ON_RAY) else super()._split_scope(nodeid)

    return OneCluster(config, log)


@pytest.fixture(scope="session", autouse=True)
def own_cache_and_cluster(tmp_path_factory):
    """Renderings go to a folder of this session; Ray joins no cluster that happens to run here, and sees two CPUs.

    Each CPU is a process that imports PyTorch: more than two are only slower to come up.
    """
    session = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        session = session.parent
    ours = {
        "RAYLAB_CACHE": str(session / "cache"),
        "RAY_ADDRESS": "local",
        "RAY_OVERRIDE_RESOURCES": '{"CPU": 2}',
    }
    torch.set_num_threads(1)  # models this small only lose time to more
    with pytest.MonkeyPatch.context() as environment:
        for name, value in ours.items():
            environment.setenv(name, value)
        yield


@pytest.fixture(scope="module", autouse=True)
def one_cluster(request):
    """Other files begin without Ray: loader processes are forked, and its threads are not."""
    if request.node.nodeid.startswith(ON_RAY):
        from raylab.cluster.connect import connect

        connect()
    elif ray := sys.modules.get("ray"):
        ray.shutdown()


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


@pytest.fixture(scope="session")
def small_student(small_experiment):
    """A student of two random networks that trains in seconds: 16 clips, each a video of its own."""
    from raylab.config import Experiment

    sections = small_experiment.to_dict()
    return Experiment.parse(
        {
            "task": "distillation",
            "model": {"name": "videomae_small", "scale": "tiny", "pretrained": False, "dropout": 0.0},
            "data": {**sections["data"], "dataset": "kitchen_labelled", "max_clips": 16},
            "distill": {"pretrained": False, "cache": False},
            "train": {**sections["train"], "epochs": 1},
        }
    )


@pytest.fixture
def rows_of(tmp_path):
    """Trains an experiment, `between` being called after every epoch; the rows of metrics, without times."""
    from raylab.data.datasets import load_dataset
    from raylab.storage import Folder
    from raylab.training.loop import Trainer, Worker
    from raylab.training.runfolder import RunFolder

    started = []

    def train(experiment, between=lambda: None):
        run = RunFolder(Folder.open(tmp_path / f"run{len(started)}"))
        started.append(run)
        run.create(experiment)
        trainer = Trainer(experiment, load_dataset(experiment.data), run, Worker(torch.device("cpu")))
        rows = []
        while not trainer.done:
            trainer.train_epoch()
            rows.append(trainer.finish_epoch())
            between()
        timed = {"seconds", "clips_per_second", "data_wait", "memory"}
        return [{name: value for name, value in row.items() if name not in timed} for row in rows]

    return train
